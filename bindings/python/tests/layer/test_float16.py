"""float16 weights: conversions against numpy's, all else against float32 layers of the same values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal
from comparison import assert_all_same_bits, assert_same_bits
from libmoe import blocks

H, I, E, K = 37, 75, 5, 2  # noqa: E741
SIZES: dict[str, Any] = {"hidden_size": H, "intermediate_size": I, "n_experts": E, "top_k": K}
KINDS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "gated, shared": {
        "expert_kind": "gated",
        "n_shared_experts": 1,
        "expert_bias": True,
        "activation": "silu",
    },
    "linear": {"expert_kind": "linear", "intermediate_size": 0},
    "weight on input": {"weight_on_input": True, "dropout": 0.25},
    "more than one piece": {"hidden_size": 601, "intermediate_size": 517, "expert_kind": "gated"},
}
CONTEXTS = [("native", "all"), ("native", "avx512"), ("native", "avx2"), ("reference", "all")]
CONTEXTS += [("openblas", "all"), ("auto", "base")]


def twins(context: libmoe.Context | None = None, **options: Any) -> tuple[libmoe.Layer, libmoe.Layer]:
    """Two layers of the same values: with float16 weights, and with float32 ones."""
    arguments = {**SIZES, "balance_coef": 0.01, "context": context, **options}
    half, single = libmoe.Layer(**arguments, weight_dtype="f16"), libmoe.Layer(**arguments)
    for name, parameter in half.parameters.items():
        single.parameters[name].data[...] = parameter.data
    return half, single


def one_pass(layer: libmoe.Layer, n_tokens: int) -> dict[str, NDArray[Any]]:
    """Forward and backward: everything that comes of them."""
    x, dy = normal(n_tokens, layer.hidden_size, seed=1), normal(n_tokens, layer.hidden_size, seed=2)
    tape = layer.tape()
    y = layer.forward(x, tape=tape, training=True, step=3).y
    dx = layer.backward(tape, dy, d_aux_loss=0.7)
    assert dx is not None
    gradients = {name: parameter.grad.copy() for name, parameter in layer.parameters.items()}
    return {"y": y, "dx": dx, "untaped": layer(x), **gradients}


# ------------------------------------------------------------------------------------------------------------
# Conversions
# ------------------------------------------------------------------------------------------------------------

INSTRUCTIONS = ["all", "avx512", "avx2", "base"]


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_float16_becomes_the_same_number(instructions: Any, tmp_path: Path) -> None:
    """All 65,536; a NaN keeps its payload, and is quiet afterwards."""
    bits = np.arange(2**16, dtype=np.uint16)
    # Of an odd length, so that the last ones are converted one by one.
    with libmoe.Context(instructions=instructions) as context:
        layer = libmoe.Layer(257, 255, 2, 1, weight_dtype="f16", expert_bias=False, context=context)
        data = layer.parameters["experts.up.weight"].data.reshape(-1)
        data.view(np.uint16)[...] = np.resize(bits, data.size)
        layer.save(tmp_path / "wide.safetensors", dtype="f32")
        found = libmoe.Checkpoint(tmp_path / "wide.safetensors")["experts.up.weight"].reshape(-1)
    expected = np.resize(bits, data.size).view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    assert_same_bits(found[~nan], expected[~nan])
    halves = data.view(np.uint16)[nan].astype(np.uint32)
    quiet = (halves & 0x8000) << 16 | 0x7FC00000 | (halves & 0x3FF) << 13
    np.testing.assert_array_equal(found[nan].view(np.uint32), quiet)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_float32_becomes_the_nearest_float16(instructions: Any, tmp_path: Path) -> None:
    """Around every number that float16 has, around every tie between two of them, and beyond the last."""
    numbers = np.unique(np.abs(np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)))
    numbers = numbers[np.isfinite(numbers)]
    ties = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
    ends = [65504, 65519, 65520, 65536, 1e38, np.inf, 2**-24, 2**-25, 2**-26, 2**-149, 1e-40]
    bits = np.concatenate([numbers, ties, np.array(ends, np.float32)]).view(np.uint32)
    bits = np.concatenate([bits, bits + 1, np.maximum(bits, 1) - 1])
    bits = np.concatenate(
        [bits, bits | 0x80000000, np.array([0x7FC00000, 0xFFC12345, 0x7F800001], np.uint32)]
    )
    with libmoe.Context(instructions=instructions) as context:
        layer = libmoe.Layer(641, 643, 1, 1, expert_bias=False, context=context)
        values = layer.parameters["experts.up.weight"].data.reshape(-1)
        assert bits.size <= values.size
        values[...] = np.resize(bits, values.size).view(np.float32)
        layer.save(tmp_path / "narrow.safetensors", dtype="f16")
        checkpoint = libmoe.Checkpoint(tmp_path / "narrow.safetensors")
        assert checkpoint.dtype("experts.up.weight") == "f16"
        found = checkpoint["experts.up.weight"].reshape(-1)
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    nan = np.isnan(values)
    np.testing.assert_array_equal(found[~nan].view(np.uint16), expected[~nan].view(np.uint16))
    assert np.isnan(found[nan]).all()


# ------------------------------------------------------------------------------------------------------------
# The layer against the float32 one
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("matmul", "instructions"), CONTEXTS)
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_float32(kind: str, n_threads: int, matmul: Any, instructions: Any) -> None:
    with libmoe.Context(n_threads=n_threads, matmul=matmul, instructions=instructions) as context:
        half, single = twins(context, **KINDS[kind])
        # Few tokens, of which each expert has one or two; and many.
        for n_tokens in (1, 3, 161):
            assert_all_same_bits(one_pass(half, n_tokens), one_pass(single, n_tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_prepared_the_bits_stay_the_same(kind: str) -> None:
    half, single = twins(**KINDS[kind])
    expected = one_pass(single, 41)
    half.prepare("f32")
    assert_all_same_bits(one_pass(half, 41), expected)
    # Rounded further: as a layer of these weights in bfloat16.
    half.prepare("bf16")
    single.prepare("bf16")
    x = normal(41, half.hidden_size, seed=1)
    np.testing.assert_array_equal(half(x), single(x))
    with pytest.raises(libmoe.BadStateError, match="tape"):
        half.forward(x, tape=half.tape())


def test_a_change_after_prepare_is_seen() -> None:
    half, _ = twins()
    half.prepare("f32")
    half.parameters["experts.up.weight"].data[:, 0, 0] *= np.float16(2)
    with pytest.raises(libmoe.BadStateError, match="prepare the layer again"):
        half(normal(9, H))


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("matmul", "instructions"), CONTEXTS)
def test_a_matrix_of_a_block(matmul: Any, instructions: Any, n_threads: int) -> None:
    x, dy = normal(70, 45, seed=1), normal(70, 83, seed=2)
    half = normal(83, 45).astype(np.float16)
    single = half.astype(np.float32)
    with libmoe.Context(n_threads=n_threads, matmul=matmul, instructions=instructions) as context:
        for n in (1, 70):
            y = [blocks.linear(x[:n], weight, context=context) for weight in (half, single)]
            np.testing.assert_array_equal(y[0], y[1])
            gradients = [
                blocks.linear_backward(x[:n], weight, dy[:n], context=context) for weight in (half, single)
            ]
            for found, expected in zip(*gradients):  # noqa: B905
                np.testing.assert_array_equal(found, expected)


# ------------------------------------------------------------------------------------------------------------
# Arrays and files
# ------------------------------------------------------------------------------------------------------------


def test_the_experts_matrices_are_float16() -> None:
    """Initial values are those of a float32 layer, rounded."""
    half, single = libmoe.Layer(**SIZES, weight_dtype="f16", seed=3), libmoe.Layer(**SIZES, seed=3)
    for name, parameter in half.parameters.items():
        matrix = parameter.data.ndim == 3
        assert parameter.data.dtype == (np.float16 if matrix else np.float32)
        assert parameter.grad.dtype == np.float32
        expected = single.parameters[name].data
        np.testing.assert_array_equal(parameter.data, expected.astype(np.float16) if matrix else expected)


def test_bind_and_state_dict() -> None:
    half, other = libmoe.Layer(**SIZES, weight_dtype="f16"), libmoe.Layer(**SIZES, weight_dtype="f16", seed=9)
    x = normal(4, H)
    y = half(x)
    data = half.parameters["experts.down.weight"].data.copy()
    half.bind("experts.down.weight", data, np.zeros(data.shape, np.float32))
    np.testing.assert_array_equal(half(x), y)
    data *= np.float16(2)
    assert not np.array_equal(half(x), y)
    other.load_state_dict(half.state_dict())
    np.testing.assert_array_equal(other(x), half(x))


@pytest.mark.parametrize("stored", ["f32", "bf16", "f16"])
def test_loaded_from(stored: Any, tmp_path: Path) -> None:
    """float16 as it is, others rounded."""
    path = tmp_path / "layer.safetensors"
    libmoe.Layer(**SIZES, seed=5, weight_dtype=stored).save(path, dtype=stored)
    half = libmoe.Layer(**SIZES, weight_dtype="f16")
    half.load(path)
    checkpoint = libmoe.Checkpoint(path)
    for name, parameter in half.parameters.items():
        np.testing.assert_array_equal(
            parameter.data, checkpoint[name].astype(parameter.data.dtype), err_msg=name
        )


def test_float16_passes_through_files_as_it_is(tmp_path: Path) -> None:
    """Every bit, quiet NaN and denormal numbers among them, in a fused and in a transposed layout too."""
    for layout, options in (
        ("libmoe", {}),
        ("mixtral", {"expert_kind": "gated", "activation": "silu"}),
        ("gpt_oss", {"expert_kind": "gated", "expert_bias": True, "router_bias": True}),
    ):
        made: dict[str, Any] = {**SIZES, **options, "weight_dtype": "f16"}
        layer, other = libmoe.Layer(**made), libmoe.Layer(**made, seed=2)
        for seed, parameter in enumerate(layer.parameters.values()):
            if parameter.data.dtype == np.float16:
                draws = np.random.default_rng(seed).integers(0, 2**16, parameter.data.shape)
                draws |= np.where((draws & 0x7FFF) > 0x7C00, 0x200, 0)
                parameter.data.view(np.uint16)[...] = draws
        number = None if layout == "libmoe" else 0
        path = tmp_path / f"{layout}.safetensors"
        layer.save(path, layout=layout, layer=number, dtype="f16")  # type: ignore[arg-type]
        other.load(path, layout=layout, layer=number)  # type: ignore[arg-type]
        for name, parameter in layer.parameters.items():
            if parameter.data.dtype == np.float16:
                found = other.parameters[name].data
                np.testing.assert_array_equal(
                    found.view(np.uint16), parameter.data.view(np.uint16), err_msg=name
                )


def test_offloaded(tmp_path: Path) -> None:
    path = tmp_path / "layer.safetensors"
    made: dict[str, Any] = {**SIZES, "expert_kind": "gated", "n_experts": 12}
    half = libmoe.Layer(**made, weight_dtype="f16", seed=4)
    half.save(path, dtype="f16")
    half.load(path)  # what is no matrix has been rounded, too
    x = normal(300, H)
    expected = half(x)
    for prepared in ("none", "f32"):
        layer = libmoe.Layer(**made, weight_dtype="f16", unallocated="expert_weights")
        layer.offload(path, resident_limit="1MiB")
        layer.prepare(prepared)
        np.testing.assert_array_equal(layer(x), expected)


def test_upcycled_from_float16() -> None:
    layer = libmoe.Layer(H, I, E, K, expert_bias=False, weight_dtype="f16")
    up, down = normal(I, H).astype(np.float16), normal(H, I, seed=1).astype(np.float16)
    layer.upcycle({"up.weight": up, "down.weight": down})
    for expert in range(E):
        np.testing.assert_array_equal(layer.parameters["experts.up.weight"].data[expert], up)
        np.testing.assert_array_equal(layer.parameters["experts.down.weight"].data[expert], down)


# ------------------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [libmoe.AdamW, libmoe.SGD])
@pytest.mark.parametrize("shape", [(3, 5), (33, 1001)])
def test_parameters_are_the_rounded_float32_ones(make: Callable[..., Any], shape: tuple[int, int]) -> None:
    start = normal(*shape).astype(np.float16)
    wide, half = libmoe.Parameter(start.astype(np.float32)), libmoe.Parameter(start.copy())
    optimizers = [make([p], learning_rate=1e-5, weight_decay=0.1) for p in (wide, half)]
    for step in range(20):
        for parameter, optimizer in zip((wide, half), optimizers):  # noqa: B905
            parameter.grad[...] = normal(*shape, seed=step)
            optimizer.step()
        np.testing.assert_array_equal(half.data, wide.data.astype(np.float16))
    # A value that somebody sets is where the next step goes on from.
    for parameter in (wide, half):
        parameter.data[0, 1] = 3
    for optimizer in optimizers:
        optimizer.step()
    np.testing.assert_array_equal(half.data, wide.data.astype(np.float16))


def test_a_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Forward, fused steps and a training state."""

    def begin() -> tuple[libmoe.Layer, Any]:
        layer = libmoe.Layer(**SIZES, weight_dtype="f16", seed=1)
        return layer, libmoe.AdamW(layer.parameters, learning_rate=2e-3)

    def run(layer: libmoe.Layer, optimizer: Any, steps: range) -> None:
        tape = layer.tape()
        for step in steps:
            x = normal(64, H, seed=step)
            y = layer.forward(x, tape=tape, training=True, step=step).y
            layer.backward(tape, y + x, need_dx=False)
            optimizer.step()
            layer.zero_grad()

    layer, optimizer = begin()
    run(layer, optimizer, range(4))
    stopped, its = begin()
    run(stopped, its, range(2))
    libmoe.save_training(tmp_path / "state.safetensors", step=2, layers=[stopped], optimizers=[its])
    again, fresh = begin()
    libmoe.load_training(tmp_path / "state.safetensors", layers=[again], optimizers=[fresh])
    run(again, fresh, range(2, 4))
    for name, parameter in layer.parameters.items():
        np.testing.assert_array_equal(again.parameters[name].data, parameter.data, err_msg=name)


