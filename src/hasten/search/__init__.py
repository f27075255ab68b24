"""Which recipe is the fastest that keeps the accuracy: candidates, trials, front, certificate, artifact."""
