"""Attention and rotary positions against float64, and the same bits however they are computed."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal
from attention_calls import MASKS, Floats, Inputs, arrays, everything, options
from comparison import assert_close, assert_same_bits
from libmoe import blocks
from libmoe._native import abi
from libmoe._native.library import lib
from oracle.attention import Attention

RANDOM = np.random.default_rng(3)

# B, S, U, heads, key heads, D, and Dv where it is another
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 7, 7, 3, 3, 5),
    (1, 300, 300, 2, 1, 64),
    (2, 33, 300, 4, 2, 80),
    (2, 300, 33, 4, 1, 5),
    (3, 1, 129, 2, 2, 64),
    (2, 1, 70, 16, 2, 32),
    (1, 97, 257, 6, 3, 32),
    (2, 70, 290, 4, 2, 24, 16),
    (1, 3, 140, 2, 1, 5, 70),
    (1, 140, 140, 3, 1, 33, 1),
]


def check(shape: tuple[int, ...], given: dict[str, Any], inputs: Inputs | None = None) -> None:
    query, key, value, doutput = inputs or arrays(shape)
    found = everything((query, key, value, doutput), None, given)
    expected = Attention(query, key, value, given)
    none = np.isinf(expected.log_sums)
    np.testing.assert_array_equal(np.isinf(found["log_sums"]), none)
    assert_close("log_sums", found["log_sums"][~none], expected.log_sums[~none])
    assert_close("output", found["output"], expected.output)
    names = ("dquery", "dkey", "dvalue")
    for name, gradient in zip(names, expected.backward(doutput)):  # noqa: B905
        assert_close(name, found[name], gradient)
    if "sinks" in given:
        assert_close("dsinks", found["dsinks"], expected.d_sinks)
    np.testing.assert_array_equal(found["output"].transpose(0, 2, 1, 3)[none], 0)
    np.testing.assert_array_equal(found["dquery"].transpose(0, 2, 1, 3)[none], 0)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(shape: tuple[int, ...], mask: str) -> None:
    check(shape, options(mask, shape))


@pytest.mark.parametrize("mask", ["none", "all", "places"])
@pytest.mark.parametrize("shape", SHAPES[1:])  # with a single key gradients are 0 but for rounding
def test_dropout(shape: tuple[int, ...], mask: str) -> None:
    check(shape, {**options(mask, shape), "dropout": 0.3, "seed": 2**63 + 5, "step": 2**40 + 7})


def test_scale() -> None:
    check(SHAPES[1], {"scale": -0.7})


def test_large_scores() -> None:
    # Weights of 0 and of nearly 1, and sums that are scaled down by much from block to block.
    shape = (1, 40, 700, 2, 2, 16)
    query, key, value, doutput = arrays(shape)
    key *= np.linspace(1, 60, 700, dtype=np.float32)[:, None, None]
    check(shape, {}, (query, key, value, doutput))


SAME_BITS = [
    (2, 300, 300, 4, 2, 40),
    (1, 130, 530, 2, 1, 64),
    (2, 5, 9, 3, 3, 7),
    (1, 140, 270, 4, 2, 40, 72),
]


@pytest.mark.parametrize("mask", ["none", "all", "places"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_same_bits(mask: str, dropout: float) -> None:
    for shape in SAME_BITS:
        inputs = arrays(shape)
        given = {**options(mask, shape), "dropout": dropout, "seed": 1}
        ways: list[dict[str, Any]] = [{"n_threads": n} for n in (1, 2, 3, 7)]
        ways += [{"n_threads": 1, "instructions": word} for word in ("avx2", "avx512")]
        ways += [{"n_threads": n, "matmul": "reference"} for n in (1, 5)]
        ways += [{"n_threads": 1, "matmul": "reference", "instructions": "avx2"}]
        with libmoe.Context(n_threads=1) as context:
            expected = everything(inputs, context, given)
        for way in ways:
            with libmoe.Context(**way) as context:
                found = everything(inputs, context, given)
            for name, array in expected.items():
                assert_same_bits(found[name], array, f"{name} {way}")


def test_openblas_and_base() -> None:
    shape = (2, 150, 150, 4, 2, 40)
    inputs, given = arrays(shape), options("all", shape)
    expected = everything(inputs, None, given)
    ways: list[dict[str, Any]] = [{"matmul": "openblas"}, {"instructions": "base", "matmul": "openblas"}]
    for way in ways:
        with libmoe.Context(**way) as context:
            found = everything(inputs, context, given)
        for name, array in expected.items():
            finite = np.isfinite(array)
            assert_close(name, found[name][finite], array[finite])


@pytest.mark.parametrize("compute_dtype", ["f32", "bf16"])
def test_a_prefix_sees_what_the_whole_saw(compute_dtype: str) -> None:
    # One token at a time over what came before, as in generation: the bits of the whole.
    query, key, value, _ = arrays((1, 300, 300, 2, 2, 24))
    given: dict[str, Any] = {"causal": True, "compute_dtype": compute_dtype}
    whole, _ = blocks.attention(query, key, value, **given)
    for s in (0, 31, 32, 127, 128, 298, 299):
        one, _ = blocks.attention(
            query[:, s : s + 1].copy(), key[:, : s + 1].copy(), value[:, : s + 1].copy(), **given
        )
        np.testing.assert_array_equal(one[:, 0], whole[:, s])


def test_packed_projections() -> None:
    # Queries, keys and values, and their gradients, side by side in the rows of one array.
    b, s, heads, kv_heads, d = 2, 50, 4, 2, 24
    qkv = normal(b, s, heads + 2 * kv_heads, d, seed=6)
    query, key, value = np.split(qkv, [heads, heads + kv_heads], axis=2)
    dqkv = np.full_like(qkv, np.nan)
    dquery, dkey, dvalue = np.split(dqkv, [heads, heads + kv_heads], axis=2)
    room = np.zeros((b, s, heads + 1, d), np.float32)
    doutput = np.zeros_like(room)
    doutput[:, :, :heads] = normal(b, s, heads, d, seed=7)
    into = (dquery, dkey, dvalue)
    given = doutput[:, :, :heads]
    output, log_sums = blocks.attention(query, key, value, causal=True, out=room[:, :, :heads])
    blocks.attention_backward(query, key, value, output, log_sums, given, causal=True, into=into)
    tight = (query.copy(), key.copy(), value.copy(), given.copy())
    expected = everything(tight, None, {"causal": True})
    np.testing.assert_array_equal(output, expected["output"])
    np.testing.assert_array_equal(room[:, :, heads:], 0)
    for part, name in zip(into, ("dquery", "dkey", "dvalue")):  # noqa: B905
        np.testing.assert_array_equal(part, expected[name])


@pytest.mark.parametrize("shape", [(1, 6, 9, 2, 1, 4), (2, 6, 9, 2, 1, 4, 7)])
@pytest.mark.parametrize("mask", ["all", "near"])
def test_finite_differences(shape: tuple[int, ...], mask: str) -> None:
    query, key, value, doutput = arrays(shape)
    given = {**options(mask, shape), "dropout": 0.2, "seed": 4}
    sinks = given["sinks"] = np.array([0.5, -0.3], np.float32)
    found = everything((query, key, value, doutput), None, given)
    for array, name in ((query, "dquery"), (key, "dkey"), (value, "dvalue"), (sinks, "dsinks")):
        direction = RANDOM.standard_normal(array.shape).astype(np.float32)

        def loss(step: float, array: Floats = array, direction: Floats = direction) -> float:
            before = (query, key, value, sinks)
            moved = [a + np.float32(step) * direction if a is array else a for a in before]
            output, _ = blocks.attention(moved[0], moved[1], moved[2], **{**given, "sinks": moved[3]})
            return float((output.astype(np.float64) * doutput).sum())

        slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
        assert_close(name, slope, (found[name].astype(np.float64) * direction).sum(), 2e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite(value: float) -> None:
    query, key, values, _ = arrays((2, 40, 40, 3, 3, 8))
    query[1, 35, 2, 3] = value
    with pytest.raises(libmoe.NotFiniteError, match="sequence 1, head 2, query 35"):
        blocks.attention(query, key, values)


@pytest.mark.parametrize("compute_dtype", ["f32", "bf16"])
def test_hidden_keys_may_be_anything(compute_dtype: str) -> None:
    query, key, value, _ = arrays((1, 8, 8, 1, 1, 4))
    given: dict[str, Any] = {"valid_mask": np.arange(8)[None] < 5, "compute_dtype": compute_dtype}
    expected, _ = blocks.attention(query, key, value, **given)
    key[0, 5:] = np.nan
    value[0, 5:] = np.inf
    np.testing.assert_array_equal(blocks.attention(query, key, value, **given)[0], expected)


def test_memory_does_not_grow_with_the_length() -> None:
    peaks = []
    for length in (512, 2048, 16384):
        inputs = arrays((1, length, length, 1, 1, 8))
        with libmoe.Context(n_threads=2) as context:
            everything(inputs, context, {"causal": True, "dropout": 0.1})
            peaks.append(context.memory()[1])
    assert max(peaks) < 2e6
    assert peaks[1] == peaks[2]


# What is wrong, and what the message says.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"n_kv_heads": 3}, "n_kv_heads = 3 does not divide n_heads = 4"),
    "no sequences": ({"n_sequences": 0}, "n_sequences = 0 is below 1"),
    "no queries": ({"n_queries": 0}, "n_queries = 0 is below 1"),
    "keys": ({"n_keys": -1}, "n_keys = -1 is below 0"),
    "no heads": ({"n_heads": 0, "n_kv_heads": 0}, "n_heads = 0 is below 1"),
    "key heads": ({"n_kv_heads": 5}, "n_kv_heads = 5 exceeds 4"),
    "head size": ({"head_size": 0}, "head_size = 0 is below 1"),
    "value size": ({"value_size": -1}, "value_size = -1 is below 0"),
    "large values": ({"value_size": 2**21}, "value_size = 2097152 exceeds 1048576"),
    "value stride of wide values": (
        {"value_size": 9, "value_stride": 17},
        "value_stride = 17 is below the 18 floats of a token",
    ),
    "output stride of wide values": (
        {"value_size": 9, "output_stride": 35},
        "output_stride = 35 is below the 36 floats of a token",
    ),
    "window": ({"window": -1, "causal": 1}, "window = -1 is below 0"),
    "chunk": ({"chunk": -1, "causal": 1}, "chunk = -1 is below 0"),
    "window of all": ({"window": 4}, "window = 4 needs causal = True"),
    "chunk of all": ({"chunk": 4}, "chunk = 4 needs causal = True"),
    "sinks": ({"sinks": 2}, "sinks is not aligned to 4 bytes"),
    "large heads": ({"head_size": 2**21}, "head_size = 2097152 exceeds 1048576"),
    "query stride": ({"query_stride": 31}, "query_stride = 31 is below the 32 floats of a token"),
    "key stride": ({"key_stride": 15}, "key_stride = 15 is below the 16 floats of a token"),
    "value stride": ({"value_stride": -1}, "value_stride = -1 is below the 16 floats of a token"),
    "output stride": ({"output_stride": 5}, "output_stride = 5 is below the 32 floats of a token"),
    "huge stride": ({"query_stride": 2**62}, "query does not fit in 63 bits"),
    "scale": ({"scale": float("nan")}, "scale = nan is not finite"),
    "large scale": ({"scale": 1e39}, "scale = 1e39 is not finite"),
    "causal": ({"causal": 2}, "causal = 2 exceeds 1"),
    "compute_dtype": ({"compute_dtype": 2}, "compute_dtype = 'f16', which is for weights alone"),
    "dropout": ({"dropout": 1.0}, "dropout = 1 is not in [0, 1)"),
    "step": ({"step": 2**56}, "step = 72057594037927936 is not below 2^56"),
    "added mask": ({"added_mask": 2}, "added_mask is not aligned to 4 bytes"),
    "struct": ({"struct_size": 8}, "config: struct_size = 8, but 184 is expected"),
}


def gradients(*places: int) -> Any:
    """Return the struct of the backward's own arrays, in the order of its fields."""
    names = ("doutput", "dquery", "dkey", "dvalue")
    return ctypes.byref(abi.moe_attention_gradients(**dict(zip(names, places))))  # noqa: B905