def test_a_model_of_float16_weights() -> None:
    """The bits of a float32 model of the same values: loss and all gradients."""
    made: dict[str, Any] = {
        "vocabulary_size": 61, "hidden_size": 32, "n_layers": 2, "n_heads": 2, "tied_output": False,
        "moe": {"n_experts": 4, "top_k": 2, "intermediate_size": 48, "expert_kind": "gated"},
    }  # fmt: skip
    half, single = libmoe.Model(**made, weight_dtype="f16"), libmoe.Model(**made)
    narrow = 0
    for name, parameter in half.parameters.items():
        narrow += parameter.data.dtype == np.float16
        single.parameters[name].data[...] = parameter.data
    assert narrow > 2 * 3
    tokens = np.random.default_rng(0).integers(0, 61, (2, 19)).astype(np.int32)
    found = []
    for model in (half, single):
        output = model.forward(tokens[:, :-1].copy(), targets=tokens[:, 1:].copy(), tape=True)
        model.backward(output)
        found.append((output.loss, {name: p.grad.copy() for name, p in model.parameters.items()}))
    assert found[0][0] == found[1][0]
    assert_all_same_bits(found[0][1], found[1][1])


# ------------------------------------------------------------------------------------------------------------
# Refusals
# ------------------------------------------------------------------------------------------------------------


