"""`python -m raftkv_core.cli`: the command line of this very interpreter, wherever its scripts are."""

import sys

from raftkv_core.cli import main

sys.exit(main())
