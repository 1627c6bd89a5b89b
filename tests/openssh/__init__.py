"""Tests of relay/openssh."""
