"""Processes over torch.distributed, started one by one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2]


def run(program: str, test: str, size: int) -> list[int]:
    """Return the statuses of so many processes of a program of this folder, which is told the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(FOLDER / "tests" / "support"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WORLD_SIZE": str(size)}
    environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    command = [sys.executable, str(FOLDER / "tests_torch" / "support" / program), test]
    processes = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(size)]
    return [process.wait(timeout=300) for process in processes]
