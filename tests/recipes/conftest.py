"""The recipe's scripts import each other by file name, as they do when run."""

import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes" / "emoji"
sys.path.insert(0, str(RECIPE))
