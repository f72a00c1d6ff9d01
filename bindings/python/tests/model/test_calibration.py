"""Few bits that a text has chosen: what is gathered, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
from oracle.calibration import chosen, importance, made_up
from oracle.low_bits import unpacked
from pretrained_models import FOLDERS, most_of_the_experts

MIXTRAL = FOLDERS / "mixtral"
SMALL: dict[str, Any] = {
    "hidden_size": 100,
    "n_layers": 1,
    "n_heads": 4,
    "head_size": 20,
    "vocabulary_size": 75,
    "rope_theta": 0.0,
    "tied_output": False,
    "moe": {
        "n_experts": 4,
        "top_k": 2,
        "intermediate_size": 70,
        "expert_kind": "gated",
        "activation": "silu",
    },
}
EXPERTS = "layers.0.ffn.experts."


def tokens_of(b: int, s: int, seed: int = 3) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, SMALL["vocabulary_size"], (b, s)).astype(np.int32)


def rms(x: NDArray[np.float64], weight: NDArray[Any]) -> NDArray[np.float64]:
    own: NDArray[np.float64] = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight
    return own


def read_by(model: libmoe.Model, tokens: NDArray[np.int32]) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Return the rows that each matrix of the small model reads, in float64; routing is the model's own."""
    state = model.state_dict()
    floats = {n: libmoe.from_bfloat16(v) if v.dtype == np.uint16 else v for n, v in state.items()}
    w = {name: value.astype(np.float64) for name, value in floats.items()}
    b, s = tokens.shape
    heads, size = SMALL["n_heads"], SMALL["head_size"]
    x = w["embed.weight"][tokens]
    read = {}
    normed = rms(x, w["layers.0.norm1.weight"])
    read["layers.0.attention.qkv.weight", 0] = normed
    q, k, v = (
        (normed @ w["layers.0.attention.qkv.weight"].T).reshape(b, s, 3, heads, size).transpose(2, 0, 3, 1, 4)
    )
    scores = np.where(np.tri(s, dtype=bool), q @ k.transpose(0, 1, 3, 2) / np.sqrt(size), -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    attended = ((shares / shares.sum(-1, keepdims=True)) @ v).transpose(0, 2, 1, 3).reshape(b, s, -1)
    read["layers.0.attention.output.weight", 0] = attended
    x = x + attended @ w["layers.0.attention.output.weight"].T
    normed = rms(x, w["layers.0.norm2.weight"]).reshape(b * s, -1)
    report = model.forward(tokens).layers[0]
    assert report is not None
    y = np.zeros_like(normed)
    read["layer", 0] = normed
    for e in range(SMALL["moe"]["n_experts"]):
        t, slot = np.nonzero(report.expert_indices == e)
        read[EXPERTS + "gate.weight", e] = read[EXPERTS + "up.weight", e] = normed[t]
        gate = normed[t] @ w[EXPERTS + "gate.weight"][e].T
        inner = gate / (1 + np.exp(-gate)) * (normed[t] @ w[EXPERTS + "up.weight"][e].T)
        read[EXPERTS + "down.weight", e] = inner
        y[t] += report.expert_weights[t, slot, None] * (inner @ w[EXPERTS + "down.weight"][e].T)
    read["output.weight", 0] = rms(x + y.reshape(x.shape), w["norm.weight"])
    return {key: rows.reshape(-1, rows.shape[-1]) for key, rows in read.items()}


@pytest.mark.parametrize(
    ("how", "weight_dtype", "tolerance"),
    [
        ({}, "f32", 1e-4),
        ({"matmul": "reference"}, "f32", 1e-4),
        ({}, "bf16", 0.03),
        ({"matmul": "reference"}, "bf16", 0.03),
    ],
)
def test_squares_are_those_of_the_inputs(how: dict[str, Any], weight_dtype: Any, tolerance: float) -> None:
    with libmoe.Context(**how) as context:
        model = libmoe.Model(**SMALL, weight_dtype=weight_dtype, inference_only=True, context=context)
        first, second = tokens_of(2, 37), tokens_of(1, 9, seed=5)
        calibration = libmoe.Calibration(model)
        calibration.add(model, first)
        padded = np.concatenate([np.zeros((1, 3), np.int32), second], 1)
        calibration.add(model, padded, valid_mask=np.arange(12)[None] >= 3)
        expected = [read_by(model, tokens) for tokens in (first, second)]
        known = {(matrix.name, matrix.expert): matrix for matrix in calibration.matrices()}
        assert {*known, ("layer", 0)} == set(expected[0])
        for key, matrix in known.items():
            rows = np.concatenate([read[key] for read in expected])
            assert matrix.n_tokens == len(rows) and matrix.is_few == (len(rows) < 32)
            found, scale = calibration.mean_squares(*key), tolerance * (rows**2).mean()
            np.testing.assert_allclose(found, (rows**2).mean(0), rtol=tolerance, atol=scale)
            if ".experts." in key[0] and "down" not in key[0]:  # of all that came into the layer
                rows = np.concatenate([read["layer", 0] for read in expected])
            products = calibration.mean_products(*key)
            assert matrix.has_products and products is not None
            np.testing.assert_allclose(np.triu(products), np.triu(rows.T @ rows / len(rows)), atol=2 * scale)
        assert calibration.n_tokens == 2 * 37 + 9


def test_bits_are_the_same_for_threads_and_chunks() -> None:
    found: list[list[Any]] = []
    for n_threads, limit in ((1, None), (2, None), (3, 4_500_000)):
        with libmoe.Context(n_threads) as context:
            model = libmoe.Model(**SMALL, inference_only=True, context=context)
            calibration = libmoe.Calibration(model)
            calibration.add(model, tokens_of(3, 100), memory_limit=limit)
            products = [calibration.mean_products(each.name, each.expert) for each in calibration.matrices()]
            model.prepare("int4", calibration=calibration)
            found.append([model.forward(tokens_of(1, 9), logits=True).logits, *products])
            found[-1] += [calibration.mean_squares(each.name, each.expert) for each in calibration.matrices()]
    for other in found[1:]:
        for ours, theirs in zip(found[0], other):
            np.testing.assert_array_equal(ours, theirs)


def test_experts_in_files_are_calibrated_alike() -> None:
    text = "the cat and the hat in the house, here and there. " * 9
    whole = libmoe.Model.from_pretrained(MIXTRAL, inference_only=True)
    filed = libmoe.Model.from_pretrained(
        MIXTRAL, inference_only=True, resident_limit=most_of_the_experts("mixtral")
    )
    steps: list[tuple[int, int]] = []
    first = libmoe.calibrate(whole, text, sequence_length=40, progress=lambda *step: steps.append(step))
    second = libmoe.calibrate(filed, text, sequence_length=40)
    assert steps[-1] == (first.n_tokens, first.n_tokens) and len(steps) > 1
    assert first.n_tokens == len(whole.tokenizer.encode(text))
    for matrix in first.matrices():
        np.testing.assert_array_equal(
            first.mean_squares(matrix.name, matrix.expert), second.mean_squares(matrix.name, matrix.expert)
        )
    with pytest.raises(libmoe.BadStateError, match="experts that stay in"):
        filed.prepare("int4", calibration=first)


# ------------------------------------------------------------------------------------------------------------
# Packing
# ------------------------------------------------------------------------------------------------------------


def calibrated_state(
    model: libmoe.Model, calibration: libmoe.Calibration, form: str
) -> dict[str, NDArray[np.float32]]:
    """Return weights as the definition chooses them, and see that plain ones are no better."""
    state = dict(model.state_dict())
    state["embed.weight"] = unpacked(state["embed.weight"], form)  # which nothing reads: no error weighs more
    known = {(each.name, each.expert): each for each in calibration.matrices()}
    for name in {name for name, _ in known}:
        value = state[name]
        matrices = value.reshape(-1, *value.shape[-2:])
        sums = [calibration.mean_squares(name, e) * known[name, e].n_tokens for e in range(len(matrices))]
        own = []
        for e, matrix in enumerate(matrices):
            weights = importance(np.add.accumulate(sums)[-1] if known[name, e].is_few else sums[e])
            own.append(chosen(matrix, form, weights))
            error, plain = (
                (weights * (matrix - kept).astype(np.float64) ** 2).sum()
                for kept in (own[-1], unpacked(matrix, form))
            )
            assert error <= plain * (1 + 1e-6)
        state[name] = np.stack(own).reshape(value.shape)
    return state


@pytest.mark.parametrize(
    "form",
    ["int4", "int8", "int8_row", "int4_g128", "int4_zero", "mxfp4", "nvfp4", "fp8", "iq4_nl", "q4_k", "q6_k"],
)
def test_weights_are_those_of_the_least_weighted_error(form: Any) -> None:
    sizes: dict[str, Any] = {}
    if form in ("q4_k", "q6_k"):
        sizes = {"hidden_size": 256, "head_size": 64, "moe": {**SMALL["moe"], "intermediate_size": 256}}
    tokens = tokens_of(2, 30)
    with libmoe.Context(2) as context:
        model = libmoe.Model(**{**SMALL, **sizes}, inference_only=True, context=context)
        model.parameters["layers.0.ffn.router.bias"].data[2] = -1e4  # an expert that no token reaches
        calibration = libmoe.calibrate(model, tokens, memory_limit=0)
        assert not any(each.has_products for each in calibration.matrices())
        assert (EXPERTS + "gate.weight", 2, 0) in [
            (each.name, each.expert, each.n_tokens) for each in calibration.few
        ]
        chosen_model = libmoe.Model(**{**SMALL, **sizes}, inference_only=True, context=context)
        chosen_model.load_state_dict(calibrated_state(model, calibration, form))
        model.prepare(form, calibration=calibration)
        found, expected = (each.forward(tokens, logits=True).logits for each in (model, chosen_model))
        assert found is not None and expected is not None
        assert_same_bits(found, expected)


def weights_of_logits(model: libmoe.Model) -> NDArray[np.float64]:
    """Return the matrix of the logits as it is packed, found from many hidden states."""
    output = model.forward(tokens_of(8, 50, seed=11), logits=True, hidden=True)
    assert output.logits is not None and output.hidden is not None
    hidden, logits = (
        each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (output.hidden, output.logits)
    )
    return np.asarray(np.linalg.lstsq(hidden, logits, rcond=None)[0].T, np.float64)


@pytest.mark.parametrize("form", ["int4", "int8", "int4_g64", "int4_zero", "mxfp4", "nvfp4"])
def test_later_weights_make_up_for_errors(form: Any) -> None:
    tokens = tokens_of(6, 50)
    with libmoe.Context(2) as context:
        model = libmoe.Model(**SMALL, inference_only=True, context=context)
        embedding = model.parameters["embed.weight"].data
        embedding[...] = unpacked(embedding, form)  # whose own errors nothing makes up for
        exact = model.forward(tokens, logits=True).logits
        calibration = libmoe.calibrate(model, tokens)
        weights = model.parameters["output.weight"].data.copy()
        products = calibration.mean_products("output.weight")
        assert exact is not None and products is not None
        m = importance(calibration.mean_squares("output.weight") * tokens.size)
        expected = made_up(weights, form, m, products.astype(np.float64), tokens.size)
        model.prepare(form)
        plain = model.forward(tokens, logits=True).logits
        model.prepare(form, calibration=calibration)
        found = model.forward(tokens, logits=True).logits
        assert plain is not None and found is not None
        # What is lost of the whole model, experts among it, and of this matrix.
        if form != "int8":  # which is so near that a token routed otherwise weighs more
            assert np.linalg.norm(found - exact) < 0.9 * np.linalg.norm(plain - exact)
        packed = weights_of_logits(model)
        same = np.isclose(packed, expected, rtol=0, atol=1e-3 * np.abs(weights).max()).all(1)
        assert same.mean() > 0.95  # rows in which no number lay between two

        def lost(kept: NDArray[Any]) -> float:
            return float(((weights - kept) @ products * (weights - kept)).sum())

        assert lost(packed) < 0.8 * lost(unpacked(weights, form))


def test_a_folder_is_packed_by_a_calibration_while_it_is_read(tmp_path: Path) -> None:
    text = "the cat and the hat in the house, here and there. " * 9
    model = libmoe.Model.from_pretrained(MIXTRAL, inference_only=True)
    calibration = libmoe.calibrate(model, text)
    tokens = np.array([model.tokenizer.encode("the hat in the house")], np.int32)
    packed = libmoe.Model.from_pretrained(
        MIXTRAL, inference_only=True, prepared="int4", calibration=calibration
    )
    plain = libmoe.Model.from_pretrained(MIXTRAL, inference_only=True, prepared="int4")
    model.prepare("int4", calibration=calibration)
    found, expected, without = (each.forward(tokens, logits=True).logits for each in (packed, model, plain))
    assert found is not None and expected is not None and without is not None
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, without)
    # By patterns too.
    parts: list[Any] = [{"*": "int4"}, {"embed.weight": "int8", "*": "int4"}]
    for each in parts:
        by_parts, plain = (
            libmoe.Model.from_pretrained(MIXTRAL, inference_only=True, prepared=each, calibration=which)
            for which in (calibration, None)
        )
        again, without = (model.forward(tokens, logits=True).logits for model in (by_parts, plain))
        assert again is not None and without is not None
        assert np.array_equal(again, found) == (len(each) == 1)
        assert not np.array_equal(again, without)


