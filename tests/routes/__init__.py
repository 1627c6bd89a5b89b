"""Routes backends, each by the same contract."""
