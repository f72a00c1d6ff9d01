"""Small models with latent attention, of sizes that are no round numbers."""

from __future__ import annotations

from typing import Any

from small_language_models import MOE

TURNS: dict[str, Any] = {"rotary_tables": [{"rotary_size": 4, "theta": 1e4}]}
LATENT: dict[str, Any] = dict(
    hidden_size=12,
    n_layers=2,
    n_heads=3,
    head_size=7,
    value_head_size=5,
    latent_rank=6,
    query_rank=10,
    vocabulary_size=17,
    rope_theta=0.0,
    seed=5,
    moe=MOE,
    **TURNS,
)
DENSE: dict[str, Any] = dict(moe=None, dense_kind="mlp", dense_activation="gelu", dense_intermediate_size=20)
CASES: dict[str, dict[str, Any]] = {
    "latent": LATENT,
    "queries from the hidden state": {**LATENT, "query_rank": 0, "value_head_size": 0},
    "biases, untied": {**LATENT, "qkv_bias": True, "output_bias": True, "tied_output": False},
    "nothing turns": {
        **LATENT,
        "rotary_tables": None,
        "max_positions": 40,
        "norm_epsilon": 1e-3,
        "latent_norm_epsilon": 0.1,
    },
    "wide values": {**LATENT, "value_head_size": 9, "head_size": 6, "attention_scale": 0.3},
    "windows, a chunk, sinks": {
        **LATENT,
        "sinks": True,
        "layers": [{"window": 4}, {"chunk": 3, "rotary": -1}],
    },
    "encoder after": {
        **LATENT,
        **DENSE,
        "vocabulary_size": 0,
        "norm": "layer",
        "norm_place": "post",
        "final_norm": False,
        "causal": False,
    },
    "attention alone": {
        **LATENT,
        "moe": None,
        "vocabulary_size": 0,
        "norm_place": "none",
        "final_norm": False,
        "qkv_bias": True,
    },
}
READING = [name for name, case in CASES.items() if case["vocabulary_size"]]