def test_what_is_refused() -> None:
    with libmoe.Context() as context:
        model = libmoe.Model(**SMALL, inference_only=True, context=context)
        other = libmoe.Model(**{**SMALL, "n_layers": 2}, inference_only=True, context=context)
        calibration = libmoe.calibrate(model, tokens_of(1, 40))
        assert len(calibration.few) > 0 and f"{len(calibration.few)} experts with few" in repr(calibration)
        with pytest.raises(libmoe.InvalidArgumentError, match="other names or shapes"):
            other.prepare("int4", calibration=calibration)
        with pytest.raises(libmoe.InvalidArgumentError, match="other names or shapes"):
            calibration.add(other, tokens_of(1, 4))
        with pytest.raises(libmoe.InvalidArgumentError, match="prepared = .*keeps none"):
            model.prepare("f32", calibration=calibration)
        with pytest.raises(libmoe.InvalidArgumentError, match="options.prepared|prepared = "):
            libmoe.Model.from_pretrained(MIXTRAL, inference_only=True, calibration=calibration)
        with pytest.raises(libmoe.InvalidArgumentError, match="other names or shapes"):
            libmoe.Model.from_pretrained(
                MIXTRAL, inference_only=True, prepared="int4", calibration=calibration
            )
        with pytest.raises(libmoe.ArgumentTypeError, match="calibration: expected a libmoe.Calibration"):
            model.prepare("int4", calibration="text")  # type: ignore[arg-type]
        with pytest.raises(libmoe.InvalidArgumentError, match="no token"):
            libmoe.calibrate(model, np.zeros(0, np.int32))
        with pytest.raises(libmoe.InvalidArgumentError, match="not packed"):
            calibration.mean_squares("embed.weight")
        model.prepare("int8", calibration=calibration)
        with pytest.raises(libmoe.BadStateError, match="packed in few bits"):
            calibration.add(model, tokens_of(1, 4))


def test_an_error_leaves_the_calibration_empty() -> None:
    with libmoe.Context() as context:
        model = libmoe.Model(**SMALL, inference_only=True, context=context)
        calibration = libmoe.calibrate(model, tokens_of(1, 40))
        model.parameters["layers.0.ffn.router.weight"].data[0, 0] = np.nan
        with pytest.raises(libmoe.NotFiniteError):
            calibration.add(model, tokens_of(1, 4))
        assert calibration.n_tokens == 0


def test_products_are_kept_as_far_as_memory_goes() -> None:
    with libmoe.Context() as context:
        model = libmoe.Model(**SMALL, inference_only=True, context=context)
        # 4 bytes times: of attention 100^2 and 80^2, of the layer and of the logits 100^2, of 4 experts 70^2.
        before = context.memory()[0]
        for limit, count in ((0, 0), (25_600, 1), (145_599, 1), (145_600, 5), ("1 MB", 6)):
            with libmoe.Calibration(model, memory_limit=limit) as calibration:
                known = {each.name for each in calibration.matrices() if each.has_products}
                assert len(known) == count
        del calibration
        assert context.memory()[0] == before
