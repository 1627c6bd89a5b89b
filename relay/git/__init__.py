"""Git's own formats: commands, pkt-lines, requests, refs."""
