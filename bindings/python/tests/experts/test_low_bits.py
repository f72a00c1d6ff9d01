"""Weights of few bits: the weights and the products of their definition, to the last bit."""

from __future__ import annotations

from functools import cache
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal
from comparison import assert_same_bits
from oracle.low_bits import FORMS, Kept, integer_product, kept, unpacked
from packed_experts import H, I, every_expert, outputs, sizes

WEIGHT_ONLY = list(FORMS)
INTEGERS = [f"{form}_a8" for form in WEIGHT_ONLY if form != "fp8"]
CONTEXTS = [
    ("native", "all"),
    ("native", "avx512"),
    ("native", "avx2"),
    ("reference", "all"),
    ("openblas", "all"),
    ("auto", "base"),
]
E = 3


# ------------------------------------------------------------------------------------------------------------
# Weights
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "instructions"),
    [("f32", "all"), ("f32", "base"), ("bf16", "all"), ("f16", "base"), ("transposed", "all")],
)
@pytest.mark.parametrize("form", WEIGHT_ONLY)
def test_weights(form: Any, stored: str, instructions: Any) -> None:
    """The products with the rows of the unit matrix are the weights themselves."""
    size, _ = sizes(form)
    values = normal(2, size, size, seed=1)
    values[0, 0, :64] = 0  # whole scales of 0
    values[1, 5] *= 1e-6  # scales that float16 has no normal number for
    given: Any = values
    if stored == "bf16":
        given = values.astype(ml_dtypes.bfloat16)
        values, given = given.astype(np.float32), given.view(np.uint16)
    elif stored == "f16":
        given = values.astype(np.float16)
        values = given.astype(np.float32)
    elif stored == "transposed":
        given = np.ascontiguousarray(values.transpose(0, 2, 1))
    weights = libmoe.ExpertWeights(down=given, kind="linear", transposed=stored == "transposed")
    with libmoe.Context(instructions=instructions) as context:
        found = outputs(np.eye(size, dtype=np.float32), weights, form, context)
    np.testing.assert_array_equal(found.transpose(1, 2, 0), unpacked(values, form))


def kept_weights(values: NDArray[np.float32], form: Any) -> NDArray[np.float32]:
    """The weights that the library keeps of matrices [E, n, n]."""
    with libmoe.Context() as context:
        weights = libmoe.ExpertWeights(down=values, kind="linear")
        return outputs(np.eye(values.shape[1], dtype=np.float32), weights, form, context).transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("int8", gguf.GGMLQuantizationType.Q8_0),
        ("int4", gguf.GGMLQuantizationType.Q4_0),
        ("mxfp4", gguf.GGMLQuantizationType.MXFP4),
    ],
)
def test_weights_are_those_of_gguf(form: Any, kind: Any) -> None:
    values = normal(E, 320, 320, seed=2) * np.float32(0.02)
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    np.testing.assert_array_equal(kept_weights(values, form), expected)


def two_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values.astype(np.float16)).view(np.uint8)


