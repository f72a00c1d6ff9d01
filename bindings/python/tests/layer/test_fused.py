"""Backward and step in one: the bits of both, without the experts' gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import libmoe
from against_oracle import Arguments, inputs, unsettle
from arrays import normal
from comparison import assert_all_same_bits, assert_close
from schemes import SCHEMES, SIZES, H, T, least

UNALLOCATED: Any = {False: (), True: "expert_gradients"}  # whether steps are fused
FACTOR = 0.37  # by which gradients are clipped
LIMITS: dict[str, Arguments] = {
    "whole": {},
    "lean": {"tape_policy": "lean"},
    "full chunks": {"tape_policy": "full", "memory_limit": None},
    "lean chunks": {"tape_policy": "lean", "memory_limit": None},
}
MORE: dict[str, tuple[Arguments, Arguments]] = {
    "gated with biases": ({"expert_kind": "gated", "activation": "silu", "expert_bias": True}, {}),
    "weight on input, linear": (
        {"expert_kind": "linear", "intermediate_size": 0, "weight_on_input": True, "expert_scale": True},
        {},
    ),
}


def optimizer_of(layer: libmoe.Layer, kind: str) -> libmoe.Optimizer:
    """One with momentum and decay, so that experts without a token move too."""
    state: Any = {"state_dtype": "bf16", "seed": 7} if kind.endswith(" in bf16") else {}
    if kind.startswith("muon"):
        return libmoe.Muon(layer.parameters, 0.01, weight_decay=0.1, **state)
    if kind.startswith("adamw"):
        return libmoe.AdamW(layer.parameters, 0.01, weight_decay=0.1, **state)
    return libmoe.SGD(layer.parameters, 0.05, momentum=0.9, weight_decay=0.1, **state)


def train(
    fused: bool,
    arguments: Arguments,
    call: Arguments,
    divided: Arguments,
    matmul: Any = "native",
    kind: str = "adamw",
) -> dict[str, Any]:
    """What three steps leave behind, with gradients times FACTOR."""
    with libmoe.Context(n_threads=2, matmul=matmul) as context:
        layer = libmoe.Layer(**{**SIZES, **arguments}, unallocated=UNALLOCATED[fused], context=context)
        if arguments.get("weight_dtype") != "bf16":
            unsettle(layer)
        if "router.bias" in layer.parameters:
            layer.parameters["router.bias"].data[-1] = -math.inf  # an expert that no token chooses
        if "memory_limit" in divided:
            # Both layers are to have the same chunks, whose number bfloat16 shows.
            divided = {"tape_policy": divided["tape_policy"], "chunk_tokens": 256}
        tape, optimizer = layer.tape(), optimizer_of(layer, kind)
        found: dict[str, Any] = {}
        for step in range(3):
            x, dy = inputs(T, H, seed=step)
            layer.forward(x, tape=tape, **call, **divided)
            if fused:
                found[f"dx {step}"] = layer.backward(tape, dy, optimizer=optimizer, clip_factor=FACTOR)
                continue
            layer.zero_grad()
            found[f"dx {step}"] = layer.backward(tape, dy)
            small = {name: p.grad.copy() for name, p in layer.parameters.items() if not is_expert(name)}
            for parameter in layer.parameters.values():
                parameter.grad[...] *= np.float32(FACTOR)
            optimizer.step()
        if fused:
            small = {name: p.grad.copy() for name, p in layer.parameters.items() if not is_expert(name)}
        found |= {f"gradient of {name}": grad for name, grad in small.items()}
        return found | layer.state_dict()


def is_expert(name: str) -> bool:
    """Whether the layers here have no memory for its gradient."""
    return name.startswith(("experts.", "shared.")) and "router" not in name and not name.endswith("constant")


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("scheme", SCHEMES | MORE)
def test_the_bits_are_those_of_backward_and_step(scheme: str, limit: str) -> None:
    arguments, call = (SCHEMES | MORE)[scheme]
    expected = train(False, arguments, call, LIMITS[limit])
    assert_all_same_bits(train(True, arguments, call, LIMITS[limit]), expected)


@pytest.mark.parametrize("scheme", ["groups of experts", "gated with biases", "weight on input, linear"])
@pytest.mark.parametrize("limit", LIMITS)
def test_sgd_and_plain_loops_say_the_same(scheme: str, limit: str) -> None:
    arguments, call = (SCHEMES | MORE)[scheme]
    expected = train(False, arguments, call, LIMITS[limit], kind="sgd")
    for matmul in ("native", "reference"):
        assert_all_same_bits(train(True, arguments, call, LIMITS[limit], matmul, "sgd"), expected)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("kind", ["adamw", "sgd", "muon"])
def test_bfloat16(kind: str, limit: str) -> None:
    """The float32 copies are the optimiser's; a chunk begins a new pair of tokens in both."""
    for arguments in (
        {"weight_dtype": "bf16", "io_dtype": "f32", "n_shared_experts": 1},
        {"weight_dtype": "bf16", "expert_kind": "gated", "activation": "silu", "dropout": 0.1},
    ):
        call: Arguments = {"training": True, "step": 1}
        expected = train(False, arguments, call, LIMITS[limit], kind=kind)
        assert_all_same_bits(train(True, arguments, call, LIMITS[limit], kind=kind), expected)


