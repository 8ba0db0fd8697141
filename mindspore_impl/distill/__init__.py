"""Offline on-policy distillation: rollouts and the capture of teacher distributions."""
