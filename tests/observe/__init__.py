"""Tests of relay/observe."""
