"""A git-over-SSH relay that authenticates, authorises and routes git sessions to upstream hosts."""

__version__ = "0.1.0"
DISTRIBUTION = "git-ssh-relay"  # git_ssh_relay.py and __main__.py look for it: PyPI has another `relay`


def _main() -> None:
    """What the console script `relay` of PyPI's `relay` calls, when it was installed over ours."""
    import sys

    sys.exit("relay: this script is of another package with the name relay, installed over git-ssh-relay's: run git-ssh-relay instead")
