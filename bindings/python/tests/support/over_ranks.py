"""A layer and a model over any communicator, beside one process."""

from __future__ import annotations

from typing import Any

import numpy as np
from ranked_models import steps

import libmoe
from ranked_layers import Part, divided
from small_language_models import DENSE, LANGUAGE, MOE

MANY = {"hidden": 512, "more": 700}
"""Rows that travel in pieces where there are two ranks or more."""


def require_the_bits_of_one_process(world: libmoe.Communicator, hidden: int = 32, more: int = 5) -> None:
    """Compare steps of a layer over ranks with what each rank computes alone.

    The first rank has no tokens, each other one `more` than the one before.
    """
    size = world.size
    config: dict[str, Any] = dict(n_experts=7, top_k=2, expert_kind="gated", activation="silu", seed=3)
    counts = [more * rank for rank in range(size)] if size > 1 else [9]
    mine = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
    draw = np.random.default_rng(1).standard_normal
    x, dy = (draw((sum(counts), hidden), np.float32) for _ in range(2))
    alone = libmoe.Layer(hidden, 48, **config)
    part = libmoe.Layer(hidden, 48, communicator=world, **config)
    optimizers = [libmoe.AdamW(layer.parameters) for layer in (alone, part)]
    for _ in range(3):
        results = []
        for layer, own in ((alone, slice(None)), (part, mine)):
            tape = layer.tape()
            y = layer.forward(x[own], tape=tape, training=True).y
            layer.zero_grad()
            results.append((y, np.asarray(layer.backward(tape, dy[own]))))
        for whole, own_part in zip(*results):
            assert np.array_equal(own_part, whole[mine])
        for optimizer in optimizers:
            optimizer.step()
    first = sum(7 // size + (rank < 7 % size) for rank in range(world.rank))
    for name, parameter in part.parameters.items():
        data = alone.parameters[name].data
        if name.startswith("experts."):
            data = data[first : first + len(parameter.data)]
        assert np.array_equal(parameter.data, data), name


def require_a_model_of_one_process(world: libmoe.Communicator) -> None:
    """Compare steps of a model, the last rank of several without sequences."""
    size = world.size
    config: dict[str, Any] = {
        **LANGUAGE,
        **DENSE,
        "moe": {**MOE, "n_experts": 5},
        "moe_every": 2,
        "dropout": 0.1,
    }
    parts = divided([2] * (size - 1) + [0] if size > 1 else [2])
    count, part = sum(each.count for each in parts), parts[world.rank]
    alone = steps(libmoe.Model(**config), Part(0, count), config, count)
    model = libmoe.Model(**config, communicator=world)
    found = steps(model, part, config, count)
    assert found.numbers == alone.numbers
    for name, rows in found.rows.items():
        assert np.array_equal(rows, part.of(alone.rows[name])), name
    first = sum(5 // size + (rank < 5 % size) for rank in range(world.rank))
    for name, parameter in model.parameters.items():
        data = alone.parameters[name]
        if parameter._is_spread:
            data = data[first : first + len(parameter.data)]
        assert np.array_equal(parameter.data, data), name
