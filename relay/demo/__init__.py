"""`relay demo`: an embedded git host with a relay in front of it, for the real git."""
