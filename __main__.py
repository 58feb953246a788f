"""`python -m imagen_nodes`: the command line."""

import sys

from .headless.cli import main

sys.exit(main())
