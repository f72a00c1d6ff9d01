"""Weights of few bits: the weights and the products of their definition, to the last bit."""

from __future__ import annotations

from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal
from oracle.low_bits import integer_product, packed, unpacked

WEIGHT_ONLY = ["int8", "int4", "int4_g64", "int4_g128"]
INTEGERS = [f"{form}_a8" for form in WEIGHT_ONLY]
CONTEXTS = [
    ("native", "all"),
    ("native", "avx512"),
    ("native", "avx2"),
    ("reference", "all"),
    ("openblas", "all"),
    ("auto", "base"),
]
# No multiples of 32, of several scales in each form.
H, I, E = 301, 75, 3  # noqa: E741


def every_expert(n_tokens: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Choices by which each token has all experts, in turn, with the weight 1."""
    return np.tile(np.arange(E, dtype=np.int32), (n_tokens, 1)), np.ones((n_tokens, E), np.float32)


def outputs(
    x: NDArray[np.float32], weights: libmoe.ExpertWeights, form: Any, context: Any, **options: Any
) -> NDArray[np.float32]:
    """What each expert puts out, [T, E, H], by packed weights alone."""
    indices, ones = every_expert(len(x))
    with libmoe.experts_prepare(weights, form, context=context) as prepared:
        found: NDArray[np.float32] = libmoe.experts_forward(
            x,
            indices,
            ones,
            weights.without_matrices(),
            prepared=prepared,
            rows=True,
            context=context,
            **options,
        ).rows
    return found


def assert_same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_array_equal(
        np.ascontiguousarray(found).view(np.uint32), np.ascontiguousarray(expected).view(np.uint32)
    )


# ------------------------------------------------------------------------------------------------------------
# Weights
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instructions", ["all", "base"])
@pytest.mark.parametrize("stored", ["f32", "bf16", "f16", "transposed"])
@pytest.mark.parametrize("form", WEIGHT_ONLY)
def test_weights(form: Any, stored: str, instructions: Any) -> None:
    """The products with the rows of the unit matrix are the weights themselves."""
    values = normal(E, H, H, seed=1)
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
        found = outputs(np.eye(H, dtype=np.float32), weights, form, context)
    np.testing.assert_array_equal(found.transpose(1, 2, 0), unpacked(values, form))


@pytest.mark.parametrize(
    ("form", "kind"),
    [("int8", gguf.GGMLQuantizationType.Q8_0), ("int4", gguf.GGMLQuantizationType.Q4_0)],
)
def test_weights_are_those_of_gguf(form: Any, kind: Any) -> None:
    size = 320
    values = normal(E, size, size, seed=2) * np.float32(0.02)
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    with libmoe.Context() as context:
        found = outputs(
            np.eye(size, dtype=np.float32), libmoe.ExpertWeights(down=values, kind="linear"), form, context
        )
    np.testing.assert_array_equal(found.transpose(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("form", "most"), [("int8", 0.0055), ("int4", 0.087), ("int4_g64", 0.098), ("int4_g128", 0.108)]
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


# ------------------------------------------------------------------------------------------------------------
# Integers times integers
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("matmul", "instructions"), CONTEXTS)
@pytest.mark.parametrize("form", INTEGERS)
def test_sums_of_integers(form: Any, matmul: Any, instructions: Any) -> None:
    """An MLP's two products, whatever multiplies."""
    up, down = normal(E, I, H, seed=4), normal(E, H, I, seed=5)
    up_bias, down_bias = normal(E, I, seed=6), normal(E, H, seed=7)
    weights = libmoe.ExpertWeights(up=up, down=down, up_bias=up_bias, down_bias=down_bias)
    x = normal(43, H, seed=8) * np.float32(3)
    x[1] = 0
    x[2, :40] = 1e-39  # a step too small to divide by
    x[3] *= np.float32(1e-30)
    expected = np.empty((len(x), E, H), np.float32)
    for e in range(E):
        inner = np.maximum(integer_product(x, up[e], form, up_bias[e]), np.float32(0))
        expected[:, e] = integer_product(inner, down[e], form, down_bias[e])
    with libmoe.Context(2, matmul, instructions=instructions) as context:
        found = outputs(x, weights, form, context, activation="relu")
        assert_same_bits(found, expected)
        for rows in (slice(0, 1), slice(5, 8), slice(20, 43)):
            assert_same_bits(outputs(x[rows], weights, form, context, activation="relu"), expected[rows])


@pytest.mark.parametrize("form", INTEGERS)
def test_gated_experts(form: Any) -> None:
    """Beside float64 sums of the kept weights: what the tokens' integers leave out is under a hundredth."""
    gate_up, down = normal(E, 2 * I, H, seed=9), normal(E, H, I, seed=10)
    x = normal(50, H, seed=11)
    kept_up, kept = unpacked(gate_up, form).astype(np.float64), unpacked(down, form).astype(np.float64)
    inner = np.einsum("th,eih->tei", x.astype(np.float64), kept_up)
    gate, up = inner[..., :I], inner[..., I:]
    expected = np.einsum("tei,ehi->teh", gate / (1 + np.exp(-gate)) * up, kept)
    with libmoe.Context() as context:
        found = outputs(x, libmoe.ExpertWeights(gate_up=gate_up, down=down), form, context)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0.002 < error < 0.01


def test_threads_and_calls() -> None:
    """A token's bits are its own: threads, chunks of a call and other tokens change none."""
    x = normal(700, 64, seed=12)
    found = []
    for n_threads, limit in ((1, 0), (2, 0), (2, 3 << 20)):
        with libmoe.Context(n_threads, memory_limit=limit) as context:
            layer = libmoe.Layer(64, 96, 8, 2, expert_kind="gated", activation="silu", context=context)
            layer.prepare("int8_a8")
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
        with pytest.raises(libmoe.BadStateError, match="tape: weights prepared as 'int8' are for"):
            layer.forward(x, tape=layer.tape())
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


def test_bytes() -> None:
    """As many as the header says."""
    weights = libmoe.ExpertWeights(up=normal(E, 64, 96, seed=15), down=normal(E, 96, 64, seed=16))
    n_weights = E * 2 * 64 * 96
    for form, bits in (("int8", 8.5), ("int8_a8", 8.5), ("int4_g128", 4.5)):
        with libmoe.experts_prepare(weights, form) as prepared:  # type: ignore[arg-type]
            assert 0 <= prepared.nbytes - n_weights * bits / 8 < 2048


def test_numbers_of_a_block() -> None:
    """Hand-computed: d = 254 / 127 = 2 and -8 / -8 = 1."""
    values = np.zeros((1, 32), np.float32)
    values[0, :5] = [254, 3, -3, 0.9, -5]
    assert packed(values, "int8")[1][0, 0, :5].tolist() == [127, 2, -2, 0, -3]
    values[0, :5] = [-8, 7, 7.6, 0.5, -0.5]
    step, numbers = packed(values, "int4")
    assert step[0, 0] == 1 and numbers[0, 0, :5].tolist() == [-8, 7, 7, 1, 0]
    weights = libmoe.ExpertWeights(
        down=np.concatenate([values, np.zeros((31, 32), np.float32)])[None], kind="linear"
    )
    indices, ones = np.zeros((32, 1), np.int32), np.ones((32, 1), np.float32)
    with libmoe.experts_prepare(weights, "int4") as prepared:
        y = libmoe.experts_forward(np.eye(32, dtype=np.float32), indices, ones, weights, prepared=prepared).y
    assert y[:5, 0].tolist() == [-8, 7, 7, 1, 0]
