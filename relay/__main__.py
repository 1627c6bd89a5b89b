"""`python -m relay`: the command line without an installed script."""

import sys

from relay.cli import main

sys.exit(main())
