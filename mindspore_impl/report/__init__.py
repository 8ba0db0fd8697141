"""Reports of a run and of runs over seeds."""
