"""A git-over-SSH relay that authenticates, authorises and routes git sessions to upstream hosts."""

__version__ = "0.1.0"
