"""Nothing grows faster than the number of layers, or of tensors: what took a minute takes a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe._native.library import lib

N = 8_000
SMALL: dict[str, Any] = dict(
    n_heads=1, rope_theta=0.0, norm_place="pre", dense_kind="gated", dense_intermediate_size=1
)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where it takes longer; growing with the square it would take many times as long."""
    start = time.process_time()
    yield
    taken = time.process_time() - start
    assert taken < seconds, f"{taken:.1f} s"


@pytest.fixture(scope="module")
def deep() -> Iterator[libmoe.Model]:
    moe = dict(n_experts=2, top_k=1, intermediate_size=1)
    with libmoe.Context(n_threads=1) as context:
        with within(10):
            model = libmoe.Model(2, N, moe=moe, moe_every=2, vocabulary_size=3, **SMALL, context=context)
        yield model


def test_plans(deep: libmoe.Model) -> None:
    whole = deep.plan(1, 64)
    assert whole.keep == ["all"] * N
    with within(2):
        plans = [
            deep.plan(1, 64, memory_limit=int(whole.total_bytes * share)) for share in (0.99, 0.8, 0.6, 0.45)
        ]
        with pytest.raises(libmoe.InvalidArgumentError, match="need at least"):
            deep.plan(1, 64, memory_limit=1 << 20)
    for plan in plans:
        assert plan.total_bytes < whole.total_bytes
        # So much is kept, from the last layer on, as the limit allows: less first where it was least needed.
        order = [("input", "lean", "all").index(word) for word in plan.keep]
        assert order == sorted(order)


def test_what_is_planned_is_what_is_taken() -> None:
    moe = dict(n_experts=2, top_k=1, intermediate_size=3)
    tokens = np.zeros((1, 600), np.int32)
    for every in (1, 2, 3):
        with libmoe.Context(n_threads=1) as context:
            model = libmoe.Model(
                4,
                9,
                moe=moe,
                moe_every=every,
                vocabulary_size=3,
                **{**SMALL, "dense_intermediate_size": 5 * (every > 1)},
                context=context,
            )
            whole = model.plan(1, 600).total_bytes
            for limit in range(whole * 2 // 5, whole, whole // 23):
                try:
                    plan = model.plan(1, 600, memory_limit=limit)
                except libmoe.InvalidArgumentError:
                    continue
                assert plan.total_bytes <= limit
                tape = model.tape()
                before = context.memory()[0]
                model.forward(tokens, tokens, training=True, tape=tape, memory_limit=limit)
                assert context.memory()[0] - before >= plan.tape_bytes
                tape.close()


def test_forward_and_backward_under_a_limit(deep: libmoe.Model) -> None:
    tokens = np.array([[0, 1, 2, 1]], np.int32)
    limit = deep.plan(1, 4).total_bytes * 9 // 10
    with within(10):
        deep.backward(deep.forward(tokens, tokens, training=True, tape=True, memory_limit=limit))


def test_names(deep: libmoe.Model) -> None:
    import ctypes

    with within(10):
        names = list(deep.state_dict())
        index = ctypes.c_int64()
        for expected, name in enumerate(names):
            lib.moe_model_find_parameter(deep._handle, name.encode(), ctypes.byref(index))
            assert index.value == expected
    for wrong in (
        "layers.8000.norm1.weight",
        "layers.01.norm1.weight",
        "layers..norm1.weight",
        "layers.",
        "x",
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match="no parameter called"):
            lib.moe_model_find_parameter(deep._handle, wrong.encode(), ctypes.byref(index))


def test_optimisers_of_many_tensors(tmp_path: Path) -> None:
    with within(15):
        parameters = [libmoe.Parameter(np.ones(1, np.float32), name=f"p{i}") for i in range(50_000)]
        optimizer = libmoe.AdamW(parameters)
        optimizer.step()
        path = tmp_path / "state.safetensors"
        libmoe.save_training(path, optimizers=[optimizer], step=1)
        assert libmoe.load_training(path, optimizers=[optimizer]) == 1
