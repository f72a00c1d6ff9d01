"""Communicators over torch.distributed: the contract between processes, groups, deaths."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import libmoe
import libmoe.torch

FOLDER = Path(__file__).resolve().parents[1]


def run(test: str, size: int) -> list[int]:
    """Return the statuses of so many processes of communicator_ranks.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(FOLDER / "tests" / "support"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "WORLD_SIZE": str(size)}
    environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    command = [sys.executable, str(FOLDER / "tests_torch" / "support" / "communicator_ranks.py"), test]
    processes = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(size)]
    return [process.wait(timeout=300) for process in processes]


@pytest.mark.parametrize("size", [1, 3])
def test_the_contract_is_kept(size: int) -> None:
    assert run("contract", size) == [0] * size


def test_a_rank_that_dies_is_an_error_where_it_is_waited_for() -> None:
    assert run("death", 2) == [0, 9]


def test_without_torch_distributed_it_says_what_to_call() -> None:
    with pytest.raises(libmoe.BadStateError, match="init_process_group first"):
        libmoe.torch.communicator()
