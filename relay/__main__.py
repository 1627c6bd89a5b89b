"""`python -m relay`: the command line without an installed script."""

import sys

import relay

if getattr(relay, "DISTRIBUTION", "") != "git-ssh-relay":  # another package of this name was installed over ours
    remedy = "install git-ssh-relay into a virtual environment of its own"
    sys.exit(f"relay: {relay.__file__} is of another package with the name relay; {remedy}")

from relay.cli import main

sys.exit(main())
