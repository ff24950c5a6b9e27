"""Lets the tests of this folder import the helpers of others."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("adapter", "decoder"))]
