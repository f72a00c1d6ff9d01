"""Experts that are computed in runs, whose arrays have room for as many rows as there are tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from against_oracle import Arguments, check, inputs, unsettle
from comparison import assert_all_same_bits, gradients_of

T, H, I, E, K = 300, 33, 45, 7, 3  # noqa: E741
SIZES: Arguments = {"hidden_size": H, "intermediate_size": I, "n_experts": E, "top_k": K}
GATED: Arguments = {"expert_kind": "gated", "activation": "silu", "expert_bias": True}
DROPPING: Arguments = {**GATED, "dropout": 0.2}
# The choices of token t, -1 for none: all experts alike; most at the ends; one with all tokens between those
# without any.
LOADS: dict[str, Callable[[int], list[int]]] = {
    "even": lambda t: [t % E, (t + 2) % E, (t + 3) % E],
    "ends": lambda t: [0, 6, 1 + t % 5],
    "few": lambda t: [3, 5 if t % 50 == 7 else -1, -1],
    "first": lambda t: [0, 1 if t < 90 else -1, 2 if t > 200 else -1],
    "none": lambda _: [-1, -1, -1],
}
# Beside them one that is no run's: a token that names an expert twice.
TWICE: dict[str, Callable[[int], list[int]]] = {"twice": lambda t: [4, 4 if t == 299 else 2, t % 2]}


def choices(load: str) -> NDArray[np.int32]:
    return np.array([(LOADS | TWICE)[load](t) for t in range(T)], np.int32)


@pytest.mark.parametrize("load", [name for name in LOADS | TWICE if name != "none"])
def test_every_load_against_the_oracle(load: str) -> None:
    check({**SIZES, **GATED}, n_tokens=T, expert_indices=choices(load))


def train(matmul: Any, load: str, tape_policy: Any, fused: bool, **arguments: Any) -> dict[str, Any]:
    """What two steps leave, each with its backward."""
    with libmoe.Context(n_threads=2, matmul=matmul) as context:
        unallocated: Any = "expert_gradients" if fused else ()
        layer = libmoe.Layer(**{**SIZES, **arguments}, unallocated=unallocated, context=context)
        unsettle(layer)
        tape, optimizer = layer.tape(), libmoe.AdamW(layer.parameters, context=context)
        found: dict[str, Any] = {}
        for step in range(2):
            x, dy = inputs(T, H, seed=step)
            found[f"y {step}"] = layer.forward(
                x, tape=tape, expert_indices=choices(load), tape_policy=tape_policy, training=True, step=step
            ).y.copy()
            if fused:
                found[f"dx {step}"] = layer.backward(tape, dy, optimizer=optimizer)
                continue
            layer.zero_grad()
            found[f"dx {step}"] = dx = layer.backward(tape, dy)
            found |= {f"{name} {step}": grad for name, grad in gradients_of(layer, dx).items()}
            optimizer.step()
        return found | layer.state_dict()


@pytest.mark.parametrize("tape_policy", ["full", "lean"])
@pytest.mark.parametrize("load", LOADS | TWICE)
@pytest.mark.parametrize(
    "kind", [{}, DROPPING, {"expert_kind": "linear", "intermediate_size": 0}], ids=["mlp", "gated", "linear"]
)
def test_bits_are_those_of_row_major_loops(kind: Arguments, load: str, tape_policy: Any) -> None:
    """Which have no runs."""
    assert_all_same_bits(
        train("native", load, tape_policy, False, **kind),
        train("reference", load, tape_policy, False, **kind),
    )


@pytest.mark.parametrize("weight_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("tape_policy", ["full", "lean"])
@pytest.mark.parametrize("load", LOADS | TWICE)
def test_steps_within_backward(load: str, tape_policy: Any, weight_dtype: str) -> None:
    arguments = {**DROPPING, "weight_dtype": weight_dtype, "io_dtype": "f32"}
    apart = train("native", load, tape_policy, False, **arguments)
    within = train("native", load, tape_policy, True, **arguments)
    assert_all_same_bits(within, {name: apart[name] for name in within})


@pytest.mark.parametrize("weight_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("tape_policy", ["full", "lean"])
@pytest.mark.parametrize("load", [name for name in LOADS if name != "none"])
def test_runs_change_no_bit(load: str, tape_policy: Any, weight_dtype: Any) -> None:
    """A last token that names one expert twice keeps a call from runs; its dy is 0, and adds nothing."""
    found: list[dict[str, Any]] = []
    for last in ([6, 5, -1], [6, 6, -1]):
        with libmoe.Context(n_threads=2) as context:
            layer = libmoe.Layer(**SIZES, **GATED, weight_dtype=weight_dtype, io_dtype="f32", context=context)
            unsettle(layer)
            x, dy = inputs(T + 1, H)
            dy[T] = 0
            indices = np.concatenate([choices(load), np.array([last], np.int32)])
            tape = layer.tape()
            y = layer.forward(x, tape=tape, expert_indices=indices, tape_policy=tape_policy).y.copy()
            gradients = gradients_of(layer, layer.backward(tape, dy, d_aux_loss=0))
            found.append(gradients | {"y": y[:T], "x": gradients["x"][:T]})
    assert_all_same_bits(*found)


@pytest.mark.parametrize("weight_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("tape_policy", ["full", "lean"])
def test_scratch_of_inner_features_goes_by_tokens(tape_policy: Any, weight_dtype: Any) -> None:
    """More choices cost rows of H features, and some numbers, but none of I."""
    hidden, inner, tokens = 64, 4096, 1000

    def bytes_of(top_k: int) -> tuple[int, int]:
        arguments = {**GATED, "weight_dtype": weight_dtype, "io_dtype": "f32"}
        with libmoe.Context(n_threads=2) as context:
            layer = libmoe.Layer(hidden, inner, 8, top_k, **arguments, context=context)
            plan = layer.plan(tokens, tape_policy=tape_policy)
            return plan.forward_bytes, plan.backward_bytes

    for few, many in zip(bytes_of(3), bytes_of(8), strict=True):
        assert (many - few) / (5 * tokens) < 4 * (hidden + 16)
