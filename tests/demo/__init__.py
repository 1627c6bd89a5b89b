"""Tests of relay.demo."""
