"""hasten beside its peers: the same work handed over as files, one timer for all, one run."""
