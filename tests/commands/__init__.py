"""Tests of relay/commands."""
