"""Backward through experts in few bits: that of a layer with the values kept, which stay as they are."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
import oracle
from against_oracle import inputs, oracle_of, unsettle
from comparison import assert_all_close, assert_all_same_bits, assert_close
from oracle.low_bits import unpacked

SIZES: dict[str, Any] = {"hidden_size": 72, "intermediate_size": 45, "n_experts": 5, "top_k": 2, "seed": 3}
KINDS: dict[str, dict[str, Any]] = {
    "gated": {"expert_kind": "gated", "n_shared_experts": 2, "shared_gate": "sigmoid", "expert_bias": True},
    "dropout": {
        "expert_kind": "mlp",
        "dropout": 0.2,
        "router_bias": True,
        "capacity_formula": "megatron",
        "capacity_factor": 1.0,
    },
    "linear": {"expert_kind": "linear", "intermediate_size": 0, "expert_bias": True, "weight_on_input": True},
    "groups": {
        "intermediate_size": 0,
        "expert_groups": [
            {"n_experts": 3, "expert_kind": "mlp", "intermediate_size": 40},
            {"n_experts": 2, "expert_kind": "constant"},
        ],
    },
}
CONTEXTS: list[tuple[str, str, int]] = [
    ("native", "all", 2),
    ("native", "avx2", 1),
    ("reference", "all", 2),
    ("auto", "base", 1),
]
T = 150


def is_packed(name: str) -> bool:
    return ("experts." in name or "shared." in name) and name.endswith("weight") and "router" not in name


def floats(values: NDArray[Any]) -> NDArray[np.float32]:
    return values if values.dtype == np.float32 else values.view(ml_dtypes.bfloat16).astype(np.float32)


def twin_of(layer: libmoe.Layer, arguments: dict[str, Any], form: str, context: Any) -> libmoe.Layer:
    """Return the layer of float32 whose weights are what the form keeps."""
    twin = libmoe.Layer(**{**arguments, "weight_dtype": "f32"}, context=context)
    state = {name: floats(value) for name, value in layer.state_dict().items()}
    twin.load_state_dict({n: unpacked(v, form) if is_packed(n) else v for n, v in state.items()})
    return twin


def step(layer: libmoe.Layer, **call: Any) -> dict[str, Any]:
    """All that a training step computes, but the gradients of matrices of experts."""
    x, dy = inputs(T, layer.hidden_size)
    tape = layer.tape()
    y = layer.forward(x, tape=tape, training=True, step=3, **call).y
    dx = layer.backward(tape, dy, d_aux_loss=0.7)
    gradients = {n: p.grad.copy() for n, p in layer.parameters.items() if not is_packed(n)}
    return {"y": y, "dx": dx, **gradients}


@pytest.mark.parametrize(("matmul", "instructions", "threads"), CONTEXTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["int8", "int4_g64_a8", "nvfp4_a16", "int8_row_a8"])
def test_the_bits_of_a_layer_with_these_values(
    form: Any, kind: str, matmul: Any, instructions: Any, threads: int
) -> None:
    arguments = {**SIZES, **KINDS[kind]}
    with libmoe.Context(threads, matmul, instructions=instructions) as context:
        layer = libmoe.Layer(**arguments, context=context)
        twin = twin_of(layer, arguments, form, context)
        layer.prepare(form)
        assert_all_same_bits(step(layer), step(twin))
        # What is computed again, and in chunks, is the same.
        for division in ({"tape_policy": "lean"}, {"chunk_tokens": 64}):
            layer.zero_grad()
            twin.zero_grad()
            assert_all_same_bits(step(layer, **division), step(twin, **division))


@pytest.mark.parametrize("kind", ["gated", "linear"])
def test_whatever_type_the_weights_were(kind: str) -> None:
    arguments = {**SIZES, **KINDS[kind], "weight_dtype": "bf16"}
    with libmoe.Context(2) as context:
        layer = libmoe.Layer(**arguments, context=context)
        twin = twin_of(layer, arguments, "int4", context)
        layer.prepare("int4_a8")
        for division in ({}, {"tape_policy": "lean"}):
            layer.zero_grad()
            twin.zero_grad()
            assert_all_same_bits(step(layer, **division), step(twin, **division))


@pytest.mark.parametrize("kind", KINDS)
def test_against_float64(kind: str) -> None:
    arguments = {**SIZES, **KINDS[kind], "dropout": 0.0}
    with libmoe.Context(2) as context:
        layer = libmoe.Layer(**arguments, context=context)
        unsettle(layer)
        twin = twin_of(layer, arguments, "int4", context)
        layer.prepare("int4_a8")
        x, dy = inputs(T, layer.hidden_size)
        truth = oracle_of(twin, arguments, x, {})
        assert truth.routing.margin() > 1e-5, "choose another seed"
        tape = layer.tape()
        assert_close("y", layer.forward(x, tape=tape).y, truth.y)
        dx = layer.backward(tape, dy)
        assert dx is not None
        d_x, gradients = oracle.backward(truth, dy)
        assert_close("dx", dx, d_x)
        found = {n: p.grad for n, p in layer.parameters.items() if not is_packed(n)}
        assert_all_close(found, {name: gradients[name] for name in found})


def test_the_output_moves_as_the_gradient_says() -> None:
    """Finite differences of what a taped forward puts out, tokens of ``_a8`` being floats there."""
    arguments = {**SIZES, **KINDS["gated"], "top_k": 5}  # all experts, so that no choice changes
    layer = libmoe.Layer(**arguments)
    layer.prepare("int8_a8")
    x, dy = inputs(40, layer.hidden_size)
    direction, _ = inputs(40, layer.hidden_size, seed=9)

    def objective(size: float) -> float:
        moved = (x + np.float32(size) * direction).astype(np.float32)
        return float(np.vdot(layer.forward(moved, tape=layer.tape()).y.astype(np.float64), dy))

    tape = layer.tape()
    layer.forward(x, tape=tape)
    dx = layer.backward(tape, dy, d_aux_loss=0)
    assert dx is not None
    size = 2.0**-8
    slope = (objective(size) - objective(-size)) / (2 * size)
    assert slope == pytest.approx(float(np.vdot(dx.astype(np.float64), direction)), rel=1e-3)


def test_what_is_packed_is_frozen_as_long_as_it_is() -> None:
    arguments = {**SIZES, **KINDS["gated"]}
    layer = libmoe.Layer(**arguments)
    before = layer.state_dict()
    layer.prepare("int4")
    parameters = layer.parameters
    assert {n for n, p in parameters.items() if p.frozen} == {n for n in parameters if is_packed(n)}
    with pytest.raises(libmoe.BadStateError, match="experts.up.weight: is frozen"):
        _ = parameters["experts.up.weight"].grad
    adamw = libmoe.AdamW(parameters, learning_rate=0.1, weight_decay=0.1)
    losses = []
    for _ in range(3):
        layer.zero_grad()
        losses.append(float(np.vdot(step(layer)["y"], inputs(T, 72)[1])))
        adamw.step()
    assert losses[2] < losses[1] < losses[0]
    after = layer.state_dict()
    for name, values in before.items():
        assert (after[name].tobytes() == values.tobytes()) == is_packed(name), name

    layer.prepare("none")
    assert not any(parameter.frozen for parameter in layer.parameters.values())
    tape = layer.tape()
    layer.forward(inputs(T, 72)[0], tape=tape)
    layer.backward(tape, inputs(T, 72)[1])
    assert layer.parameters["experts.up.weight"].grad.any()


@pytest.mark.parametrize("policy", ["full", "lean"])
def test_a_call_takes_what_was_planned(policy: Any) -> None:
    with libmoe.Context(2) as context:
        layer = libmoe.Layer(**SIZES, **KINDS["gated"], weight_dtype="bf16", context=context)
        layer.prepare("int4")
        planned = layer.plan(T, tape_policy=policy).total_bytes
        tape = layer.tape()
        before, _ = context.memory()
        layer.forward(inputs(T, 72)[0], tape=tape, tape_policy=policy)
        layer.backward(tape, inputs(T, 72)[1])
        after, peak = context.memory()
        assert peak == after == before + planned


def test_what_has_no_backward_is_said() -> None:
    arguments = {**SIZES, "expert_kind": "gated", "expert_bias": False}
    x, dy = inputs(T, 72)
    layer = libmoe.Layer(**arguments)
    tape = layer.tape()
    layer.forward(x, tape=tape)
    layer.prepare("int8")
    with pytest.raises(
        libmoe.BadStateError, match="tape: weights have been prepared in few bits since forward"
    ):
        layer.backward(tape, dy)
    layer.forward(x, tape=tape)
    layer.prepare("none")
    with pytest.raises(
        libmoe.BadStateError, match="tape: weights have been prepared in few bits since forward"
    ):
        layer.backward(tape, dy)

    stepped = libmoe.Layer(**arguments, unallocated="expert_gradients")
    adamw = libmoe.AdamW(stepped.parameters)
    stepped.prepare("int8")
    tape = stepped.tape()
    stepped.forward(x, tape=tape)
    with pytest.raises(
        libmoe.BadStateError,
        match="optimizer cannot step experts.gate.weight within backward, which is prepared",
    ):
        stepped.backward(tape, dy, optimizer=adamw)
    # There is nothing left that needs the memory which it has not.
    whole = libmoe.Layer(**arguments)
    whole.prepare("int8")
    assert_all_same_bits(step(stepped), step(whole))


def test_changes_are_noticed() -> None:
    layer = libmoe.Layer(**SIZES)
    layer.prepare("int8")
    x, dy = inputs(T, 72)
    tape = layer.tape()
    layer.forward(x, tape=tape)
    layer.parameters["experts.up.weight"].data[...] += 1
    with pytest.raises(libmoe.BadStateError, match="prepare the layer again"):
        layer.backward(tape, dy)