def test_tokens_and_moments_are_no_float16() -> None:
    """The words of Python leave them out; the library says why."""
    with pytest.raises(libmoe.InvalidArgumentError, match="io_dtype = 'f16'; choose one of 'f32', 'bf16'"):
        libmoe.Layer(**SIZES, io_dtype="f16")  # type: ignore[arg-type]
    parameter = libmoe.Parameter(np.zeros((2, 2), np.float16))
    make: Any
    for make in (libmoe.AdamW, libmoe.SGD):
        with pytest.raises(
            libmoe.InvalidArgumentError, match="state_dtype = 'f16'; choose one of 'f32', 'bf16'"
        ):
            make([parameter], state_dtype="f16")


def test_wrong_types() -> None:
    half, single = twins()
    with pytest.raises(
        TypeError, match=r"^data: expected float16, got float32; use data.astype\(numpy.float16\)"
    ):
        half.bind("experts.up.weight", normal(E, I, H))
    with pytest.raises(TypeError, match=r"^data: expected float32, got float16"):
        single.bind("experts.up.weight", np.zeros((E, I, H), np.float16))
    with pytest.raises(TypeError, match=r"^x: expected float32, got float16"):
        half(np.zeros((3, H), np.float16))
    with pytest.raises(TypeError, match=r"^data: expected float16, got "):
        half.bind("experts.up.weight", np.zeros((E, I, H), ml_dtypes.bfloat16))
