"""Reports of a run, of runs over seeds and of sweeps."""
