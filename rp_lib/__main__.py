"""``python -m rp_lib`` is the same as ``rp-lib``."""

import sys

from rp_lib.cli import main

sys.exit(main())