def blocks_of_q4_k(own: Kept) -> NDArray[np.uint8]:
    d, d_min, s, m, q = own.stored
    s, m, q = s.astype(np.uint8), m.astype(np.uint8), q.astype(np.uint8)
    first = [s[..., :4] | s[..., 4:] >> 4 << 6, m[..., :4] | m[..., 4:] >> 4 << 6]
    halves = q.reshape(*q.shape[:-1], 4, 2, 32)
    numbers = (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(*q.shape[:-1], 128)
    scales = [*first, (s[..., 4:] & 15) | m[..., 4:] << 4]
    return np.concatenate([two_bytes(d), two_bytes(d_min), *scales, numbers], axis=-1)


def blocks_of_q6_k(own: Kept) -> NDArray[np.uint8]:
    d, s, q = own.stored
    q = (q + 32).astype(np.uint8).reshape(*q.shape[:-1], 2, 4, 32)
    low = (q[..., :2, :] & 15) | (q[..., 2:, :] & 15) << 4
    high = q >> 4
    high = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    parts = [low.reshape(*d.shape[:-1], 128), high.reshape(*d.shape[:-1], 64)]
    return np.concatenate([*parts, s.astype(np.int8).view(np.uint8), two_bytes(d)], axis=-1)


@pytest.mark.parametrize(
    ("form", "kind", "blocks"),
    [
        ("q4_k", gguf.GGMLQuantizationType.Q4_K, blocks_of_q4_k),
        ("q6_k", gguf.GGMLQuantizationType.Q6_K, blocks_of_q6_k),
    ],
)
def test_weights_are_what_gguf_makes_of_blocks(form: Any, kind: Any, blocks: Any) -> None:
    """gguf writes no such blocks: they are put together here, from the definition's numbers."""
    values = normal(1, 512, 512, seed=2) * np.float32(0.02)
    own = blocks(kept(values[0], form))
    expected = gguf.quants.dequantize(own.reshape(512, -1), kind)
    np.testing.assert_array_equal(kept_weights(values, form)[0], expected)


@pytest.mark.parametrize(
    ("form", "most"),
    [
        ("int8", 0.0055),
        ("int8_row", 0.0086),
        ("fp8", 0.027),
        ("q6_k", 0.0175),
        ("q4_k", 0.072),
        ("iq4_nl", 0.074),
        ("int4_zero", 0.081),
        ("int4_zero_g64", 0.092),
        ("int4_zero_g128", 0.102),
        ("int4", 0.087),
        ("int4_bf16", 0.087),
        ("int4_g64", 0.098),
        ("int4_g128", 0.108),
        ("nvfp4", 0.097),
        ("mxfp4", 0.117),
    ],
)
def test_errors_of_weights(form: Any, most: float) -> None:
    """As the page says, of normal weights; what is kept is not better than what it takes either."""
    values = normal(512, 1024, seed=3)
    error = np.linalg.norm(unpacked(values, form) - values) / np.linalg.norm(values)
    assert 0.9 * most < error < most


# ------------------------------------------------------------------------------------------------------------
# Weight only
# ------------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "gated, shared": {"expert_kind": "gated", "n_shared_experts": 1, "expert_bias": True},
    "linear": {"expert_kind": "linear", "intermediate_size": 0},
    "bf16": {"expert_kind": "gated", "weight_dtype": "bf16", "weight_on_input": True},
    "f16": {"expert_kind": "gated", "weight_dtype": "f16", "activation": "silu"},
}


@pytest.mark.parametrize(("matmul", "instructions"), CONTEXTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["int8", "int4_g64"])
def test_the_bits_of_a_layer_with_these_weights(form: Any, kind: str, matmul: Any, instructions: Any) -> None:
    sizes: dict[str, Any] = {"hidden_size": H, "intermediate_size": I, "n_experts": 5, "top_k": 2}
    arguments = {**sizes, **KINDS[kind]}
    with libmoe.Context(2, matmul, instructions=instructions) as context:
        layer = libmoe.Layer(**arguments, context=context)
        twin = libmoe.Layer(**{**arguments, "weight_dtype": "f32"}, context=context)
        for name, parameter in layer.parameters.items():
            values = parameter.data
            if values.dtype == np.uint16:
                values = values.view(ml_dtypes.bfloat16)
            values = values.astype(np.float32)
            if values.ndim == 3:
                values = unpacked(values, form)
            twin.parameters[name].data[...] = values
        layer.prepare(form)
        # One and two rows by blocks as they are, more by decoded ones; the rest of a tile.
        for n_tokens in (1, 4, 90):
            x = normal(n_tokens, H, seed=n_tokens)
            assert_same_bits(layer(x), twin(x))


