"""Tests of relay/process."""
