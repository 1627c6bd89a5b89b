"""Test peers that every test may build on: a real sshd, real keys, real repositories and links that break."""
