"""Pure functions on tensors: kernels, greedy selection, scaling. Nothing here knows a model or a pruner."""
