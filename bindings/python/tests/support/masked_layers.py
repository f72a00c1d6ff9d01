"""Layers of every kind, and a mask, for tests of tokens that are padding."""

from __future__ import annotations

import numpy as np

import oracle
from against_oracle import Arguments

E, K, T, H = 8, 2, 40, 7
SIZES: Arguments = {"hidden_size": H, "intermediate_size": 11, "n_experts": E, "top_k": K}
RANDOM = np.random.default_rng(4)
MASK = RANDOM.random(T) < 0.7
GIVEN = RANDOM.integers(-1, E, (T, K)).astype(np.int32)
WEIGHTS = RANDOM.normal(size=(T, K)).astype(np.float32)
TABLE = np.array([RANDOM.permutation(E)[:K] for _ in range(5)], np.int32)
TIGHT: Arguments = {"capacity_formula": "megatron", "capacity_factor": 0.7}
OF_LOADS = {"load": 0.2, "shazeer": 0.3, "tutel_importance_load": 0.4}
LOSSES = {kind: 0.7 for kind in oracle.LOSSES if kind not in OF_LOADS}


# Arguments of the layer, options of the call by token, options of the call.
LAYERS: dict[str, tuple[Arguments, Arguments, Arguments]] = {
    "classic": ({}, {}, {}),
    "groups": ({"n_groups": 4, "top_groups": 2, "selection_bias": True}, {}, {}),
    "expert choice": ({"router": "expert_choice"}, {}, {}),
    "hierarchical": ({"router": "hierarchical", "n_groups": 4, "top_groups": 1}, {}, {}),
    "hash": ({"router": "hash", "hash_table": TABLE}, {"token_ids": RANDOM.integers(0, 5, T)}, {}),
    "sinkhorn": ({"router": "sinkhorn"}, {}, {"training": True}),
    "relu": ({"router": "relu", "score": "identity", "router_normalize": False}, {}, {"training": True}),
    "external": ({"router": "external"}, {"expert_indices": GIVEN, "expert_weights": WEIGHTS}, {}),
    "given experts": ({}, {"expert_indices": GIVEN}, {}),
    "complexity": ({"dynamic_k": "complexity", "dynamic_value": 1.1, "top_k": 4}, {}, {}),
    "batch norm": ({"router_batch_norm": True}, {}, {"training": True}),
    "dropping": ({**TIGHT, "drop": "batch_prioritized"}, {}, {}),
    "next best": ({**TIGHT, "overflow": "next_best", "renormalize": "after"}, {}, {}),
    "tutel": ({"capacity_formula": "tutel", "capacity_factor": -0.8}, {}, {}),
    "shared experts": ({"n_shared_experts": 2, "shared_gate": "sigmoid", "output_bias": True}, {}, {}),
    "residual": ({"n_shared_experts": 1, "shared_gate": "residual"}, {}, {}),
    "losses": ({"losses": {kind: c for kind, c in LOSSES.items() if "sequence" not in kind}}, {}, {}),
    "losses of loads": ({"losses": OF_LOADS, "noise": "learned"}, {}, {}),
}


# Where random numbers, or the places of tokens in the call, decide too.
PLACES: dict[str, tuple[Arguments, Arguments]] = {
    "losses of sequences": ({"losses": {k: c for k, c in LOSSES.items() if "sequence" in k}}, {}),
    "capacity of sequences": ({**TIGHT, "capacity_per_sequence": True}, {}),
    "experts choose in sequences": ({**TIGHT, "capacity_per_sequence": True, "router": "expert_choice"}, {}),
    "jitter": ({"jitter": 0.3, "jitter_experts": True}, {"training": True}),
    "dropout of the input": ({"router_dropout": 0.2}, {"training": True}),
    "dropout of the logits": ({"router_dropout": 0.2, "router_dropout_on": "logits"}, {"training": True}),
    "noise": ({"noise": "learned", "losses": OF_LOADS}, {"training": True}),
    "random second": ({"random_second": True}, {"training": True}),
    "random order": ({**TIGHT, "drop": "random"}, {"training": True}),
}
