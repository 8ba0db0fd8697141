"""Optimizer, schedule, the graph-mode step and the training loop."""
