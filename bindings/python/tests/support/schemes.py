"""Layers of many kinds with what their calls are given, and the least memory that a call takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
from against_oracle import Arguments

H, I, E, K = 33, 45, 6, 2  # noqa: E741
T = 700  # tokens: two chunks of 256, and a rest
SIZES: Arguments = {"hidden_size": H, "intermediate_size": I, "n_experts": E, "top_k": K}
TRAINING: Arguments = {"training": True, "step": 3}
IDS = np.arange(T, dtype=np.int64) % 7


# Arguments of the layer, options of the call: what looks at more than one token, and all kinds of experts.
SCHEMES: dict[str, tuple[Arguments, Arguments]] = {
    "classic": ({}, {}),
    "gated, dropout": ({"expert_kind": "gated", "activation": "silu", "dropout": 0.2}, TRAINING),
    "linear": ({"expert_kind": "linear", "intermediate_size": 0}, {}),
    "shared, sigmoid": ({"n_shared_experts": 2, "shared_gate": "sigmoid", "output_bias": True}, {}),
    "residual": ({"n_shared_experts": 1, "shared_gate": "residual", "shared_intermediate_size": 70}, {}),
    "groups of experts": (
        {
            "intermediate_size": 0,
            "expert_groups": [
                {"n_experts": 2, "intermediate_size": 20},
                {"n_experts": 2, "intermediate_size": 50, "expert_kind": "gated"},
                {"n_experts": 1, "expert_kind": "identity"},
                {"n_experts": 1, "expert_kind": "constant"},
            ],
        },
        {},
    ),
    "weight on input": ({"weight_on_input": True, "router_normalize": False}, {}),
    "expert choice": ({"router": "expert_choice"}, {}),
    "hierarchical": ({"router": "hierarchical", "n_groups": 2, "top_groups": 1}, {}),
    "hash": (
        {"router": "hash", "vocabulary_size": 7},
        {"token_ids": IDS},
    ),
    "sinkhorn": ({"router": "sinkhorn"}, TRAINING),
    "relu": ({"router": "relu", "score": "identity", "router_normalize": False}, TRAINING),
    "capacity": ({"capacity_formula": "classic", "capacity_factor": 1.0, "drop": "probability"}, {}),
    "next best": ({"capacity_formula": "classic", "capacity_factor": 1.5, "overflow": "next_best"}, {}),
    "exploration": (
        {
            "noise": "learned",
            "jitter": 0.1,
            "jitter_experts": True,
            "router_dropout": 0.1,
            "router_batch_norm": True,
        },
        TRAINING,
    ),
    "dynamic k": ({"dynamic_k": "top_p", "dynamic_value": 0.4}, {}),
    "losses": (
        {"losses": {"switch_sequence": 0.3, "importance": 0.1, "megatron": 0.2}},
        {"sequence_length": 100},
    ),
    "padding": ({}, {"valid_mask": np.arange(T) % 5 != 0}),
}


def least(layer: libmoe.Layer, n_tokens: int, **options: Any) -> int:
    """The smallest workable limit, as the refusal names it."""
    with pytest.raises(libmoe.InvalidArgumentError, match="memory_limit") as refusal:
        layer.plan(n_tokens, memory_limit=1, **options)
    return int(str(refusal.value).split()[-1])
