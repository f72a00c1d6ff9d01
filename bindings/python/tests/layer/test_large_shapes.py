"""Products deeper than one piece of a panel, and tokens of more experts than are added up at once."""

from __future__ import annotations

from typing import Any

import pytest

import libmoe
from against_oracle import compare, inputs, unsettle

CASES: dict[str, dict[str, Any]] = {  # 40 tokens: every expert has some tiles of rows
    "wide tokens": {"hidden_size": 1100, "intermediate_size": 70, "n_experts": 2, "top_k": 2},
    "wide experts": {"hidden_size": 70, "intermediate_size": 1100, "n_experts": 2, "top_k": 2},
    "nineteen experts": {"hidden_size": 70, "intermediate_size": 9, "n_experts": 24, "top_k": 19},
    "with a shared one": {
        "hidden_size": 70,
        "intermediate_size": 9,
        "n_experts": 24,
        "top_k": 8,
        "n_shared_experts": 1,
        "output_bias": True,
    },
}


@pytest.mark.parametrize("kind", [{}, {"expert_kind": "gated", "activation": "silu"}], ids=["MLP", "gated"])
@pytest.mark.parametrize("name", CASES)
def test_large_shapes(name: str, kind: dict[str, Any]) -> None:
    arguments = CASES[name] | kind
    layer = libmoe.Layer(**arguments, seed=3)
    unsettle(layer)
    compare(layer, arguments, *inputs(40, arguments["hidden_size"], seed=7))
