"""Threads share the work out and change no bit, with more tokens than one thread takes at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
from against_oracle import Arguments, check, inputs, unsettle
from comparison import assert_all_same_bits, gradients_of

E, K, T, H = 12, 4, 333, 35
SIZES: Arguments = {"hidden_size": H, "intermediate_size": 21, "n_experts": E, "top_k": K}
TIGHT: Arguments = {"capacity_formula": "megatron", "capacity_factor": 0.7}
RANDOM = np.random.default_rng(0)
TABLE = np.array([RANDOM.permutation(E)[:K] for _ in range(50)], np.int32)
MIXED: list[Arguments] = [
    {"n_experts": 5, "intermediate_size": 21, "expert_kind": "gated", "activation": "silu"},
    {"n_experts": 3, "expert_kind": "constant"},
    {"n_experts": 4, "expert_kind": "linear"},
]

# Arguments of the layer, options of the call.
LAYERS: dict[str, tuple[Arguments, Arguments]] = {
    "expert choice": ({"router": "expert_choice"}, {}),
    "hierarchical": ({"router": "hierarchical", "n_groups": 3, "top_groups": 2, "noise": "learned"}, {}),
    "hash": ({"router": "hash", "hash_table": TABLE}, {"token_ids": RANDOM.integers(0, 50, T)}),
    "sinkhorn": ({"router": "sinkhorn"}, {}),
    "relu": ({"router": "relu", "score": "identity", "router_normalize": False}, {}),
    "complexity": ({"dynamic_k": "complexity", "dynamic_value": 2.1}, {}),
    "exploration": ({"jitter": 0.1, "router_batch_norm": True, "router_dropout": 0.1}, {}),
    "dropping": ({**TIGHT, "drop": "random", "renormalize": "after"}, {}),
    "next best": ({**TIGHT, "drop": "choice_position", "overflow": "next_best"}, {}),
    "mixed": ({"expert_groups": MIXED, "intermediate_size": 0, "n_shared_experts": 2}, {}),
    "residual": ({"n_shared_experts": 1, "shared_gate": "residual"}, {}),
    "losses": (
        {"losses": {"shazeer": 0.1, "megatron_sequence": 0.2, "variance": 0.3, "z": 0.4}, "noise": "learned"},
        {"sequence_length": 37},
    ),
    "norm of the gate": ({"router_norm": "rms_weight", "jitter": 0.1}, {}),
    "two gates apart": (
        {"router": "hierarchical", "n_groups": 3, "top_groups": 2, "router_weights": "group_softmax"},
        {},
    ),
    "a mask of losses": (
        {"losses": {"balance_positive": 0.3, "switch_sequence": 0.2}, "noise": "learned"},
        {
            "valid_mask": RANDOM.random(T) < 0.8,
            "loss_mask": RANDOM.random(T) < 0.7,
            "noise": RANDOM.normal(size=(T, E)).astype(np.float32),
            "sequence_length": 37,
        },
    ),
    "padding": ({"selection_bias": True, "output_bias": True}, {"valid_mask": RANDOM.random(T) < 0.8}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_many_tokens(name: str) -> None:
    arguments, call = LAYERS[name]
    check({**SIZES, **arguments}, n_tokens=T, training=True, step=2, **call)


@pytest.mark.parametrize("matmul", ["native", "openblas"])
@pytest.mark.parametrize("name", LAYERS)
def test_threads_change_no_bit(name: str, matmul: Any) -> None:
    arguments, call = LAYERS[name]
    x, dy = inputs(T, H)
    results = []
    for n_threads in (1, 2, 3):
        with libmoe.Context(n_threads=n_threads, matmul=matmul) as context:
            layer = libmoe.Layer(**{**SIZES, **arguments}, context=context)
            unsettle(layer)
            tape = layer.tape()
            output = layer.forward(x, tape=tape, training=True, step=2, **call)
            found = gradients_of(layer, layer.backward(tape, dy)) | {"y": output.y}
            for field in ("expert_indices", "expert_weights", "mean_probability", "aux_loss", "entropy"):
                found[field] = getattr(output.report, field)
            results.append(found | {name: values.copy() for name, values in layer.buffers.items()})
    for other in results[1:]:
        assert_all_same_bits(other, results[0])
