"""A machine's numbers, measured: how fast it computes a layer, and moves bytes from memory to memory."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

import libmoe

from ..train.bench import seconds
from .machine import Machine
from .work import LayerWork

ROUNDS = 3
EXPERTS = 16
TOKENS = 2048
COPIED = 64 << 20  # bytes, more than caches hold


def measure(work: LayerWork) -> Machine:
    """Return the machine that this program runs on.

    The network's numbers are the defaults of :class:`Machine`.  A forward and a backward of a layer with at
    most 16 of the experts and 2048 tokens, and as many rows for each expert as far as that goes, are timed on
    one core and on all, three times each after a first one.  What ranks of one node move is copied twice,
    into memory that they share and out of it: half the rate of a copy is taken for it.  ``make bench-ranks``
    measures real messages.

    Parameters
    ----------
    work : LayerWork
        The layer; sixteen experts and their activations have to fit memory.

    Raises
    ------
    OutOfMemoryError
        They do not.
    """
    cores = libmoe.processors()
    work = _smaller(work)
    taken = [_step(work, threads) for threads in sorted({1, cores})]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cores=cores,
        core_rate=work.operations / taken[0],
        node_rate=work.operations / taken[-1],
        memory=float(memory),
        copy_rate=_copy() / 2,
    )


def _smaller(work: LayerWork) -> LayerWork:
    """Return the layer with fewer experts and tokens, and as many rows for each expert."""
    experts = min(work.n_experts, EXPERTS)
    top_k = min(work.top_k, experts)
    rows = work.tokens * work.top_k / work.n_experts * experts
    return replace(work, n_experts=experts, top_k=top_k, tokens=min(max(1, round(rows / top_k)), TOKENS))


def _step(work: LayerWork, threads: int) -> float:
    """Seconds of a forward and a backward."""
    with libmoe.Context(threads) as context:
        layer = libmoe.Layer(
            work.hidden_size,
            work.intermediate_size,
            work.n_experts,
            work.top_k,
            expert_kind=work.expert_kind,
            activation="gelu" if work.expert_kind == "mlp" else "silu",
            n_shared_experts=work.n_shared_experts,
            weight_dtype="f32" if work.weight_bytes == 4 else "bf16",
            context=context,
        )
        x = np.random.default_rng(0).standard_normal((work.tokens, work.hidden_size), np.float32)
        tape = layer.tape()

        def step() -> None:
            layer.backward(tape, layer.forward(x, tape=tape).y)

        return seconds(step, ROUNDS)


def _copy() -> float:
    """Bytes a second from memory to memory."""
    source = np.ones(COPIED, np.uint8)
    target = np.zeros_like(source)
    return COPIED / seconds(lambda: np.copyto(target, source), ROUNDS)
