"""Tests of relay/backends."""
