"""Tests of relay/ssh."""