@pytest.mark.parametrize("instructions", ["all", "base"])
@pytest.mark.parametrize("form", WEIGHT_ONLY)
def test_the_bits_in_every_form(form: Any, instructions: Any) -> None:
    """One row and two by blocks, more by decoded ones, at every edge."""
    h, i = sizes(form)
    up, down = normal(2, i, h, seed=17), normal(2, h, i, seed=18)
    weights = libmoe.ExpertWeights(up=up, down=down)
    twin = libmoe.ExpertWeights(up=unpacked(up, form), down=unpacked(down, form))
    with libmoe.Context(2, instructions=instructions) as context:
        for n_tokens in (1, 2, 5, 16):
            x = normal(n_tokens, h, seed=n_tokens)
            found = outputs(x, weights, form, context, activation="relu")
            call = (x, *every_expert(n_tokens, 2), twin)
            expected = libmoe.experts_forward(*call, rows=True, context=context, activation="relu").rows
            assert_same_bits(found, expected)


# ------------------------------------------------------------------------------------------------------------
# Integers times integers
# ------------------------------------------------------------------------------------------------------------


@cache
def products_of_integers(form: str) -> tuple[NDArray[np.float32], libmoe.ExpertWeights, NDArray[np.float32]]:
    """x, an MLP's weights, and by definition what each expert makes of it."""
    (h, i), e = sizes(form), 2
    up, down = normal(e, i, h, seed=4), normal(e, h, i, seed=5)
    up_bias, down_bias = normal(e, i, seed=6), normal(e, h, seed=7)
    weights = libmoe.ExpertWeights(up=up, down=down, up_bias=up_bias, down_bias=down_bias)
    x = normal(43, h, seed=8) * np.float32(3)
    x[1] = 0
    x[2, :40] = 1e-39  # a step too small to divide by
    x[3] *= np.float32(1e-30)
    expected = np.empty((len(x), e, h), np.float32)
    for n in range(e):
        inner = np.maximum(integer_product(x, up[n], form, up_bias[n]), np.float32(0))
        expected[:, n] = integer_product(inner, down[n], form, down_bias[n])
    return x, weights, expected


@pytest.mark.parametrize("form", INTEGERS)
@pytest.mark.parametrize(("matmul", "instructions"), CONTEXTS)
def test_sums_of_integers(form: Any, matmul: Any, instructions: Any) -> None:
    """An MLP's two products, whatever multiplies."""
    x, weights, expected = products_of_integers(form)
    with libmoe.Context(2, matmul, instructions=instructions) as context:
        found = outputs(x, weights, form, context, activation="relu")
        assert_same_bits(found, expected)
        for rows in (slice(0, 1), slice(5, 8), slice(20, 43)):
            assert_same_bits(outputs(x[rows], weights, form, context, activation="relu"), expected[rows])


@pytest.mark.parametrize("form", INTEGERS)
def test_gated_experts(form: Any) -> None:
    """Beside float64 sums of the kept weights: what the tokens' integers leave out is under a hundredth."""
    h, i = sizes(form)
    gate_up, down = normal(E, 2 * i, h, seed=9), normal(E, h, i, seed=10)
    x = normal(50, h, seed=11)
    # Gate and up are packed apart, and some forms' scales are for 32 outputs.
    parts = [unpacked(gate_up[:, :i], form), unpacked(gate_up[:, i:], form), unpacked(down, form)]
    kept_up, kept_down = np.concatenate(parts[:2], 1).astype(np.float64), parts[2].astype(np.float64)
    inner = np.einsum("th,eih->tei", x.astype(np.float64), kept_up)
    gate, up = inner[..., :i], inner[..., i:]
    expected = np.einsum("tei,ehi->teh", gate / (1 + np.exp(-gate)) * up, kept_down)
    with libmoe.Context() as context:
        found = outputs(x, libmoe.ExpertWeights(gate_up=gate_up, down=down), form, context)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    # Of whole rows the largest feature makes the step of all.
    assert 0.002 < error < (0.02 if form == "int8_row_a8" else 0.01)


