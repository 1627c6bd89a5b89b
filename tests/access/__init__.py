"""Access backends, each by the same contract."""
