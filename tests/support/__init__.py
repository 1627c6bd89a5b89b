"""Peers and helpers for all tests: a real sshd, real keys, real repositories and links that break."""
