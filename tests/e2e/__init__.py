"""End-to-end tests: the relay as a process between real clients and a real sshd."""
