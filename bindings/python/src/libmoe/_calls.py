"""Calls that take long: their options, and how they are made."""

from __future__ import annotations

import ctypes
from typing import Any

from . import _abi, _check
from ._keywords import keywords
from ._library import Handle
from .optim import Optimizer
from .routing import Routing


@keywords
def forward_options(
    every: tuple[int, ...],
    top_k: int,
    n_experts: int,
    hidden_size: int,
    *,
    training: bool = False,
    step: int = 0,
    valid_mask: Any = None,
    token_ids: Any = None,
    expert_indices: Any = None,
    expert_weights: Any = None,
    sequence_length: int = 0,
    global_counts: Any = None,
    record: Routing | None = None,
    replay: Routing | None = None,
    memory_limit: int | str = 0,
    tape_policy: str = "auto",
    loss_mask: Any = None,
    noise: Any = None,
    jitter: Any = None,
    second: Any = None,
    chunk_tokens: int = 0,
) -> _abi.moe_forward_options:
    """Check what a forward of tokens [every] is given."""
    recorder, replayed = _handle("record", record), _handle("replay", replay)
    choices = (*every, top_k)
    options = _abi.moe_forward_options(
        training=_check.flag("training", training),
        step=_check.integer("step", step, ctypes.c_uint64),
        valid_mask=_check.address("valid_mask", valid_mask, every, dtype="mask"),
        token_ids=_check.address("token_ids", token_ids, every, dtype="i64"),
        expert_indices=_check.address("expert_indices", expert_indices, choices, dtype="i32"),
        expert_weights=_check.address("expert_weights", expert_weights, choices),
        sequence_length=_check.integer("sequence_length", sequence_length, ctypes.c_int64),
        global_counts=_check.address("global_counts", global_counts, (n_experts,), dtype="i64"),
        record=None if recorder is None else recorder._as_parameter_,
        replay=None if replayed is None else replayed._as_parameter_,
        memory_limit=_check.byte_count("memory_limit", memory_limit),
        tape_policy=_check.choice("tape_policy", tape_policy, _abi.TAPE),
        loss_mask=_check.address("loss_mask", loss_mask, every, dtype="mask"),
        noise=_check.address("noise", noise, (*every, n_experts)),
        jitter=_check.address("jitter", jitter, (*every, hidden_size)),
        second=_check.address("second", second, every),
        chunk_tokens=_check.integer("chunk_tokens", chunk_tokens, ctypes.c_int64),
    )
    options.handles = (recorder, replayed)  # which nobody frees while the library uses them
    return options


def backward_options(
    optimizer: Optimizer | None, clip_factor: float, **arrays: Any
) -> _abi.moe_backward_options:
    """Check what a backward is given besides dy."""
    if optimizer is not None:
        _check.instance("optimizer", optimizer, Optimizer, "a libmoe.AdamW or SGD")
    handle = None if optimizer is None else optimizer._handle
    options = _abi.moe_backward_options(
        optimizer=None if handle is None else handle._as_parameter_,
        clip_factor=_check.number("clip_factor", clip_factor),
        **arrays,
    )
    options.handles = (handle,)
    return options


def _handle(name: str, routing: Routing | None) -> Handle | None:
    """Return the handle of a record, to be held while the library uses it."""
    if routing is not None:
        _check.instance(name, routing, Routing, "libmoe.Routing()")
    return None if routing is None else routing._handle
