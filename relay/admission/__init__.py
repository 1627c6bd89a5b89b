"""Which connections are let in: limits, penalties and the PROXY protocol."""
