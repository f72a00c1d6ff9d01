"""What a layer or a model over several ranks is told beside its configuration."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._native import abi, check
from ._native.library import Handle, lib
from .communicator import Communicator
from .errors import ArgumentTypeError, InvalidArgumentError


def handle(
    kind: str,
    made: str,
    given: tuple[Any, ...],
    communicator: Communicator | None,
    experts_per_rank: Sequence[int] | None,
    choice_scope: str,
    strategy: str = "exclusive",
    hot_experts: int | Sequence[int] = 0,
) -> Handle:
    """Return the handle of a ``"layer"`` or a ``"model"``, over ranks where there is a communicator.

    It is made by ``"create"`` or ``"load"``, of what is `given`, the context's handle first.
    """
    keep = {"context": given[0], "communicator": communicator, "is_spread": strategy != "replicated"}
    free = getattr(lib, f"moe_{kind}_free")
    if communicator is None:
        _require_whole(experts_per_rank, choice_scope, strategy, hot_experts)
        return Handle(getattr(lib, f"moe_{kind}_{made}"), free, *given, keep=keep)
    c_placement = placement(communicator, experts_per_rank, choice_scope, strategy, hot_experts)
    ranked = (*given, structure(communicator), ctypes.byref(c_placement))
    return Handle(getattr(lib, f"moe_{kind}_{made}_distributed"), free, *ranked, keep=keep)


def _require_whole(
    experts_per_rank: Sequence[int] | None,
    choice_scope: str,
    strategy: str,
    hot_experts: int | Sequence[int],
) -> None:
    """Refuse what is said of ranks where there are none."""
    if experts_per_rank is not None:
        raise InvalidArgumentError("experts_per_rank is given, but no communicator")
    if choice_scope != "global":
        raise InvalidArgumentError(f"choice_scope = {choice_scope!r}, but there is no communicator")
    if strategy != "exclusive":
        raise InvalidArgumentError(f"strategy = {strategy!r}, but there is no communicator")
    if not isinstance(hot_experts, (int, np.integer)) or hot_experts != 0:
        raise InvalidArgumentError(f"hot_experts = {hot_experts}, but there is no communicator")


def placement(
    communicator: Communicator,
    experts_per_rank: Sequence[int] | None,
    choice_scope: str,
    strategy: str = "exclusive",
    hot_experts: int | Sequence[int] = 0,
) -> abi.moe_placement:
    """Return the ``moe_placement``; its lists live with it."""
    made = abi.moe_placement()
    made.choice_scope = check.choice("choice_scope", choice_scope, abi.CHOICE_SCOPE)
    made.strategy = check.choice("strategy", strategy, abi.STRATEGY)
    if isinstance(hot_experts, (Sequence, np.ndarray)):
        given = [check.integer(f"hot_experts[{i}]", n, ctypes.c_int32) for i, n in enumerate(hot_experts)]
        named = np.array(given, np.int32)
        made._named = named
        made.hot_experts, made.hot_indices = len(named), named.ctypes.data
    elif isinstance(hot_experts, (int, np.integer)):
        made.hot_experts = check.integer("hot_experts", hot_experts, ctypes.c_int32)
    else:
        kind = type(hot_experts).__name__
        raise ArgumentTypeError(
            f"hot_experts: expected how many there may be, or a list of their numbers, got {kind}"
        )
    made._counts = counts(communicator, experts_per_rank)
    if made._counts is not None:
        made.experts_per_rank = made._counts.ctypes.data
    return made


def counts(communicator: Communicator, experts_per_rank: Sequence[int] | None) -> NDArray[np.int64] | None:
    """Return how many experts each rank has, where that is said."""
    if experts_per_rank is None:
        return None
    found = np.array(
        [check.integer(f"experts_per_rank[{i}]", n, ctypes.c_int64) for i, n in enumerate(experts_per_rank)],
        np.int64,
    )
    if len(found) != communicator.size:
        raise InvalidArgumentError(
            f"experts_per_rank: {len(found)} numbers, but there are {communicator.size} ranks"
        )
    return found


def structure(communicator: Communicator) -> Any:
    """Return the ``moe_communicator`` as the library takes it."""
    if not isinstance(communicator, Communicator):
        raise ArgumentTypeError(f"communicator: expected a Communicator, got {type(communicator).__name__}")
    return ctypes.byref(communicator._struct)