@pytest.mark.parametrize("form", ["int8_a8", "mxfp4_a16", "fp8_a16"])
def test_threads_and_calls(form: Any) -> None:
    """A token's bits are its own: threads, chunks of a call and other tokens change none."""
    x = normal(700, 64, seed=12)
    found = []
    for n_threads, limit in ((1, 0), (2, 0), (2, 3 << 20)):
        with libmoe.Context(n_threads, memory_limit=limit) as context:
            layer = libmoe.Layer(64, 96, 8, 2, expert_kind="gated", activation="silu", context=context)
            layer.prepare(form)
            found.append(layer(x))
            if limit == 0:
                apart = [layer(x[t : t + 1]) for t in range(0, 700, 70)]
                assert_same_bits(np.concatenate(apart), found[-1][::70])
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


# ------------------------------------------------------------------------------------------------------------
# Around them
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["int8", "int4_g128_a8"])
def test_offloaded(form: Any, tmp_path: Any) -> None:
    """Slots hold the form; the bits are those of the layer in memory."""
    arguments: dict[str, Any] = {"expert_kind": "gated", "n_shared_experts": 1}
    layer = libmoe.Layer(40, 48, 12, 2, seed=4, **arguments)
    layer.save(tmp_path / "a", dtype="f32")
    away = libmoe.Layer(40, 48, 12, 2, seed=5, unallocated="expert_weights", **arguments)
    away.offload(tmp_path / "a", resident_limit=1 << 17)
    x = normal(300, 40, seed=13)
    layer.prepare(form)
    away.prepare(form)
    assert_same_bits(away(x), layer(x))


@pytest.mark.parametrize("matmul", ["native", "reference"])
def test_refusals(matmul: Any) -> None:
    with libmoe.Context(1, matmul) as context:
        layer = libmoe.Layer(64, 32, 3, 1, expert_bias=False, context=context)
        x = normal(8, 64, seed=14)
        layer.prepare("int8")
        before = layer(x)
        weight = layer.parameters["experts.down.weight"].data
        # The largest scale of float16 is 65504.
        for number in (np.nan, np.inf, 9e6):
            kept = weight[1, 3, 7]
            weight[1, 3, 7] = number
            with pytest.raises(libmoe.NotFiniteError, match=r"expert 1 .*\('int4_a8'\)"):
                layer.prepare("int4_a8")
            weight[1, 3, 7] = kept
            assert_same_bits(layer(x), before)
        weight *= 2
        with pytest.raises(libmoe.BadStateError, match="prepare the layer again"):
            layer(x)


@pytest.mark.parametrize("matmul", ["native", "reference"])
def test_sizes_that_blocks_do_not_divide(matmul: Any, tmp_path: Any) -> None:
    """Refused by name before anything is packed, by calls, layers, offloaded ones and models."""
    of_hidden = "q4_k.* keeps 256 inputs .* by hidden_size has 320"
    of_intermediate = "q6_k.* keeps 256 inputs .* by intermediate_size has 96"
    with libmoe.Context(1, matmul) as context:
        layer = libmoe.Layer(320, 256, 3, 1, context=context)
        with pytest.raises(ValueError, match=of_hidden):
            layer.prepare("q4_k")
        layer.save(tmp_path / "a", dtype="f32")
        away = libmoe.Layer(320, 256, 3, 1, unallocated="expert_weights", context=context)
        away.offload(tmp_path / "a", resident_limit=1 << 22)
        with pytest.raises(ValueError, match=of_hidden):
            away.prepare("q4_k_a8")
        weights = libmoe.ExpertWeights(up=normal(E, 96, 256, seed=19), down=normal(E, 256, 96, seed=20))
        with pytest.raises(ValueError, match=of_intermediate):
            libmoe.experts_prepare(weights, "q6_k", context=context)
        moe = {"n_experts": 2, "top_k": 1, "intermediate_size": 32}
        model = libmoe.Model(
            hidden_size=64, n_layers=1, n_heads=2, vocabulary_size=50, moe=moe, context=context
        )
        with pytest.raises(ValueError, match="q6_k.* keeps 256 inputs .* embed.weight has 64"):
            model.prepare("q6_k")


