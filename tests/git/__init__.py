"""Tests of relay/git."""
