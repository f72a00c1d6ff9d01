"""What a process that a test starts has to find."""

from __future__ import annotations

import os
from pathlib import Path

import libmoe

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(libmoe.__file__).parents[1])}
"""That of the test, with this package first."""
