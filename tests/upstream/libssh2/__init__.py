"""Git hosts: their host keys, connections to them, and pools of those."""