@pytest.mark.parametrize("name", BAD)
def test_bad_configs(name: str) -> None:
    fields, message = BAD[name]
    config = abi.moe_attention_config(n_sequences=2, n_queries=3, n_heads=4, n_kv_heads=2, head_size=8)
    for field, value in fields.items():
        setattr(config, field, value)
    memory = [np.zeros(2 * 3 * 32, np.float32) for _ in range(10)]
    places = [array.ctypes.data for array in memory]
    handle = libmoe.default_context()._handle
    with pytest.raises(libmoe.InvalidArgumentError, match=re.escape(message)):
        lib.moe_attention_forward(handle, ctypes.byref(config), *places[:5])
    with pytest.raises(libmoe.InvalidArgumentError, match=re.escape(message)):
        lib.moe_attention_backward(handle, ctypes.byref(config), *places[:5], gradients(*places[5:9]))


def test_values_of_another_size() -> None:
    # A value's head wider than a key's is the same as narrower ones side by side, each with the same weights.
    query, key, value, _ = arrays((2, 30, 50, 4, 2, 8, 24))
    whole, sums = blocks.attention(query, key, value, causal=True)
    for part in range(3):
        of = np.s_[..., 8 * part : 8 * part + 8]
        narrow, same_sums = blocks.attention(query, key, value[of].copy(), causal=True)
        np.testing.assert_array_equal(whole[of], narrow)
        np.testing.assert_array_equal(sums, same_sums)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"value: expected shape \(2, 50, 2, 24\)"):
        blocks.attention(query, key, value[:, :, :1].copy())
    with pytest.raises(libmoe.InvalidArgumentError, match=r"out: expected shape \(2, 30, 4, 24\)"):
        blocks.attention(query, key, value, out=np.empty((2, 30, 4, 8), np.float32))
    with pytest.raises(libmoe.InvalidArgumentError, match=r"doutput: expected shape \(2, 30, 4, 24\)"):
        blocks.attention_backward(query, key, value, whole, sums, query)


