"""Sampling and the batched decoding engine."""
