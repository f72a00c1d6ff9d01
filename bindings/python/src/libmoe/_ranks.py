"""What a layer over several ranks is told beside its configuration."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._native import abi, check
from .communicator import Communicator
from .errors import ArgumentTypeError, InvalidArgumentError


def require_whole(experts_per_rank: Sequence[int] | None, choice_scope: str) -> None:
    """Refuse what is said of ranks where there are none."""
    if experts_per_rank is not None:
        raise InvalidArgumentError("experts_per_rank is given, but no communicator")
    if choice_scope != "global":
        raise InvalidArgumentError(f"choice_scope = {choice_scope!r}, but there is no communicator")


def placement(
    communicator: Communicator, experts_per_rank: Sequence[int] | None, choice_scope: str
) -> abi.moe_placement:
    """Return the ``moe_placement``; its list lives with it."""
    made = abi.moe_placement()
    made.choice_scope = check.choice("choice_scope", choice_scope, abi.CHOICE_SCOPE)
    if experts_per_rank is not None:
        counts = np.array(
            [check.integer("experts_per_rank", n, ctypes.c_int64) for n in experts_per_rank], np.int64
        )
        if len(counts) != communicator.size:
            raise InvalidArgumentError(
                f"experts_per_rank: {len(counts)} numbers, but there are {communicator.size} ranks"
            )
        made._counts = counts
        made.experts_per_rank = counts.ctypes.data
    return made


def structure(communicator: Communicator) -> Any:
    """Return the ``moe_communicator`` as the library takes it."""
    if not isinstance(communicator, Communicator):
        raise ArgumentTypeError(f"communicator: expected a Communicator, got {type(communicator).__name__}")
    return ctypes.byref(communicator._struct)
