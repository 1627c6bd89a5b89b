"""Keys backends, each by the same contract."""
