"""Several processes as one run: ranks, processes of this machine, and work in resumable parts."""
