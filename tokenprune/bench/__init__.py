"""What pruning costs and saves in time and memory, measured stage by stage."""
