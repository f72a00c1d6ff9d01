"""Everything that can be wrong about a model, wrong once: refused by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import libmoe

MOE: dict[str, Any] = {"n_experts": 4, "top_k": 2, "intermediate_size": 8}
GOOD: dict[str, Any] = {"hidden_size": 8, "n_layers": 2, "n_heads": 2, "vocabulary_size": 11, "moe": MOE}
INVALID = libmoe.InvalidArgumentError

CONFIGURATIONS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 0}, "hidden_size = 0 is below 1"),
    ({"n_layers": 0}, "n_layers = 0 is below 1"),
    ({"n_heads": 0}, "n_heads = 0 is below 1"),
    ({"n_heads": 3}, "n_heads = 3 does not divide hidden_size = 8, and head_size = 0"),
    ({"n_kv_heads": 3}, "n_kv_heads = 3 does not divide n_heads = 2"),
    ({"n_kv_heads": -1}, "n_kv_heads = -1 is below 0"),
    ({"head_size": 3}, "head_size = 3 is odd, but rope_theta turns pairs"),
    ({"head_size": 2**31 - 1, "rope_theta": 0.0}, "(n_heads + 2 n_kv_heads) * head_size ="),
    ({"vocabulary_size": -1}, "vocabulary_size = -1 is below 0"),
    ({"vocabulary_size": 0, "max_positions": 4}, "max_positions = 4, but vocabulary_size = 0"),
    ({"max_positions": -4}, "max_positions = -4 is below 0"),
    ({"rope_theta": 0.5}, "rope_theta = 0.5"),
    ({"norm_epsilon": -1.0}, "norm_epsilon = -1"),
    ({"norm_epsilon": 1e-300}, "norm_epsilon = 1e-300"),
    ({"init_deviation": 1e300}, "init_deviation = 1e300 is not finite in float32"),
    ({"pooled_balance_coef": 1e300}, "pooled_balance_coef = 1e300 is not finite in float32"),
    ({"norm": "batch"}, "norm = 'batch'; choose one of"),
    ({"norm_place": "within"}, "norm_place = 'within'; choose one of"),
    ({"weight_dtype": "int8"}, "weight_dtype = 'int8'; choose one of"),
    ({"dropout": 1.0}, "dropout = 1 is not in [0, 1)"),
    ({"attention_dropout": -0.5}, "attention_dropout = -0.5 is not in [0, 1)"),
    ({"init_deviation": float("nan")}, "init_deviation = nan"),
    ({"pooled_balance_coef": -1.0}, "pooled_balance_coef = -1"),
    ({"moe": None}, "dense_intermediate_size = 0 is below 1"),
    ({"moe": None, "dense_intermediate_size": 8, "pooled_balance_coef": 1.0}, "but moe is None"),
    (
        {"moe": None, "dense_intermediate_size": 8, "dense_kind": "linear"},
        "dense_kind = 'linear'; choose one of",
    ),
    ({"moe": None, "dense_intermediate_size": 8, "dense_dropout": 2.0}, "dense_dropout = 2 is not in [0, 1)"),
    ({"moe_every": 3, "dense_intermediate_size": 8}, "moe_every = 3 exceeds n_layers = 2"),
    ({"moe_every": -1, "dense_intermediate_size": 8}, "moe_every = -1 is below 0"),
    ({"norm_place": "none"}, "moe is not None, but norm_place = 'none' has no ffn"),
    ({"norm_place": "none", "moe": None, "dropout": 0.1}, "has no residual to add to"),
    ({"moe": {**MOE, "hidden_size": 9}}, "moe: hidden_size = 9 is neither 0 nor the model's 8"),
    ({"moe": {**MOE, "seed": 1}}, "moe: seed = 1, but the experts' seeds derive from the model's"),
    ({"moe": {**MOE, "io_dtype": "bf16"}}, "moe: io_dtype = 'bf16', but a model's hidden states are float32"),
    ({"moe": {**MOE, "inference_only": True}}, "moe: inference_only = True: set the model's"),
    ({"moe": {**MOE, "router": "external"}}, "moe: router = 'external'"),
    (
        {"moe": {**MOE, "router": "hash", "vocabulary_size": 5}},
        "moe: vocabulary_size = 5 is not the model's 11",
    ),
    ({"moe": {**MOE, "top_k": 5}}, "top_k = 5 exceeds n_experts = 4"),
    ({"layers": [{}]}, "layers: has 1 entries, but n_layers = 2"),
    ({"layers": [{}, {}], "moe_every": 2}, "moe_every = 2 beside layers"),
    ({"layers": [{"dense": True}] * 2, "dense_intermediate_size": 8}, "all of layers are dense"),
    ({"layers": [{"dense": True}, {}]}, "layers[0]: is dense, but dense_intermediate_size = 0"),
    (
        {"layers": [{}, {"dense_intermediate_size": 4}]},
        "layers[1]: dense_intermediate_size = 4, but the layer",
    ),
    ({"layers": [{}, {"rotary": 1}]}, "layers[1]: rotary = 1 is not one of 1 rotary tables"),
    ({"layers": [{}, {"rotary": -2}]}, "layers[1]: rotary = -2 is not one of"),
    ({"layers": [{}, {"window": -1}]}, "layers[1]: window = -1 is below 0"),
    ({"layers": [{}, {"window": 3}], "causal": False}, "layers[1]: window = 3, but causal = False"),
    ({"layers": [{}, {"chunk": 3}], "causal": False}, "layers[1]: chunk = 3, but causal = False"),
    ({"rotary_tables": [{"theta": 1e4}], "rope_theta": 5e3}, "rope_theta = 5000 beside n_rotary_tables = 1"),
    ({"rotary_tables": [{}]}, "rotary_tables[0]: theta = 0"),
    ({"rotary_tables": [{"theta": 1e4}, {"theta": 1e4, "rotary_size": 3}]}, "[1]: rotary_size = 3 is odd"),
    ({"rotary_tables": [{"theta": 1e4, "rotary_size": 6}]}, "[0]: rotary_size = 6 exceeds head_size = 4"),
    ({"rotary_tables": [{"theta": 1e4, "frequencies": [1, 0.1]}]}, "[0]: theta = 10000 beside frequencies"),
    ({"rotary_tables": [{"frequencies": [1]}]}, "rotary_tables[0]: frequencies: expected 2 numbers"),
    (
        {"rotary_tables": [{"frequencies": [1, 2**21]}]},
        "[0]: frequencies[1] = 2.09715e6 is not in",
    ),
    ({"rotary_tables": [{"frequencies": [1, float("nan")]}]}, "[0]: frequencies[1] = nan is not in"),
    ({"rotary_tables": [{"theta": 1e4, "scale": float("inf")}]}, "rotary_tables[0]: scale = inf"),
    (
        {"rotary_tables": [{"theta": 1e4, "long_scale": 2}]},
        "[0]: long_scale = 2, but long_frequencies is None",
    ),
    ({"rotary_tables": [{"theta": 1e4, "original_length": 2}]}, "original_length = 2, but long_frequencies"),
    ({"rotary_tables": [{"theta": 1e4, "long_frequencies": [1, 1]}]}, "[0]: original_length = 0, but"),
    ({"qk_norm": "rms"}, "qk_norm = 'rms'; choose one of"),
    ({"qk_norm": "plain", "rope_theta": 0.0}, "qk_norm = 'plain' is of layers that rotate"),
    ({"temperature_scale": 0.1, "temperature_floor": 4.0}, "but every layer has a rotary table"),
    ({"temperature_scale": 0.1, "rope_theta": 0.0}, "temperature_floor = 0"),
    ({"temperature_floor": 4.0}, "temperature_floor = 4, but temperature_scale = 0"),
    ({"attention_scale": 1e300}, "attention_scale = 1e300 is not finite in float32"),
    ({"residual_scale": 2.0, "norm_place": "none", "moe": None}, "residual_scale = 2, but norm_place"),
    ({"vocabulary_size": 0, "embedding_scale": 2.0}, "embedding_scale = 2, but vocabulary_size = 0"),
    ({"vocabulary_size": 0, "embedding_dtype": "bf16"}, "embedding_dtype = 1, but vocabulary_size = 0"),
    ({"vocabulary_size": 0, "logit_scale": 2.0}, "logit_scale is not 0, but vocabulary_size = 0"),
    ({"vocabulary_size": 0, "logit_softcap": 2.0}, "logit_softcap is not 0, but vocabulary_size = 0"),
    ({"logit_softcap": -2.0}, "logit_softcap = -2"),
    ({"embedding_dtype": "f16"}, "embedding_dtype = 'f16'; choose one of"),
    ({"attention_gate": True, "value_head_size": 2**30}, "value_head_size"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGURATIONS)
def test_configuration(change: dict[str, Any], message: str) -> None:
    with pytest.raises(INVALID, match=re.escape(message)):
        libmoe.Model(**{**GOOD, **change})


def test_names_within_lists() -> None:
    with pytest.raises(TypeError, match="layers\\[1\\]: unknown names \\['sliding_window'\\].*window"):
        libmoe.Model(**{**GOOD, "layers": [{}, {"sliding_window": 3}]})
    with pytest.raises(TypeError, match="rotary_tables\\[0\\]: expected a dict, got float"):
        libmoe.Model(**{**GOOD, "rotary_tables": [1e4]})
    with pytest.raises(TypeError, match="rotary_tables\\[0\\]: frequencies: expected numbers, got str"):
        libmoe.Model(**{**GOOD, "rotary_tables": [{"frequencies": "yarn"}]})


def test_names_within_moe() -> None:
    with pytest.raises(TypeError, match="moe: unknown names \\['experts'\\]"):
        libmoe.Model(**{**GOOD, "moe": {**MOE, "experts": 3}})
    with pytest.raises(TypeError, match="moe: top_k is missing"):
        libmoe.Model(**{**GOOD, "moe": {"n_experts": 3, "intermediate_size": 3}})


TOKENS = np.zeros((2, 3), np.int32)
CALLS: list[tuple[dict[str, Any], str]] = [
    ({"tokens": TOKENS + 11}, "tokens[0] = 11 is not one of vocabulary_size = 11"),
    ({"tokens": TOKENS - 1}, "tokens[0] = -1 is not one of vocabulary_size = 11"),
    ({"tokens": TOKENS[:0]}, "n_sequences * sequence_length = 0 is below 1"),
    ({"tokens": TOKENS[:, :0].copy()}, "sequence_length = 0 is below 1"),
    ({"tokens": np.zeros((1, 5), np.int32)}, "sequence_length = 5 exceeds max_positions = 4"),
    (
        {"targets": TOKENS + 11},
        "targets[0] = 11 is neither one of vocabulary_size = 11 nor ignore_index = -100",
    ),
    ({"targets": TOKENS - 1, "ignore_index": -2}, "nor ignore_index = -2"),
    ({"label_smoothing": 0.1}, "label_smoothing = 0.1, but targets is None"),
    ({"targets": TOKENS, "label_smoothing": 1.0}, "label_smoothing = 1 is not in [0, 1)"),
    ({"step": 2**56}, "step = 72057594037927936 is not below 2^56"),
    ({"valid_mask": np.full((2, 3), 2, np.uint8)}, "valid_mask[0] = 2 is neither 0 nor 1"),
    ({"mask": np.full((3, 3), 2, np.uint8)}, "mask[0] = 2 is neither 0 nor 1"),
    ({"memory_limit": 100}, "memory_limit = 100 bytes, but 2 sequences of 3 tokens need at least"),
]


@pytest.mark.parametrize(("change", "message"), CALLS)
def test_call(change: dict[str, Any], message: str) -> None:
    model = libmoe.Model(**GOOD, max_positions=4)
    output = model.forward(TOKENS, tape=True)
    with pytest.raises(INVALID, match=re.escape(message)):
        model.forward(**{"tokens": TOKENS, "tape": True, **change})
    with pytest.raises(libmoe.BadStateError, match="filled by another forward since"):
        model.backward(output)


def test_types_and_shapes() -> None:
    model = libmoe.Model(**GOOD)
    with pytest.raises(TypeError, match="tokens: expected int32, got int64"):
        model.forward(np.zeros((2, 3), np.int64))  # type: ignore[arg-type]
    few: dict[tuple[int, ...], str] = {(3,): "(1, 3)", (2, 3, 1): "(2, 3)", (2, 2, 3): "(4, 3)", (): "(1, 1)"}
    for shape, cure in few.items():
        says = f"tokens: expected shape [B, S], got {shape}; use tokens.reshape{cure}"
        with pytest.raises(ValueError, match=re.escape(says)):
            model.forward(np.zeros(shape, np.int32))
    alone = libmoe.Model(**{**GOOD, "vocabulary_size": 0})
    wide: dict[tuple[int, ...], str] = {(3, 8): "(1, 3, 8)", (1, 2, 3, 8): "(2, 3, 8)", (8,): "(1, 1, 8)"}
    for shape, cure in wide.items():
        with pytest.raises(ValueError, match=re.escape(f"got {shape}; use tokens.reshape{cure}")):
            alone.forward(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="targets: expected shape \\(2, 3\\), got \\(2, 4\\)"):
        model.forward(TOKENS, np.zeros((2, 4), np.int32))
    encoder = libmoe.EncoderLayer(8, 2, 16)
    with pytest.raises(ValueError, match="tokens: expected shape \\[..., 8\\], got \\(2, 3, 7\\)"):
        encoder.forward(np.zeros((2, 3, 7), np.float32))


def test_states() -> None:
    model, other = libmoe.Model(**GOOD), libmoe.Model(**GOOD)
    with pytest.raises(libmoe.BadStateError, match="has no tape"):
        model.backward(model.forward(TOKENS))
    with pytest.raises(libmoe.BadStateError, match="tape belongs to another model"):
        model.forward(TOKENS, tape=other.tape())
    with pytest.raises(libmoe.BadStateError, match="cache belongs to another model"):
        model.read(other.cache(2, 3), TOKENS)
    frozen = libmoe.Model(**GOOD, inference_only=True)
    with pytest.raises(libmoe.BadStateError, match="the model was created inference_only"):
        frozen.backward(frozen.forward(TOKENS, tape=True))
    with pytest.raises(libmoe.BadStateError, match="the model was created inference_only"):
        frozen.zero_grad()
    with pytest.raises(INVALID, match="d_objective = nan is not finite"):
        model.backward(model.forward(TOKENS, tape=True), float("nan"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.1.attention.qkv.weight", "layers.1: attention: a score of sequence 0, head 0, query 0"),
        ("layers.0.ffn.router.weight", r"layers.0: router.weight\[0\]\[0\] is NaN or plus infinity"),
        ("norm.weight", "token 0 has a loss that is not finite"),
    ],
)
def test_what_is_not_finite_is_found(name: str, message: str) -> None:
    model = libmoe.Model(**GOOD)
    model.parameters[name].data[...] = np.nan
    with pytest.raises(libmoe.NotFiniteError, match=message):
        model.forward(TOKENS, TOKENS)


def test_the_sequence_in_a_cache_whose_scores_are_not_finite_is_named() -> None:
    model = libmoe.Model(**GOOD)
    model.parameters["embed.weight"].data[7] = np.nan
    with pytest.raises(
        libmoe.NotFiniteError, match="layers.0: attention: a score of sequence 1, head 0, query 2"
    ):
        model.read(model.cache(2, 3), np.array([[1, 2, 3], [4, 5, 7]], np.int32))


def test_generation() -> None:
    model = libmoe.Model(**GOOD, max_positions=5)
    with pytest.raises(INVALID, match="n_sequences = 0 is below 1"):
        model.cache(0, 3)
    with pytest.raises(INVALID, match="max_length = 6 exceeds 5"):
        model.cache(1, 6)
    with pytest.raises(INVALID, match="a cache is for causal models with a vocabulary"):
        libmoe.Model(**{**GOOD, "causal": False}).cache(1, 3)
    cache = model.cache(2, 3)
    with pytest.raises(INVALID, match="tokens\\[5\\] = 11 is not one of vocabulary_size = 11"):
        model.read(cache, np.array([[0, 1, 2], [3, 4, 11]], np.int32))
    assert cache.length == 0
    model.read(cache, TOKENS)
    with pytest.raises(INVALID, match="length = 4 is not from 0 to the 3 tokens in the cache"):
        cache.truncate(4)
    with pytest.raises(INVALID, match="prompt: is empty"):
        list(model.generate([], 3))


def test_parameters() -> None:
    model = libmoe.Model(**GOOD)
    with pytest.raises(INVALID, match="the model has no parameter called output.weight"):
        model.bind("output.weight", np.zeros((11, 8), np.float32))
    values = np.ones((11, 8), np.float32)
    model.bind("embed.weight", values)
    values[0] = 3
    assert (model.parameters["embed.weight"].data[0] == 3).all()
    router = np.zeros((4, 8), np.float32)
    model.bind("layers.1.ffn.router.weight", router)
    assert model.layers[1].parameters["router.weight"].data.ctypes.data == router.ctypes.data
    assert "layers.1.ffn.router.weight" in model.parameters
    names = list(model.parameters)
    assert names[:3] == ["embed.weight", "layers.0.norm1.weight", "layers.0.attention.qkv.weight"]
    assert names[-1] == "norm.weight"