@pytest.mark.parametrize("kind", ["adamw in bf16", "sgd in bf16", "muon in bf16"])
@pytest.mark.parametrize("weight_dtype", ["f32", "bf16"])
def test_moments_are_rounded_alike(weight_dtype: str, kind: str) -> None:
    """By chance that goes by an element's place in its tensor, whichever part of the tensor a step takes."""
    arguments: Arguments = {"weight_dtype": weight_dtype, "expert_kind": "gated", "activation": "silu"}
    expected = train(False, arguments, {}, {}, kind=kind)
    assert_all_same_bits(train(True, arguments, {}, {}, kind=kind), expected)


@pytest.mark.parametrize("limit", LIMITS)
def test_openblas_agrees_to_rounding(limit: str) -> None:
    arguments, call = SCHEMES["shared, sigmoid"]
    expected = train(False, arguments, call, LIMITS[limit], "openblas", "sgd")
    found = train(True, arguments, call, LIMITS[limit], "openblas", "sgd")
    for name, value in expected.items():
        finite = np.isfinite(value)
        assert_close(name, found[name][finite], value[finite])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_sums_wait_where_an_expert_has_more_rows_than_are_summed_at_once(dtype: Any) -> None:
    tokens, hidden = 1500, 205  # two experts, so that one has more than 32 tiles of 14 rows
    x, dy = normal(tokens, hidden), normal(tokens, hidden, seed=1)
    found = []
    for fused in (False, True):
        layer = libmoe.Layer(
            hidden,
            99,
            2,
            1,
            expert_kind="gated",
            activation="silu",
            weight_dtype=dtype,
            seed=3,
            unallocated=UNALLOCATED[fused],
        )
        optimizer, tape = optimizer_of(layer, "adamw"), layer.tape()
        layer.forward(x, tape=tape)
        if fused:
            layer.backward(tape, dy, optimizer=optimizer)
        else:
            layer.backward(tape, dy)
            optimizer.step()
        found.append(layer.state_dict())
    assert_all_same_bits(found[1], found[0])


def test_without_tokens_weights_decay() -> None:
    layers = [libmoe.Layer(**SIZES, unallocated=UNALLOCATED[fused]) for fused in (False, True)]
    nothing = np.empty((0, H), np.float32)
    for layer in layers:
        optimizer, tape = optimizer_of(layer, "adamw"), layer.tape()
        layer.forward(nothing, tape=tape)
        if layer is layers[1]:
            layer.backward(tape, nothing, optimizer=optimizer)
        else:
            optimizer.step()
    assert_all_same_bits(layers[1].state_dict(), layers[0].state_dict())
    fresh = libmoe.Layer(**SIZES).state_dict()
    assert not np.array_equal(layers[1].state_dict()["experts.up.weight"], fresh["experts.up.weight"])


# Memory


