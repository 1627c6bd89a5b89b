"""A soak: mixed load through one relay under random faults, with a report of carried bytes, failures, and false successes."""
