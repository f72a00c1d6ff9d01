"""Communicators over torch.distributed: the contract between processes, groups, deaths."""

from __future__ import annotations

import pytest
from processes import run

import libmoe
import libmoe.torch


@pytest.mark.parametrize("size", [1, 3])
def test_the_contract_is_kept(size: int) -> None:
    assert run("communicator_ranks.py", "contract", size) == [0] * size


def test_a_rank_that_dies_is_an_error_where_it_is_waited_for() -> None:
    assert run("communicator_ranks.py", "death", 2) == [0, 9]


def test_without_torch_distributed_it_says_what_to_call() -> None:
    with pytest.raises(libmoe.BadStateError, match="init_process_group first"):
        libmoe.torch.communicator()
