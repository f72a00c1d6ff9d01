"""bfloat16: conversions against ml_dtypes, layers against an oracle that rounds as they do, optimisers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

import libmoe
import oracle
from arrays import normal
from comparison import gradients_of
from libmoe import from_bfloat16, to_bfloat16

H, I, E, K = 7, 11, 5, 2  # noqa: E741


def representable(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Float32 normal numbers that bfloat16 has too."""
    return from_bfloat16(to_bfloat16(normal(*shape, seed=seed)))


def make_layer(**options: Any) -> libmoe.Layer:
    return libmoe.Layer(H, I, E, K, **{"weight_dtype": "bf16", **options})


# ------------------------------------------------------------------------------------------------------------
# Conversions
# ------------------------------------------------------------------------------------------------------------


def test_every_bfloat16_becomes_the_same_number() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    expected = bits.view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(from_bfloat16(bits), expected.astype(np.float32))
    np.testing.assert_array_equal(from_bfloat16(expected), expected.astype(np.float32))
    numbers = bits[~np.isnan(expected.astype(np.float32))]
    np.testing.assert_array_equal(to_bfloat16(from_bfloat16(numbers)), numbers)


def test_float32_becomes_the_nearest_bfloat16() -> None:
    """Around every number that bfloat16 has, and around every tie between two of them."""
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << 16
    values = (upper | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).view(np.float32)
    found = to_bfloat16(values)
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    nan = np.isnan(values)
    np.testing.assert_array_equal(found[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(from_bfloat16(found[nan])).all()


def test_conversions_keep_the_shape_and_refuse_other_types() -> None:
    assert to_bfloat16(normal(2, 3, 4)).shape == (2, 3, 4)
    assert from_bfloat16(np.zeros((3, 0), np.uint16)).shape == (3, 0)
    with pytest.raises(TypeError, match=r"^values: expected float32, got float64"):
        to_bfloat16(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^bits: expected bfloat16 \(as uint16\), got float32"):
        from_bfloat16(np.zeros(3, np.float32))


# ------------------------------------------------------------------------------------------------------------
# The layer against the oracle
# ------------------------------------------------------------------------------------------------------------


def assert_near(actual: Mapping[str, ArrayLike], expected: Mapping[str, ArrayLike]) -> None:
    """The 2-norm of the differences is at most 1/2000 of that of the values.

    The oracle's sums differ from float32's by some 2^-22, so a few numbers in 10000 are rounded to the other
    side, and are then off by 2^-8 of themselves. To leave out any one of the roundings costs more than this.
    """
    assert actual.keys() == expected.keys()
    for name in expected:
        found, wanted = np.asarray(actual[name], np.float64), np.asarray(expected[name])
        error, size = np.linalg.norm(found - wanted), np.linalg.norm(wanted)
        assert error <= 5e-4 * size, f"{name}: off by {error:.3g} of {size:.3g}"


def in_float32(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    return {
        name: from_bfloat16(values) if values.dtype == np.uint16 else values for name, values in state.items()
    }


def compare(layer: libmoe.Layer, arguments: dict[str, Any], n_tokens: int) -> None:
    x, dy = normal(n_tokens, layer.hidden_size, seed=1), normal(n_tokens, layer.hidden_size, seed=2)
    tape = layer.tape()
    y = layer.forward(x, tape=tape).y
    dx = layer.backward(tape, dy)
    truth = oracle.forward(oracle.Settings.of(arguments), in_float32(layer.state_dict()), x)
    assert truth.routing.margin() > 1e-5, "choose another seed"
    d_x, gradients = oracle.backward(truth, dy)
    assert_near({"y": y} | gradients_of(layer, dx), {"y": truth.y, "x": d_x} | gradients)


CONTEXTS = [("native", "all"), ("native", "avx512"), ("native", "avx2"), ("reference", "all")]
CONTEXTS += [("openblas", "all"), ("auto", "base")]


@pytest.mark.parametrize(("matmul", "instructions"), CONTEXTS)
@pytest.mark.parametrize("expert_bias", [False, True])
@pytest.mark.parametrize("activation", oracle.ACTIVATIONS)
@pytest.mark.parametrize("expert_kind", ["mlp", "gated"])
def test_kinds(expert_kind: str, activation: str, expert_bias: bool, matmul: Any, instructions: Any) -> None:
    arguments: dict[str, Any] = {"hidden_size": 37, "intermediate_size": 75, "n_experts": E, "top_k": K}
    arguments |= {"expert_kind": expert_kind, "activation": activation, "weight_dtype": "bf16"}
    with libmoe.Context(n_threads=2, matmul=matmul, instructions=instructions) as context:
        compare(libmoe.Layer(**arguments, expert_bias=expert_bias, context=context), arguments, 61)


@pytest.mark.parametrize(("matmul", "instructions"), CONTEXTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_tokens", [1, 61])
def test_linear_experts(n_tokens: int, bias: bool, matmul: Any, instructions: Any) -> None:
    arguments: dict[str, Any] = {"hidden_size": 37, "intermediate_size": 0, "n_experts": E, "top_k": K}
    arguments |= {"expert_kind": "linear", "weight_dtype": "bf16"}
    with libmoe.Context(n_threads=2, matmul=matmul, instructions=instructions) as context:
        compare(libmoe.Layer(**arguments, expert_bias=bias, context=context), arguments, n_tokens)


@pytest.mark.parametrize(("matmul", "instructions"), CONTEXTS)
@pytest.mark.parametrize("gpt_oss", [True, False], ids=["gpt-oss", "limit"])
def test_clamps(gpt_oss: bool, matmul: Any, instructions: Any) -> None:
    arguments: dict[str, Any] = {"hidden_size": 37, "intermediate_size": 75, "n_experts": E, "top_k": K}
    arguments |= {"expert_kind": "gated", "activation": "silu", "glu_limit": 0.4, "weight_dtype": "bf16"}
    if gpt_oss:
        arguments |= {"glu_alpha": 1.702, "glu_offset": 1.0}
    with libmoe.Context(n_threads=2, matmul=matmul, instructions=instructions) as context:
        compare(libmoe.Layer(**arguments, expert_bias=True, context=context), arguments, 61)


@pytest.mark.parametrize("expert_kind", ["mlp", "gated"])
@pytest.mark.parametrize(
    ("n_tokens", "sizes"),
    [
        pytest.param(1, (7, 11, 5, 2), id="one token"),
        pytest.param(37, (9, 13, 1, 1), id="one expert"),
        pytest.param(5, (9, 13, 31, 2), id="experts without tokens"),
        pytest.param(513, (65, 129, 6, 3), id="many tokens"),
        pytest.param(30, (1061, 1037, 2, 1), id="more than one piece of weights"),
    ],
)
def test_sizes(expert_kind: str, n_tokens: int, sizes: tuple[int, int, int, int]) -> None:
    names = ("hidden_size", "intermediate_size", "n_experts", "top_k")
    arguments: dict[str, Any] = dict(zip(names, sizes))  # noqa: B905
    arguments |= {"expert_kind": expert_kind, "router_normalize": False, "weight_dtype": "bf16"}
    compare(libmoe.Layer(**arguments), arguments, n_tokens)


# ------------------------------------------------------------------------------------------------------------
# Arrays
# ------------------------------------------------------------------------------------------------------------


def test_the_experts_matrices_are_bfloat16() -> None:
    wide = make_layer(weight_dtype="f32").parameters
    for name, parameter in make_layer().parameters.items():
        matrix = parameter.data.ndim == 3
        assert parameter.data.dtype == (np.uint16 if matrix else np.float32)
        assert parameter.grad.dtype == np.float32
        expected = to_bfloat16(wide[name].data) if matrix else wide[name].data
        np.testing.assert_array_equal(parameter.data, expected)


def test_tokens_in_bfloat16() -> None:
    """The same as in float32, rounded; in either of the two array types, which comes back as it went in."""
    single, half = make_layer(), make_layer(io_dtype="bf16")
    x, dy = representable(2, 3, H, seed=1), representable(2, 3, H, seed=2)
    tape = single.tape()
    y = single.forward(x, tape=tape).y
    dx = single.backward(tape, dy)
    assert dx is not None
    for dtype in (np.uint16, ml_dtypes.bfloat16):
        tape = half.tape()
        output = half.forward(to_bfloat16(x).view(dtype), tape=tape)
        gradient = half.backward(tape, to_bfloat16(dy).view(dtype))
        assert gradient is not None
        assert output.y.dtype == gradient.dtype == dtype
        np.testing.assert_array_equal(output.y.view(np.uint16), to_bfloat16(y))
        np.testing.assert_array_equal(gradient.view(np.uint16), to_bfloat16(dx))


def test_bind_uses_the_callers_arrays() -> None:
    for dtype in (np.uint16, ml_dtypes.bfloat16):
        layer = make_layer(expert_bias=False)
        x = normal(4, H)
        y = layer(x)
        data = layer.parameters["experts.down.weight"].data.copy().view(dtype)
        grad = np.zeros(data.shape, np.float32)
        layer.bind("experts.down.weight", data, grad)
        np.testing.assert_array_equal(layer(x), y)
        tape = layer.tape()
        layer.forward(x, tape=tape)
        layer.backward(tape, x)
        assert grad.any()
        data.view(np.uint16)[...] = 0
        assert not layer(x).any()


def test_state_dict_round_trip(tmp_path: Path) -> None:
    layer, other = make_layer(seed=1), make_layer(seed=2)
    x = normal(4, H)
    assert not np.array_equal(layer(x), other(x))
    np.savez(tmp_path / "weights.npz", **layer.state_dict())  # type: ignore[arg-type, unused-ignore]
    with np.load(tmp_path / "weights.npz") as state:
        other.load_state_dict(state)
    np.testing.assert_array_equal(layer(x), other(x))
    typed = {
        name: values.view(ml_dtypes.bfloat16) if values.dtype == np.uint16 else values
        for name, values in layer.state_dict().items()
    }
    another = make_layer(seed=3)
    another.load_state_dict(typed)
    np.testing.assert_array_equal(layer(x), another(x))


def test_prepared_for_inference() -> None:
    layer, wide = make_layer(), make_layer(weight_dtype="f32")
    x = normal(9, H)
    y = layer(x)
    layer.prepare("bf16")
    np.testing.assert_array_equal(layer(x), y)
    with pytest.raises(libmoe.InvalidArgumentError, match="prepared = 'f32'"):
        layer.prepare("f32")
    wide.prepare("bf16")
    np.testing.assert_array_equal(wide(x), y)
    with pytest.raises(libmoe.BadStateError, match="tape"):
        wide.forward(x, tape=wide.tape())


# ------------------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [libmoe.AdamW, libmoe.SGD])
@pytest.mark.parametrize("dtype", [np.uint16, ml_dtypes.bfloat16])
def test_parameters_are_the_rounded_float32_ones(make: Callable[..., Any], dtype: type) -> None:
    start = representable(3, 5)
    wide, half = libmoe.Parameter(start.copy()), libmoe.Parameter(to_bfloat16(start).view(dtype))
    optimizers = [make([p], learning_rate=1e-4, weight_decay=0.1) for p in (wide, half)]
    for step in range(50):
        for parameter, optimizer in zip((wide, half), optimizers):  # noqa: B905
            parameter.grad[...] = normal(3, 5, seed=step)
            optimizer.step()
        np.testing.assert_array_equal(half.data.view(np.uint16), to_bfloat16(wide.data))


def test_a_layer_learns() -> None:
    """To negate, in steps that bfloat16 mostly could not show one by one."""
    layer = libmoe.Layer(4, 16, 3, 2, weight_dtype="bf16", io_dtype="bf16", seed=1)
    optimizer = libmoe.AdamW(layer.parameters, learning_rate=2e-3, weight_decay=0.0)
    tape = layer.tape()
    losses = []
    for step in range(600):
        x = to_bfloat16(normal(64, 4, seed=step))
        output = layer.forward(x, tape=tape, training=True, step=step)
        error = from_bfloat16(output.y) + from_bfloat16(x)
        losses.append(float((error**2).mean()))
        layer.backward(tape, to_bfloat16(error * np.float32(2 / error.size)), need_dx=False)
        optimizer.step()
        layer.zero_grad()
    assert np.mean(losses[-10:]) < 0.1 * losses[0]


# ------------------------------------------------------------------------------------------------------------
# Refusals
# ------------------------------------------------------------------------------------------------------------


def test_wrong_types() -> None:
    half, wide = make_layer(io_dtype="bf16"), make_layer(weight_dtype="f32")
    x, words = normal(3, H), to_bfloat16(normal(3, H))
    tape = half.tape()
    half.forward(words, tape=tape)
    matrix = normal(E, I, H)
    state = half.state_dict()
    want = "expected bfloat16 (as uint16), got float32; use libmoe.to_bfloat16"
    single = "expected float32, got "
    calls: dict[str, Callable[[], object]] = {
        f"x: {want}(x)": lambda: half(x),
        f"out: {want}(out)": lambda: half.forward(words, out=x),
        f"dy: {want}(dy)": lambda: half.backward(tape, x),
        f"out: {want}": lambda: half.backward(tape, words, out=x),
        f"x: {single}uint16": lambda: wide(words),
        f"data: {want}(data)": lambda: half.bind("experts.up.weight", matrix),
        f"data: {single}uint16": lambda: wide.bind("experts.up.weight", to_bfloat16(matrix)),
        f"grad: {single}uint16": lambda: libmoe.Parameter(words, words),  # type: ignore[arg-type]
        f"state['experts.up.weight']: {want}": lambda: half.load_state_dict(
            {**state, "experts.up.weight": matrix}
        ),
    }
    for text, call in calls.items():
        with pytest.raises(TypeError, match="^" + re.escape(text)):
            call()
    for name in ("weight_dtype", "io_dtype"):
        with pytest.raises(libmoe.InvalidArgumentError, match=f"{name} = 'f64'; choose one of 'f32', 'bf16'"):
            make_layer(**{name: "f64"})
