"""A soak: mixed load through one relay under random faults, which ends with what was carried, what failed, and whether anything lied."""
