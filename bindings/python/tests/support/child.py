"""What a process that a test starts has to find."""

from __future__ import annotations

import os
from pathlib import Path

import libmoe

_FOLDERS = [Path(libmoe.__file__).parents[1], Path(__file__).parent]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, _FOLDERS))}
"""That of the test, with this package first, and what the tests share."""
