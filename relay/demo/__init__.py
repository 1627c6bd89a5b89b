"""`relay demo`: an embedded git host, a relay in front of it, and the real git through both."""
