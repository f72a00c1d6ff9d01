"""Communicators: the contract, kept by threads as ranks; a struct that C has filled."""

from __future__ import annotations

import ctypes

import pytest

import libmoe
from libmoe._native import abi
from thread_ranks import NOT_BEGUN, ThreadRanks, unkept


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_threads_keep_the_contract(size: int) -> None:
    ranks = ThreadRanks(size)
    assert ranks.run(unkept) == [None] * size
    assert [(c.rank, c.size) for c in ranks.communicators] == [(rank, size) for rank in range(size)]
    assert repr(ranks.communicators[0]) == f"Communicator(rank 0 of {size})"


def test_what_the_contract_finds_is_said() -> None:
    ranks = ThreadRanks(2)
    ranks.fail(1, 3, NOT_BEGUN)
    said = ranks.run(unkept)
    assert all(words and "made to fail at its beginning" in words for words in said)


def test_a_group_lives_as_long_as_one_of_its_communicators() -> None:
    one = ThreadRanks(1).communicators[0]
    assert unkept(one) is None


def test_what_is_no_communicator_is_refused() -> None:
    with pytest.raises(
        libmoe.InvalidArgumentError, match="address: there is no moe_communicator of 88 bytes"
    ):
        libmoe.Communicator(0)
    struct = abi.moe_communicator(rank=2, size=5)
    struct.struct_size = 8
    with pytest.raises(libmoe.InvalidArgumentError, match="no moe_communicator"):
        libmoe.Communicator(ctypes.addressof(struct))
