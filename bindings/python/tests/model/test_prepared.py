"""Packed copies of a model's weights: the values they hold, and that changes are noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
from oracle.low_bits import integer_product, unpacked

WEIGHT_ONLY = ["int8", "int4", "int4_g64", "int4_g128"]
CONTEXTS: list[dict[str, Any]] = [
    {"n_threads": 1},
    {"n_threads": 3},
    {"instructions": "avx2"},
    {"instructions": "base"},
    {"matmul": "reference"},
    {"matmul": "openblas"},
]
BY_OPENBLAS = [{"instructions": "base"}, {"matmul": "openblas"}]
# Matrices of several blocks of 32, and no multiples of it; a dense layer, then one of experts.
COMMON: dict[str, Any] = {
    "hidden_size": 100,
    "n_layers": 2,
    "n_heads": 4,
    "vocabulary_size": 75,
    "moe": {"n_experts": 4, "top_k": 2, "intermediate_size": 70},
    "layers": [{"dense": True}, {}],
    "dense_intermediate_size": 90,
}
MODELS: dict[str, dict[str, Any]] = {
    "untied": {**COMMON, "head_size": 24, "n_kv_heads": 2, "qkv_bias": True, "tied_output": False},
    "tied": {**COMMON, "head_size": 40},
    "latent": {
        **COMMON,
        "head_size": 40,
        "value_head_size": 24,
        "latent_rank": 48,
        "query_rank": 64,
        "rotary_tables": [{"rotary_size": 16, "theta": 1e4}],
        "rope_theta": 0.0,
        "tied_output": False,
    },
}


def call_of(arguments: dict[str, Any], b: int = 2, s: int = 7) -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {
        name: random.integers(0, arguments["vocabulary_size"], (b, s)).astype(np.int32)
        for name in ("tokens", "targets")
    }


def is_packed(name: str) -> bool:
    """Whether it is packed: what a latent is expanded by is kept, and routers are."""
    packed = ("qkv.weight", "q_a.weight", "q_b.weight", "kv_a.weight", "output.weight", "embed.weight")
    return name.endswith(packed) or ".experts." in name and name.endswith("weight")


def with_values_of(form: str, arguments: dict[str, Any], state: dict[str, Any], context: Any) -> libmoe.Model:
    """Return a model whose weights are those that a form keeps."""
    model = libmoe.Model(**arguments, inference_only=True, context=context)
    model.load_state_dict({n: unpacked(v, form) if is_packed(n) else v for n, v in state.items()})
    return model


def answers(model: libmoe.Model, call: dict[str, Any]) -> tuple[NDArray[np.float32], float]:
    output = model.forward(**call, logits=True)
    assert output.logits is not None
    return output.logits, output.loss


@pytest.mark.parametrize("how", CONTEXTS, ids=str)
@pytest.mark.parametrize("form", WEIGHT_ONLY)
@pytest.mark.parametrize("case", MODELS)
def test_the_bits_are_those_of_the_values_kept(case: str, form: Any, how: dict[str, Any]) -> None:
    arguments, call = MODELS[case], call_of(MODELS[case])
    with libmoe.Context(**how) as context:
        model = libmoe.Model(**arguments, context=context)
        expected, loss = answers(with_values_of(form, arguments, model.state_dict(), context), call)
        model.prepare(form)
        found, own_loss = answers(model, call)
        last = model.read(model.cache(*call["tokens"].shape), call["tokens"])
        if how in BY_OPENBLAS:  # whose bits depend on where a matrix lies
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(last, expected[:, -1], rtol=1e-5, atol=1e-5)
        else:
            assert_same_bits(found, expected)
            assert own_loss == loss
            assert_same_bits(last, expected[:, -1])


@pytest.mark.parametrize("form", [f"{form}_a8" for form in WEIGHT_ONLY])
@pytest.mark.parametrize("case", MODELS)
def test_tokens_in_integers(case: str, form: Any) -> None:
    """The logits are the product of integers with the hidden states; all bits are the same everywhere."""
    arguments, call = MODELS[case], call_of(MODELS[case])
    first = None
    for how in CONTEXTS[:3]:  # others round what lies between these products otherwise
        with libmoe.Context(**how) as context:
            model = libmoe.Model(**arguments, inference_only=True, context=context)
            weights = model.parameters["embed.weight" if case == "tied" else "output.weight"].data
            exact, _ = answers(model, call)
            model.prepare(form)
            output = model.forward(**call, logits=True, hidden=True)
            assert output.logits is not None and output.hidden is not None
            hidden = output.hidden.reshape(-1, arguments["hidden_size"])
            expected = integer_product(hidden, weights, form)
            assert_same_bits(output.logits.reshape(expected.shape), expected)
            first = output.logits if first is None else first
            assert_same_bits(output.logits, first)
            error = np.linalg.norm(first - exact) / np.linalg.norm(exact)
            assert 1e-4 < error < (0.05 if "int8" in form else 0.5)


@pytest.mark.parametrize(
    "name", ["layers.1.attention.qkv.weight", "layers.0.attention.output.weight", "output.weight"]
)
def test_changes_are_noticed(name: str) -> None:
    arguments, call = MODELS["untied"], call_of(MODELS["untied"])
    with libmoe.Context() as context:
        model = libmoe.Model(**arguments, context=context)
        before, _ = answers(model, call)
        model.prepare()
        assert_same_bits(answers(model, call)[0], before)
        model.parameters[name].data[...] += 1
        with pytest.raises(libmoe.BadStateError, match=f"^{name} has changed.*prepare the model again"):
            model.forward(**call, logits=True)
        model.prepare("none")
        after, _ = answers(model, call)
        assert after.tobytes() != before.tobytes()
        model.prepare()
        assert_same_bits(answers(model, call)[0], after)


@pytest.mark.parametrize("name", ["layers.0.attention.qkv.weight", "layers.1.ffn.experts.up.weight"])
def test_what_a_form_cannot_hold_is_named_and_nothing_is_packed(name: str) -> None:
    arguments, call = MODELS["untied"], call_of(MODELS["untied"])
    with libmoe.Context() as context:
        model = libmoe.Model(**arguments, inference_only=True, context=context)
        before, _ = answers(model, call)
        used = context.memory()[0]
        value = model.parameters[name].data.flat[-1].copy()
        model.parameters[name].data.flat[-1] = np.inf
        with pytest.raises(libmoe.NotFiniteError, match=name.split(".ffn")[0].replace(".", r"\.")):
            model.prepare("int8")
        model.parameters[name].data.flat[-1] = value
        assert context.memory()[0] == used
        assert_same_bits(answers(model, call)[0], before)


def test_patterns_are_for_what_packs_while_it_reads() -> None:
    model = libmoe.Model(**MODELS["untied"], inference_only=True)
    with pytest.raises(libmoe.ArgumentTypeError, match="patterns of names are for Model.from_pretrained"):
        model.prepare({"layers.*": "int8"})  # type: ignore[arg-type]


def test_the_bytes_of_a_form() -> None:
    """8.5 bits for each weight, of outputs filled up to 32, with a few bytes for each matrix beside it."""
    arguments = {**COMMON, "hidden_size": 256, "n_heads": 4, "layers": [{"dense": True}] * 2, "moe": None}
    arguments["dense_intermediate_size"] = 512
    with libmoe.Context() as context:
        model = libmoe.Model(**arguments, inference_only=True, context=context)
        before = context.memory()[0]
        model.prepare("int8")
        weights = 2 * (4 * 256 * 256 + 3 * 512 * 256) + 96 * 256
        packed = context.memory()[0] - before
        assert 0 <= packed - weights * 8.5 / 8 < 6_000
        model.prepare("none")
        assert context.memory()[0] == before
