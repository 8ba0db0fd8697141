"""Many runs by one command: which trials there are, running them, and proposing them with Optuna."""