def test_rows_too_long_for_sums_of_integers() -> None:
    """127 * 127 * 2^17 is what an int32 holds, and no more rows of that."""
    form: Any = "int8_row_a8"
    x, most = np.ones((1, 1), np.float32), 2**17
    up, down = np.ones((1, most, 1), np.float32), np.ones((1, 1, most), np.float32)
    with libmoe.Context(1) as context:
        found = outputs(x, libmoe.ExpertWeights(up=up, down=down), form, context, activation="relu")
        expected = integer_product(integer_product(x, up[0], form), down[0], form)
        assert_same_bits(found[0], expected)
        longer = libmoe.ExpertWeights(
            up=np.ones((1, most + 1, 1), np.float32), down=np.ones((1, 1, most + 1), np.float32)
        )
        with pytest.raises(ValueError, match="int8_row_a8.* at most 131072 inputs .* has 131073"):
            libmoe.experts_prepare(longer, form, context=context)


BITS = {
    "int8": 8.5,
    "int8_a8": 8.5,
    "int4": 4.5,
    "int4_g64": 4.25,
    "int4_g128": 4.125,
    "mxfp4": 4.25,
    "iq4_nl": 4.5,
    "q4_k": 4.625,
    "q6_k": 6.5625,
    "int8_row": 8.125,
    "fp8": 8.125,
    "nvfp4_a8": 4.625,
    "int4_bf16": 4.5,
    "int4_zero": 5.25,
    "int4_zero_g64": 4.625,
    "int4_zero_g128": 4.3125,
}


@pytest.mark.parametrize("form", BITS)
def test_bytes(form: Any) -> None:
    """As many as the header says."""
    weights = libmoe.ExpertWeights(up=normal(E, 256, 512, seed=15), down=normal(E, 512, 256, seed=16))
    n_weights = E * 2 * 256 * 512
    with libmoe.experts_prepare(weights, form) as prepared:
        assert 0 <= prepared.nbytes - n_weights * BITS[form] / 8 < 2048


HAND_COMPUTED = [
    # d = 254 / 127 = 2
    ("int8", [254, 3, -3, 0.9, -5], [254, 4, -4, 0, -6]),
    ("int8_row", [254, 3, -3, 0.9, -5], [254, 4, -4, 0, -6]),
    # d = -8 / -8 = 1
    ("int4", [-8, 7, 7.6, 0.5, -0.5], [-8, 7, 7, 1, 0]),
    ("int4_bf16", [-8, 7, 7.6, 0.5, -0.5], [-8, 7, 7, 1, 0]),
    # 4 is 2^2, so d = 1: 2.5, 0.25 and -1.75 are ties, which the value nearer to 0 takes
    ("mxfp4", [4, 2.5, 0.25, -1.75, -3.4], [4, 2, 0, -1.5, -3]),
    # d = 7 / 7: z = 8, from -8 to 7 in 15 steps
    ("int4_zero", [7, -8, 2.4, -2.6, 0], [7, -8, 2, -3, 0]),
    # d = 448 / 448: three bits of fraction, the even one in a tie; the least number is 2^-9
    ("fp8", [448, 17, 19, -0.3, 0.002], [448, 16, 20, -0.3125, 0.001953125]),
    # f = 2688 / (6 448) = 1; 2688 / 6 = 448
    ("nvfp4", [2688, 1300, 100, -700, 1], [2688, 1344, 0, -672, 0]),
]


@pytest.mark.parametrize(("form", "values", "expected"), HAND_COMPUTED)
def test_numbers_of_a_block(form: Any, values: list[float], expected: list[float]) -> None:
    """Hand-computed."""
    given = np.zeros((1, 32, 32), np.float32)
    given[0, 0, :5] = values
    assert kept_weights(given, form)[0, 0, :5].tolist() == expected
