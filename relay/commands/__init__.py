"""The command line's own work: check, init, health, sessions."""
