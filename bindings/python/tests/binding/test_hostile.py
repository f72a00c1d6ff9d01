"""Whatever C functions are given, the process that calls them lives on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from child import ENVIRONMENT


def test_no_argument_ends_the_process() -> None:
    child = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "support" / "hostile_calls.py")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = child.stdout.splitlines()
    assert child.returncode == 0, f"{lines[-1:]} {child.stderr[-2000:]}"
    assert lines[-1] == "finished"
    assert len(lines) > 5000
