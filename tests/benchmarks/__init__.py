"""Tests of the benchmark suite: what it computes and renders, what it starts and ends; never how fast anything is."""