@pytest.mark.parametrize("scheme", ["classic", "shared, sigmoid", "groups of experts"])
def test_the_layer_is_smaller_by_the_experts_gradients(scheme: str) -> None:
    arguments, _ = SCHEMES[scheme]
    taken = []
    with libmoe.Context() as context:
        for kept in (True, False):
            before, _ = context.memory()
            layer = libmoe.Layer(**{**SIZES, **arguments}, unallocated=UNALLOCATED[not kept], context=context)
            taken.append(context.memory()[0] - before)
            gradients = sum(4 * p.data.size for name, p in layer.parameters.items() if is_expert(name))
            layer.close()
    assert taken[0] - taken[1] == gradients > 0


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("scheme", ["classic", "groups of experts", "shared, sigmoid", "exploration"])
def test_the_promise_is_kept_to_the_byte(scheme: str, limit: str) -> None:
    arguments, call = SCHEMES[scheme]
    with libmoe.Context(n_threads=2) as context:
        layer = libmoe.Layer(**{**SIZES, **arguments}, unallocated="expert_gradients", context=context)
        kept = libmoe.Layer(**{**SIZES, **arguments}, context=context)
        divided = dict(LIMITS[limit])
        assert 0 < layer.plan(0).backward_bytes < layer.plan(1).backward_bytes
        if "memory_limit" in divided:
            divided["memory_limit"] = least(layer, T, **call, tape_policy=divided["tape_policy"])
        tape, optimizer = layer.tape(), optimizer_of(layer, "adamw")
        plan = layer.plan(T, **call, **divided)
        if not divided.get("memory_limit"):
            one = plan.backward_bytes - kept.plan(T, **call, **divided).backward_bytes
            largest = max(p.data[0].size for name, p in layer.parameters.items() if is_expert(name))
            # What waits in each of two threads (docs/memory.md).
            waiting = 2 * (-(-SIZES["intermediate_size"] // 64) * 96 * 1024 + 8192)
            assert 4 * largest <= one <= 4 * 4 * largest + waiting + 1000
        before, _ = context.memory()
        x, dy = inputs(T, H)
        layer.forward(x, tape=tape, **call, **divided)
        layer.backward(tape, dy, optimizer=optimizer)
        # The context keeps the larger scratch; a smaller one is given back first.
        assert context.memory()[1] - before == plan.total_bytes


# What is refused, and what is not


def taped(layer: libmoe.Layer) -> tuple[libmoe.Tape, Any]:
    x, dy = normal(9, H), normal(9, H, seed=1)
    tape = layer.tape()
    layer.forward(x, tape=tape)
    return tape, dy


def test_gradients_without_memory_are_named() -> None:
    layer = libmoe.Layer(**SIZES, unallocated="expert_gradients")
    tape, dy = taped(layer)
    with pytest.raises(
        libmoe.BadStateError, match=r"experts.up.weight has no memory for its gradient: bind it"
    ):
        layer.backward(tape, dy)
    with pytest.raises(libmoe.BadStateError, match=r"experts.down.bias: its gradient has no memory"):
        _ = layer.parameters["experts.down.bias"].grad
    optimizer = libmoe.AdamW(layer.parameters)
    with pytest.raises(libmoe.InvalidArgumentError, match="grad is None"):
        optimizer.step()
    with pytest.raises(libmoe.BadStateError, match="its gradient has no memory"):
        libmoe.clip_grad_norm(layer.parameters, 1.0)
    layer.zero_grad()
    assert not layer.parameters["router.weight"].grad.any()
    with pytest.raises(libmoe.InvalidArgumentError, match="'expert_gradients', but inference_only"):
        libmoe.Layer(**SIZES, unallocated="expert_gradients", inference_only=True)
    with pytest.raises(libmoe.BadStateError, match="an inference_only layer has no gradients"):
        libmoe.AdamW(libmoe.Layer(**SIZES, inference_only=True).parameters)


def test_bound_gradients_serve_a_plain_backward() -> None:
    layer, usual = libmoe.Layer(**SIZES, unallocated="expert_gradients"), libmoe.Layer(**SIZES)
    for name, values in layer.state_dict().items():
        if is_expert(name):
            layer.bind(name, values, np.zeros(values.shape, np.float32))
    for each in (layer, usual):
        tape, dy = taped(each)
        each.backward(tape, dy)
    for name, parameter in usual.parameters.items():
        np.testing.assert_array_equal(layer.parameters[name].grad, parameter.grad)


def test_optimizers_of_something_else_are_refused() -> None:
    layer, usual = libmoe.Layer(**SIZES, unallocated="expert_gradients"), libmoe.Layer(**SIZES)
    before = layer.state_dict()
    tape, dy = taped(layer)
    parameters = list(layer.parameters.values())
    own = libmoe.AdamW(parameters)

    def refuse(error: type[Exception], match: str, layer: libmoe.Layer = layer, **options: Any) -> None:
        with pytest.raises(error, match=match):
            layer.backward(tape, dy, **options)

    refuse(
        libmoe.InvalidArgumentError,
        "for 5 tensors, but the layer has 6",
        optimizer=libmoe.AdamW(parameters[:5]),
    )
    turned = libmoe.AdamW(parameters[::-1])
    refuse(libmoe.InvalidArgumentError, "its tensor 1 has .* but router.bias", optimizer=turned)
    half = [libmoe.Parameter(np.zeros(p.data.shape, np.uint16)) for p in parameters]
    refuse(
        libmoe.InvalidArgumentError,
        "dtype of its tensor 0 is not that of router.weight",
        optimizer=libmoe.SGD(half),
    )
    refuse(
        TypeError,
        "optimizer: expected a libmoe.Optimizer, got str; use one such as libmoe.AdamW",
        optimizer="adamw",
    )
    others = libmoe.AdamW(libmoe.Layer(**SIZES, unallocated="expert_gradients").parameters)
    refuse(libmoe.InvalidArgumentError, "its router.weight is not the router.weight here", optimizer=others)
    for factor in (-1.0, math.inf, math.nan, 1e-60):
        refuse(libmoe.InvalidArgumentError, "clip_factor", optimizer=own, clip_factor=factor)
    refuse(libmoe.InvalidArgumentError, "clip_factor = 0.5, but optimizer is None", clip_factor=0.5)
    tape, dy = taped(usual)
    match = "created without 'expert_gradients'"
    refuse(libmoe.BadStateError, match, usual, optimizer=libmoe.AdamW(usual.parameters))
    assert_all_same_bits(layer.state_dict(), before)
