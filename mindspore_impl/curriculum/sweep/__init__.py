"""Sweeps: plan trials, run them as processes, and propose them with Optuna."""
