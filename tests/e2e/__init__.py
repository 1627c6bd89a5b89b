"""The relay as a process between real clients and a real sshd: what every sentence of the design promises, shown."""
