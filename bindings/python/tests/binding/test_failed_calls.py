"""A call that fails leaves handles as they were: a retry counts nothing twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from comparison import assert_all_same_bits

MOE: dict[str, Any] = dict(
    n_experts=4, top_k=2, intermediate_size=10, router_batch_norm=True, warmup_steps=10, warmup_experts=2
)
MODEL: dict[str, Any] = dict(hidden_size=8, n_layers=4, n_heads=2, vocabulary_size=11, moe=MOE, seed=3)
TOKENS = np.random.default_rng(1).integers(0, 11, (3, 9)).astype(np.int32)
TAPES = ["none", "all", "lean", "input"]


def buffers(model: libmoe.Model) -> dict[str, NDArray[Any]]:
    found = {name: array.copy() for name, array in model.buffers.items()}
    assert any(name.endswith("running_mean") for name in found)
    assert any(name.endswith("active_experts") for name in found)
    return found


def step(model: libmoe.Model, number: int, kind: str, targets: NDArray[np.int32] | None = None) -> Any:
    limit = None
    if kind in ("lean", "input"):  # the least that is enough
        plan = model.plan(3, 9)
        low, high = 1, plan.total_bytes
        while high - low > 64:
            middle = (low + high) // 2
            try:
                model.plan(3, 9, memory_limit=middle)
                high = middle
            except libmoe.InvalidArgumentError:
                low = middle
        limit = high if kind == "input" else (high + plan.total_bytes) // 2
    tape = None if kind == "none" else model.tape()
    targets = TOKENS if targets is None else targets
    return model.forward(TOKENS, targets, training=True, step=number, tape=tape, memory_limit=limit)


@pytest.mark.parametrize("broken", [1, 3])
@pytest.mark.parametrize("kind", TAPES)
def test_a_later_layer_fails(kind: str, broken: int) -> None:
    failing, other = libmoe.Model(**MODEL), libmoe.Model(**MODEL)
    for model in (failing, other):
        step(model, 0, kind)
    before = buffers(failing)
    weight = failing.parameters[f"layers.{broken}.ffn.router.weight"].data
    kept = weight.copy()
    weight[1, 2] = np.nan
    for number in (5, 7):
        with pytest.raises(libmoe.NotFiniteError, match=rf"layers\.{broken}: "):
            step(failing, number, kind)
    assert_all_same_bits(before, buffers(failing))
    weight[...] = kept
    for model in (failing, other):
        step(model, 6, kind)
    after = buffers(other)
    assert any((after[name] != before[name]).any() for name in after)
    assert_all_same_bits(after, buffers(failing))


@pytest.mark.parametrize("kind", TAPES)
def test_the_loss_fails(kind: str) -> None:
    model = libmoe.Model(**{**MODEL, "tied_output": False})
    step(model, 0, kind)
    before = buffers(model)
    model.parameters["output.weight"].data[0, 0] = np.nan
    with pytest.raises(libmoe.NotFiniteError):
        step(model, 6, kind)
    assert_all_same_bits(before, buffers(model))


def test_a_layer_alone() -> None:
    layer = libmoe.Layer(8, **MOE)
    x = np.random.default_rng(2).standard_normal((600, 8)).astype(np.float32)
    layer.forward(x, training=True, step=1)
    before = {name: array.copy() for name, array in layer.buffers.items()}
    x[-1, 0] = np.nan
    with pytest.raises(libmoe.NotFiniteError):
        layer.forward(x, training=True, step=8)
    assert_all_same_bits(before, layer.buffers)


def test_a_read_that_fails() -> None:
    plain = {
        **MODEL,
        "moe": {k: v for k, v in MOE.items() if k in ("n_experts", "top_k", "intermediate_size")},
    }
    model = libmoe.Model(**plain)
    cache, other = model.cache(3, 9), model.cache(3, 9)
    valid = np.arange(4) >= np.array([[0], [2], [3]])
    for each in (cache, other):
        model.read(each, TOKENS[:, :4].copy(), valid_mask=valid)
    weight = model.parameters["layers.2.ffn.router.weight"].data
    kept = weight.copy()
    weight[...] = np.nan
    with pytest.raises(libmoe.NotFiniteError, match=r"layers\.2: "):
        model.read(cache, TOKENS[:, 5:8].copy())
    assert cache.length == 4
    weight[...] = kept
    rest = TOKENS[:, 4:9].copy()
    np.testing.assert_array_equal(model.read(cache, rest), model.read(other, rest))
