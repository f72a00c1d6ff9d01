"""Backward without the gradients of experts: what is left has the same bits, at fewer products."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal

H, I, E, T = 24, 40, 5, 33  # noqa: E741
OF_EXPERTS = re.compile(r"(experts|shared)\.(\d+\.)?((gate|up|down)\.)?(weight|bias)")
KINDS: dict[str, dict[str, Any]] = {
    "gated": {"expert_kind": "gated", "n_shared_experts": 2, "shared_gate": "sigmoid", "expert_bias": True},
    "dropout": {"expert_kind": "mlp", "dropout": 0.2, "router_bias": True},
    "linear": {"expert_kind": "linear", "intermediate_size": 0},
    "bf16": {"expert_kind": "gated", "weight_dtype": "bf16"},
    "groups": {
        "intermediate_size": 0,
        "expert_groups": [
            {"n_experts": 3, "expert_kind": "mlp", "intermediate_size": I},
            {"n_experts": 2, "expert_kind": "constant"},
        ],
    },
}


def made(kind: str, **more: Any) -> libmoe.Layer:
    sizes: dict[str, Any] = {"hidden_size": H, "intermediate_size": I, "n_experts": E, "top_k": 2}
    return libmoe.Layer(**{**sizes, **KINDS[kind], **more})


def backward(layer: libmoe.Layer, **options: Any) -> Any:
    tape = layer.tape()
    layer.forward(normal(T, H, seed=1), tape=tape, training=True)
    return layer.backward(tape, normal(T, H, seed=2), **options)


@pytest.mark.parametrize("matmul", ["native", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_experts_have_the_same_bits(kind: str, matmul: Any) -> None:
    layer = made(kind, context=libmoe.Context(2, matmul))
    dx = backward(layer)
    wanted = {name: p.grad.copy() for name, p in layer.parameters.items()}
    frozen = [name for name in wanted if OF_EXPERTS.fullmatch(name)]
    assert frozen and len(frozen) < len(wanted)
    for name, parameter in layer.parameters.items():
        parameter.grad[...] = 7 if name in frozen else 0
    np.testing.assert_array_equal(backward(layer, frozen_experts=True), dx)
    for name, parameter in layer.parameters.items():
        np.testing.assert_array_equal(parameter.grad, 7 if name in frozen else wanted[name], name)


@pytest.mark.parametrize("kind", ["gated", "linear"])
def test_half_of_the_products_are_left(kind: str) -> None:
    context = libmoe.Context(1)
    layer = made(kind, context=context)

    def products(**options: Any) -> float:
        tape = layer.tape()
        layer.forward(normal(T, H, seed=1), tape=tape)
        with context.profile() as profile:
            layer.backward(tape, normal(T, H, seed=2), **options)
        return sum(p.gflops * p.seconds for p in profile.phases if p.phase in ("gate/up", "down"))

    assert products(frozen_experts=True) == pytest.approx(products() / 2)


def test_they_need_no_memory() -> None:
    layer, whole = made("gated", unallocated="expert_gradients"), made("gated")
    with pytest.raises(libmoe.BadStateError, match="has no memory for its gradient"):
        backward(layer)
    np.testing.assert_array_equal(backward(layer, frozen_experts=True), backward(whole))
    gradient = layer.parameters["router.weight"].grad
    np.testing.assert_array_equal(gradient, whole.parameters["router.weight"].grad)
    adamw = libmoe.AdamW(layer.parameters)
    with pytest.raises(libmoe.InvalidArgumentError, match="frozen_experts = True beside optimizer"):
        backward(layer, frozen_experts=True, optimizer=adamw)
