"""Tasks, scoring and the evaluation harness."""
