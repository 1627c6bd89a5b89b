"""Tests of relay/config."""
