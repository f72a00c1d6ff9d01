"""Models of every kind, small, with values that tell them apart."""

from __future__ import annotations

from typing import Any

import numpy as np

import libmoe

MOE: dict[str, Any] = dict(n_experts=4, top_k=2, intermediate_size=10, expert_kind="gated", activation="silu")
LANGUAGE: dict[str, Any] = dict(hidden_size=12, n_layers=3, n_heads=3, vocabulary_size=17, seed=5)
ENCODER: dict[str, Any] = dict(
    hidden_size=12, n_layers=2, n_heads=2, norm="layer", causal=False, rope_theta=0.0
)


DENSE: dict[str, Any] = dict(dense_kind="mlp", dense_activation="gelu", dense_intermediate_size=20)
CASES: dict[str, dict[str, Any]] = {
    "language": {**LANGUAGE, "moe": MOE},
    "untied, grouped heads, biases": {
        **LANGUAGE,
        "moe": MOE,
        "n_heads": 6,
        "n_kv_heads": 2,
        "head_size": 4,
        "tied_output": False,
        "qkv_bias": True,
        "output_bias": True,
    },
    "normed heads": {**LANGUAGE, "moe": MOE, "head_size": 8, "qk_norm": True},
    "heads normed together": {**LANGUAGE, "moe": MOE, "n_kv_heads": 1, "head_size": 8, "qk_norm": "whole"},
    "heads normed after rotation": {**LANGUAGE, "moe": MOE, "head_size": 8, "qk_norm": "rotated"},
    "two layers of three rotate": {
        **LANGUAGE,
        "moe": MOE,
        "head_size": 6,
        "qk_norm": "plain",
        "temperature_scale": 0.7,
        "temperature_floor": 2.5,
        "layers": [{}, {"rotary": -1}, {"dense": True, "dense_intermediate_size": 14}],
    },
    "scaled": {
        **LANGUAGE,
        "moe": MOE,
        "attention_scale": 0.3,
        "embedding_scale": 3.0,
        "residual_scale": 0.6,
        "logit_scale": 0.25,
    },
    "capped and biased": {
        **LANGUAGE,
        "moe": MOE,
        "logit_softcap": 1.5,
        "logit_scale": 2.0,
        "logit_bias": True,
        "tied_output": False,
    },
    "gated attention": {
        **LANGUAGE,
        "moe": MOE,
        "n_heads": 4,
        "n_kv_heads": 2,
        "attention_gate": True,
        "qkv_bias": True,
        "qk_norm": True,
    },
    "layers of many widths": {
        **LANGUAGE,
        **DENSE,
        "n_layers": 5,
        "moe": MOE,
        "layers": [
            {"dense": True},
            {"dense": True, "dense_intermediate_size": 33, "rotary": -1},
            {"rotary": -1},
            {"dense": True, "dense_intermediate_size": 3},
            {},
        ],
    },
    "rotary tables": {
        **LANGUAGE,
        "moe": MOE,
        "head_size": 8,
        "n_kv_heads": 1,
        "rotary_tables": [
            {"theta": 50.0, "rotary_size": 4},
            {"frequencies": [0.9, -0.5, 0.2, 0.01], "scale": 1.25},
        ],
        "layers": [{"rotary": 1}, {"rotary": -1}, {}],
    },
    "long rotary": {
        **LANGUAGE,
        "moe": MOE,
        "head_size": 6,
        "qk_norm": "whole",
        "rotary_tables": [
            {
                "frequencies": [1.0, 0.3, 0.1],
                "long_frequencies": [0.5, 0.1, 0.02],
                "long_scale": 1.1,
                "original_length": 7,
            }
        ],
    },
    "windows and chunks": {
        **LANGUAGE,
        "moe": MOE,
        "n_layers": 4,
        "n_kv_heads": 1,
        "layers": [{"window": 3}, {}, {"chunk": 4, "rotary": -1}, {"window": 5, "chunk": 3}],
    },
    "sinks": {
        **LANGUAGE,
        "moe": MOE,
        "n_heads": 4,
        "n_kv_heads": 2,
        "sinks": True,
        "layers": [{"window": 4}, {}, {}],
    },
    "wide values": {
        **LANGUAGE,
        "moe": MOE,
        "n_heads": 4,
        "n_kv_heads": 2,
        "value_head_size": 7,
        "attention_gate": True,
        "qk_norm": "whole",
    },
    "learned positions": {
        **LANGUAGE,
        "moe": MOE,
        "head_size": 5,
        "max_positions": 9,
        "rope_theta": 0.0,
        "norm": "layer",
    },
    "every second": {**LANGUAGE, **DENSE, "moe": MOE, "moe_every": 2},
    "pooled": {**LANGUAGE, "moe": {**MOE, "balance_coef": 0.0}, "head_size": 4, "pooled_balance_coef": 0.3},
    "by sequence": {**LANGUAGE, "moe": {**MOE, "losses": {"switch_sequence": 0.5}}, "head_size": 4},
    "encoder": {**ENCODER, **DENSE},
    "encoder after": {**ENCODER, **DENSE, "norm_place": "post", "final_norm": False},
    "encoder of experts": {**ENCODER, "moe": MOE, "norm_place": "post", "qkv_bias": True},
    "attention alone": {**ENCODER, "norm_place": "none", "final_norm": False},
}


def made(arguments: dict[str, Any], context: libmoe.Context) -> libmoe.Model:
    """A model with random parameters, none of which is what it begins with."""
    model = libmoe.Model(**arguments, context=context)
    random = np.random.default_rng(2)
    for name, parameter in model.parameters.items():
        values = parameter.data
        deviation = values.shape[-1] ** -0.5 if values.ndim > 1 else 0.3
        values[...] = random.normal(
            float("norm" in name and name.endswith("weight")), deviation, values.shape
        )
    return model


def assert_slope(model: libmoe.Model, call: dict[str, Any], name: str) -> None:
    """A parameter's gradient along a random direction is the slope of the objective there."""
    parameter = model.parameters[name]
    direction = np.random.default_rng(len(name)).standard_normal(parameter.data.shape)
    direction /= np.linalg.norm(direction)
    before, size = parameter.data.copy(), 1e-2
    sides = []
    for sign in (1, -1):
        parameter.data[...] = before + sign * size * direction
        sides.append(model.forward(**call).objective)
    parameter.data[...] = before
    slope = (sides[0] - sides[1]) / (2 * size)
    np.testing.assert_allclose(slope, (parameter.grad * direction).sum(), rtol=0.03, atol=3e-4, err_msg=name)