@pytest.mark.parametrize("nothing", range(9))
def test_null(nothing: int) -> None:
    config = abi.moe_attention_config(n_sequences=1, n_queries=3, n_heads=1, head_size=8)
    memory = [np.ones(3 * 8, np.float32) for _ in range(9)]
    places = [array.ctypes.data for array in memory]
    handle = libmoe.default_context()._handle
    names = ["query", "key", "value", "output", "log_sums", "doutput", "dquery", "dkey", "dvalue"]
    places[nothing] = 0
    with pytest.raises(libmoe.InvalidArgumentError, match=f"^{names[nothing]} is None"):
        lib.moe_attention_backward(handle, ctypes.byref(config), *places[:5], gradients(*places[5:]))
    if nothing < 4:
        with pytest.raises(libmoe.InvalidArgumentError, match=f"^{names[nothing]} is None"):
            lib.moe_attention_forward(handle, ctypes.byref(config), *places[:5])


def test_arrays_that_overlap() -> None:
    query, key, value, doutput = arrays((1, 6, 6, 2, 2, 4))
    with pytest.raises(libmoe.InvalidArgumentError, match="output overlaps value"):
        blocks.attention(query, key, value, out=value)
    output, log_sums = blocks.attention(query, key, value)
    rows = np.zeros((1, 6, 3, 4), np.float32)
    with pytest.raises(libmoe.InvalidArgumentError, match="dquery overlaps query"):
        blocks.attention_backward(
            query, key, value, output, log_sums, doutput, into=(query, key.copy(), value.copy())
        )
    # Two heads each in rows of three.
    parts = rows[:, :, :2], rows[:, :, 1:]
    wide = np.zeros((1, 6, 3, 4), np.float32)
    with pytest.raises(libmoe.InvalidArgumentError, match="dvalue overlaps dkey"):
        blocks.attention_backward(
            query,
            wide[:, :, :2],
            wide.copy()[:, :, :2],
            output,
            log_sums,
            doutput,
            into=(query.copy(), *parts),
        )


