"""What is fitted to a model on a task: policies of operation pruning."""
