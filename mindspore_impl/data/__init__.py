"""Data: sources, selection, answer verification, packing, batches, rollouts and the teacher store."""
