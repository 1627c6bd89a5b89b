"""Fuzzing of the two parsers that read what strangers send: coverage-guided by Atheris, or over mutated seeds where there is none."""
