"""Presets: the library's numbers in Python's words, and layers made from them."""

from __future__ import annotations

import ctypes
import inspect
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal
from headers import reader
from libmoe import config
from libmoe._native import abi
from libmoe._native.library import lib

MODELS = list(reader.read().presets)
DEFAULTS: dict[str, Any] = {
    name: parameter.default for name, parameter in inspect.signature(libmoe.Layer).parameters.items()
}


def options_of(model: str, **overrides: Any) -> dict[str, Any]:
    options: dict[str, Any] = getattr(libmoe.presets, model)(**overrides)
    return options


def bytes_of(options: abi.moe_layer_config) -> tuple[bytes, bytes, bytes]:
    """Return the struct but for its addresses, and what is at these."""
    groups = b"".join(map(bytes, options.expert_groups[: options.n_expert_groups]))
    losses = b"".join(map(bytes, options.losses[: options.n_losses]))
    plain = type(options).from_buffer_copy(options)
    plain.expert_groups = plain.losses = None
    return bytes(plain), groups, losses


def test_there_is_one_for_each_of_the_header() -> None:
    ours = inspect.getmembers(libmoe.presets, inspect.isfunction)
    assert sorted(MODELS) == sorted(name for name, _ in ours if not name.startswith("_"))


@pytest.mark.parametrize("model", MODELS)
def test_the_options_are_the_struct(model: str) -> None:
    filled = abi.moe_layer_config()
    getattr(lib, f"moe_preset_{model}")(ctypes.byref(filled), ctypes.sizeof(filled))
    assert bytes_of(config.to_c({**DEFAULTS, **options_of(model)})) == bytes_of(filled)


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (  # config.json of mistralai/Mixtral-8x7B-v0.1
            "mixtral",
            {
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "n_experts": 8,
                "top_k": 2,
                "activation": "silu",
            },
        ),
        (  # arXiv:2412.19437, section 4.2
            "deepseek_v3",
            {
                "hidden_size": 7168,
                "intermediate_size": 2048,
                "n_experts": 256,
                "top_k": 8,
                "n_shared_experts": 1,
                "n_groups": 8,
                "top_groups": 4,
                "score": "sigmoid",
                "selection_bias": True,
                "routed_scale": 2.5,
            },
        ),
        (  # config.json of openai/gpt-oss-120b
            "gpt_oss",
            {
                "hidden_size": 2880,
                "n_experts": 128,
                "top_k": 4,
                "router_weights": "topk_softmax",
                "glu_limit": 7.0,
            },
        ),
        (  # arXiv:2509.01322
            "longcat_flash",
            {
                "n_experts": 768,
                "top_k": 12,
                "expert_groups": [
                    {
                        "n_experts": 512,
                        "intermediate_size": 2048,
                        "expert_kind": "gated",
                        "activation": "silu",
                    },
                    {"n_experts": 256, "expert_kind": "identity"},
                ],
            },
        ),
    ],
)
def test_numbers_that_were_published(model: str, published: dict[str, Any]) -> None:
    options = options_of(model)
    assert {name: options[name] for name in published} == published


def test_overrides_come_last() -> None:
    own = libmoe.presets.switch()
    assert own["jitter"] == 0.01  # not 0.009999999776482582
    assert libmoe.presets.switch(jitter=0.5, seed=3) == {**own, "jitter": 0.5, "seed": 3}
    with pytest.raises(TypeError, match="n_expert"):
        libmoe.Layer(**libmoe.presets.switch(n_expert=8))


@pytest.mark.parametrize("model", MODELS)
def test_small_layers_train(model: str) -> None:
    """The model with 16 narrow experts: all parameters get gradients that are finite."""
    small: dict[str, Any] = {"hidden_size": 32, "n_experts": 16}
    options = options_of(model)
    if "expert_groups" in options:
        small["expert_groups"] = [{**group, "n_experts": 8} for group in options["expert_groups"]]
        small["expert_groups"][0]["intermediate_size"] = 24
    else:
        small["intermediate_size"] = 24
    if "shared_intermediate_size" in options:
        small["shared_intermediate_size"] = 8
    layer = libmoe.Layer(**options_of(model, **small))
    tape, x = layer.tape(), normal(4, 16, 32)
    output = layer.forward(x, tape=tape, training=True, sequence_length=16)
    dx = layer.backward(tape, output.y)
    assert np.isfinite(output.y).all()
    assert output.y.any()
    assert dx is not None
    assert np.isfinite(dx).all()
    for name, parameter in layer.parameters.items():
        assert np.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
