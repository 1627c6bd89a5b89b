"""Tests of the benchmark suite: computations, rendering, and processes; never any speed."""
