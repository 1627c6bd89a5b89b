"""Fuzzing of the parsers that read strangers' bytes: coverage-guided by Atheris, or with mutated seeds if Atheris is not installed."""