# ---- rotary positions ----------------------------------------------------------


def rotated(x: Floats, positions: NDArray[np.int64], theta: float, sign: float = 1.0) -> NDArray[np.float64]:
    """transformers' apply_rotary_pos_emb, in float64: x cos + rotate_half(x) sin."""
    d = x.shape[-1]
    frequencies = theta ** (-np.arange(0, d, 2) / d)
    angle = positions[..., None] * frequencies  # [B,S,D/2]
    angle = np.concatenate([angle, angle], axis=-1)[:, :, None]
    x = x.astype(np.float64)
    half = np.concatenate([-x[..., d // 2 :], x[..., : d // 2]], axis=-1)
    return np.asarray(x * np.cos(angle) + sign * half * np.sin(angle))


@pytest.mark.parametrize("theta", [1.0, 10000.0, 1e6])
@pytest.mark.parametrize("head_size", [2, 64, 80, 6])
@pytest.mark.parametrize("length", [3, 200])
def test_rotation(theta: float, head_size: int, length: int) -> None:
    x = normal(2, length, 3, head_size)
    positions = np.broadcast_to(np.arange(length) + 11, (2, length))
    found = x.copy()
    blocks.rotate(found, first_position=11, theta=theta)
    assert_close("rotated", found, rotated(x, positions, theta), 2e-7)
    given = x.copy()
    blocks.rotate(given, positions=np.ascontiguousarray(positions), theta=theta)
    np.testing.assert_array_equal(given, found)
    blocks.rotate(found, first_position=11, theta=theta, inverse=True)
    assert_close("turned back", found, x, 4e-7)


def test_rotation_of_far_positions() -> None:
    positions = np.array([[0, 1, 63, 64, 4095, 131072, 2**24 + 1, 2**31 - 1]])
    x = normal(1, 8, 1, 16)
    found = x.copy()
    blocks.rotate(found, positions=positions)
    exact = rotated(x, positions, 10000.0)
    assert_close("to 2^17", found[:, :6], exact[:, :6], 2e-7)
    assert_close("far", found, exact, 1e-5)  # angles beyond 2^24 have few digits behind the point


def test_rotation_gives_the_same_bits() -> None:
    x = normal(2, 333, 3, 20)
    results = []
    ways: list[dict[str, Any]] = [{"n_threads": n} for n in (1, 2, 7)]
    ways += [{"n_threads": 1, "instructions": word} for word in ("avx2", "avx512")]
    for way in ways:
        with libmoe.Context(**way) as context:
            results.append(x.copy())
            blocks.rotate(results[-1], first_position=70, context=context)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    one = x[:, 200:201].copy()
    blocks.rotate(one, first_position=270)
    np.testing.assert_array_equal(one, results[0][:, 200:201])


def test_rotation_within_wider_rows() -> None:
    qkv = normal(2, 9, 6, 8)
    before = qkv.copy()
    blocks.rotate(qkv[:, :, :2])
    tight = before[:, :, :2].copy()
    blocks.rotate(tight)
    np.testing.assert_array_equal(qkv[:, :, :2], tight)
    np.testing.assert_array_equal(qkv[:, :, 2:], before[:, :, 2:])


ANGLES: list[dict[str, Any]] = [
    {"rotary_size": 6},
    {"rotary_size": 2, "theta": 500.0, "scale": -1.5},
    {"frequencies": np.array([1.0, -0.3, 2.5, 0.0, 1e-9])},
    {"rotary_size": 8, "frequencies": np.array([0.7, 0.01, 1e-3, 3.0]), "scale": 0.1 * np.log(40) + 1},
]


def turned(x: Floats, positions: NDArray[np.int64], given: dict[str, Any], sign: float = 1.0) -> Any:
    """What float64 has for the first numbers of each head; the others stay."""
    size: int = given.get("rotary_size") or x.shape[-1]
    frequencies = given.get("frequencies", given.get("theta", 1e4) ** (-np.arange(0, size, 2) / size))
    angle = (positions[..., None] * frequencies)[:, :, None]
    low, high = x[..., : size // 2].astype(np.float64), x[..., size // 2 : size].astype(np.float64)
    sine, cosine, scale = sign * np.sin(angle), np.cos(angle), given.get("scale", 1.0)
    parts = scale * (low * cosine - high * sine), scale * (high * cosine + low * sine), x[..., size:]
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize("given", ANGLES)
@pytest.mark.parametrize("length", [3, 150])
def test_rotation_by_given_angles(given: dict[str, Any], length: int) -> None:
    x = normal(2, length, 3, 10)
    positions = np.broadcast_to(np.arange(length) + 1000, (2, length))
    found = x.copy()
    blocks.rotate(found, first_position=1000, **given)
    assert_close("rotated", found, turned(x, positions, given), 3e-7)
    rest: int = given.get("rotary_size") or 10
    np.testing.assert_array_equal(found[..., rest:], x[..., rest:])
    blocks.rotate(found := x.copy(), first_position=1000, inverse=True, **given)
    assert_close("gradient", found, turned(x, positions, given, -1.0), 3e-7)


def test_rotation_of_the_last_numbers() -> None:
    # As multi-head latent attention has it: the first numbers of each head have no position.
    x = normal(2, 70, 3, 10)
    expected = x[..., 4:].copy()
    blocks.rotate(expected, first_position=5, theta=77.0)
    found = x.copy()
    blocks.rotate(found[..., 4:], first_position=5, theta=77.0)
    np.testing.assert_array_equal(found[..., 4:], expected)
    np.testing.assert_array_equal(found[..., :4], x[..., :4])
    odd = normal(1, 4, 2, 7)
    part = odd[..., 3:].copy()
    blocks.rotate(part)
    blocks.rotate(odd[..., 3:])
    np.testing.assert_array_equal(odd[..., 3:], part)


def test_rotation_by_large_frequencies() -> None:
    # Whole turns at every position: what a factor far above 1 comes to.
    x = normal(1, 40, 1, 4)
    found = x.copy()
    blocks.rotate(found, frequencies=np.array([2 * np.pi * 1000, -2 * np.pi * 100000]))
    assert_close("whole turns", found, x, 1e-6)


def test_bad_rotations() -> None:
    x = normal(1, 3, 2, 4)
    with pytest.raises(libmoe.InvalidArgumentError, match="head_size = 3 is odd"):
        blocks.rotate(normal(1, 3, 2, 3))
    with pytest.raises(libmoe.InvalidArgumentError, match="theta = 0.5"):
        blocks.rotate(x, theta=0.5)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"positions\[1\] = -1 is not in 0 ... 2147483647"):
        blocks.rotate(x, positions=np.array([[0, -1, 5]]))
    with pytest.raises(libmoe.InvalidArgumentError, match="first_position = -2 is below 0"):
        blocks.rotate(x, first_position=-2)
    with pytest.raises(libmoe.InvalidArgumentError, match="leads to position 2147483648"):
        blocks.rotate(x, first_position=2**31 - 2)
    frequencies = np.array([0.5, np.nan])
    with pytest.raises(libmoe.InvalidArgumentError, match=r"frequencies\[1\] = nan is not in -1048576"):
        blocks.rotate(x, frequencies=frequencies)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"frequencies\[0\] = 1e300 is not in -1048576"):
        blocks.rotate(x, frequencies=np.array([1e300, 0.0]))
    with pytest.raises(libmoe.InvalidArgumentError, match=r"frequencies: expected shape \(1,\)"):
        blocks.rotate(x, frequencies=frequencies, rotary_size=2)
    with pytest.raises(libmoe.InvalidArgumentError, match="rotary_size = 3 is odd"):
        blocks.rotate(x, rotary_size=3)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"rotary_size = 6 is not in 1 ... 4"):
        blocks.rotate(x, rotary_size=6)
    with pytest.raises(libmoe.InvalidArgumentError, match="scale = nan is not finite"):
        blocks.rotate(x, scale=np.nan)
    with pytest.raises(libmoe.InvalidArgumentError, match="scale = 1e39 is not finite in float32"):
        blocks.rotate(x, scale=1e39)
    with pytest.raises(libmoe.InvalidArgumentError, match="scale = 0 leaves nothing"):
        blocks.rotate(x, scale=0.0)
    config = abi.moe_rotary_config(n_tokens=3, n_heads=2, head_size=4, rotary_size=6, theta=1e4)
    with pytest.raises(libmoe.InvalidArgumentError, match="rotary_size = 6 exceeds 4"):
        lib.moe_rotate(libmoe.default_context()._handle, ctypes.byref(config), x.ctypes.data)
