"""The client's side of SSH: asyncssh's server connection, with the parts of it that the relay replaces."""
