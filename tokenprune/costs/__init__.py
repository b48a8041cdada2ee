"""What a model costs: FLOPs, bytes and milliseconds, from sizes alone or measured."""
