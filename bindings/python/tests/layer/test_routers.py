"""Every router, and every way to choose and to weigh, against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
from against_oracle import MATMULS, Arguments, check, compare, inputs

E, K, T, WORDS = 12, 4, 40, 9  # experts, choices, tokens, token ids
SIZES: Arguments = {"hidden_size": 7, "intermediate_size": 11, "n_experts": E, "top_k": K}
RANDOM = np.random.default_rng(1)
TABLE = np.array([RANDOM.permutation(E)[:K] for _ in range(WORDS)], np.int32)
TOKEN_IDS = RANDOM.integers(0, WORDS, T)
# Some choices are none, some tokens have none, some name an expert twice.
GIVEN = RANDOM.integers(-1, E, (T, K)).astype(np.int32)
GIVEN[3], GIVEN[7] = -1, 5
WEIGHTS = RANDOM.normal(0.4, 0.3, (T, K)).astype(np.float32)

HASH: Arguments = {"router": "hash", "hash_table": TABLE}
RELU: Arguments = {"router": "relu", "score": "identity", "router_normalize": False}
GROUPED: Arguments = {"n_groups": 3, "top_groups": 2}
TRAINING: Arguments = {"training": True, "step": 3}

# Arguments of the layer, options of the call.
ROUTERS: dict[str, tuple[Arguments, Arguments]] = {
    "expert choice": ({"router": "expert_choice", "router_normalize": False}, {}),
    "expert choice, sum": ({"router": "expert_choice", "expert_scale": True}, {}),
    "expert choice, sigmoid": ({"router": "expert_choice", "score": "sigmoid"}, {}),
    "expert choice by logits": ({"router": "expert_choice", "router_weights": "topk_softmax"}, {}),
    "expert choice, capacity": (
        {"router": "expert_choice", "capacity_formula": "classic", "capacity_factor": 1.7},
        {},
    ),
    "expert choice, sequences": (
        {"router": "expert_choice", "capacity_per_sequence": True, "capacity_formula": "megatron"},
        {"sequence_length": 10},
    ),
    "hierarchical": ({"router": "hierarchical", **GROUPED}, {}),
    "hierarchical, as they are": ({"router": "hierarchical", **GROUPED, "router_normalize": False}, {}),
    "hierarchical, topk_softmax": (
        {"router": "hierarchical", **GROUPED, "router_weights": "topk_softmax"},
        {},
    ),
    "hierarchical, gates apart": (
        {"router": "hierarchical", **GROUPED, "router_weights": "group_softmax"},
        {},
    ),
    "hierarchical, gates apart, as they are": (
        {"router": "hierarchical", **GROUPED, "router_weights": "group_softmax", "router_normalize": False},
        {},
    ),
    "hierarchical, gates apart, dropping": (
        {
            "router": "hierarchical",
            **GROUPED,
            "router_weights": "group_softmax",
            "capacity_formula": "megatron",
            "capacity_factor": 0.8,
            "renormalize": "after",
            "expert_scale": True,
        },
        {},
    ),
    "hierarchical, gates apart, next best": (
        {
            "router": "hierarchical",
            **GROUPED,
            "router_weights": "group_softmax",
            "router_normalize": False,
            "capacity_formula": "megatron",
            "capacity_factor": 0.8,
            "overflow": "next_best",
        },
        {},
    ),
    "hierarchical, gates apart, given": (
        {"router": "hierarchical", **GROUPED, "router_weights": "group_softmax"},
        {"expert_indices": GIVEN},
    ),
    "hierarchical, one group": ({"router": "hierarchical", "n_groups": 3, "top_groups": 1}, {}),
    "hash": (HASH, {"token_ids": TOKEN_IDS}),
    "hash, sigmoid": ({**HASH, "score": "sigmoid", "router_normalize": False}, {"token_ids": TOKEN_IDS}),
    "hash, topk_softmax": ({**HASH, "router_weights": "topk_softmax"}, {"token_ids": TOKEN_IDS}),
    "hash, equal": ({**HASH, "router_weights": "equal"}, {"token_ids": TOKEN_IDS}),
    "relu": (RELU, {}),
    "relu, all experts": ({**RELU, "top_k": E}, {}),
    "relu, divided, scaled": (
        {"router": "relu", "score": "identity", "expert_scale": True, "routed_scale": 1.5},
        {},
    ),
    "relu, noise": ({**RELU, "noise": "learned"}, TRAINING),
    "relu, dropping": (
        {**RELU, "top_k": 8, "capacity_formula": "constant", "capacity": 11, "drop": "probability"},
        {},
    ),
    "relu, next best": (
        {**RELU, "capacity_formula": "constant", "capacity": 9, "overflow": "next_best"},
        {},
    ),
    "relu, given": (RELU, {"expert_indices": GIVEN}),
    "sinkhorn": ({"router": "sinkhorn"}, TRAINING),
    "sinkhorn, topk_softmax": ({"router": "sinkhorn", "router_weights": "topk_softmax"}, TRAINING),
    "sinkhorn, sigmoid": (
        {"router": "sinkhorn", "top_k": 1, "score": "sigmoid", "router_normalize": False},
        TRAINING,
    ),
    "sinkhorn in evaluation": ({"router": "sinkhorn"}, {}),
    "external": ({"router": "external"}, {"expert_indices": GIVEN, "expert_weights": WEIGHTS}),
    "given experts": ({}, {"expert_indices": GIVEN}),
    "given experts, topk_softmax": ({"router_weights": "topk_softmax"}, {"expert_indices": GIVEN}),
    "given experts and weights": ({}, {"expert_indices": GIVEN, "expert_weights": WEIGHTS}),
    "given experts, nothing at random": (
        {"top_k": 2, "random_second": True},
        {"expert_indices": np.ascontiguousarray(GIVEN[:, :2]), **TRAINING},
    ),
    "equal": ({"router_weights": "equal"}, {}),
    "equal, 1 each": ({"router_weights": "equal", "router_normalize": False}, {}),
    "sparsemixer": ({"router_weights": "sparsemixer", "mask_threshold": 0.3, "router_normalize": False}, {}),
    "sparsemixer, near": (
        {"router_weights": "sparsemixer", "mask_threshold": 0.02, "router_normalize": False},
        {},
    ),
    "sparsemixer, sum": ({"router_weights": "sparsemixer", "mask_threshold": 0.5, "top_k": 2}, {}),
    "normp": ({"router_normalize": "normp", "normalize_p": 3.5, "score": "identity"}, {}),
    "norm1 of probabilities": ({"router_normalize": "normp", "normalize_p": 1.0}, {}),
    "top_p": ({"dynamic_k": "top_p", "dynamic_value": 0.4}, {}),
    "top_p, at least 2": (
        {"dynamic_k": "top_p", "dynamic_value": 0.4, "min_k": 2, "router_normalize": False},
        {},
    ),
    "threshold": ({"dynamic_k": "threshold", "dynamic_value": 0.15}, {}),
    "threshold, sigmoid": ({"dynamic_k": "threshold", "dynamic_value": 0.8, "score": "sigmoid"}, {}),
    "threshold, bias": ({"dynamic_k": "threshold", "dynamic_value": 0.15, "selection_bias": True}, {}),
    "complexity": ({"dynamic_k": "complexity", "dynamic_value": 0.9}, {}),
    "complexity, topk_softmax": (
        {"dynamic_k": "complexity", "dynamic_value": 1.2, "router_weights": "topk_softmax"},
        {},
    ),
    "complexity of little": ({"dynamic_k": "complexity"}, {}),
    "warm-up begins": ({"warmup_steps": 10}, {"training": True}),
    "warm-up": ({"warmup_steps": 10, "warmup_experts": 5}, TRAINING),
    "warm-up is over": ({"warmup_steps": 10}, {"training": True, "step": 2**40}),
}


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("router", ROUTERS)
def test_routers(router: str, matmul: str) -> None:
    arguments, call = ROUTERS[router]
    check({**SIZES, **arguments}, matmul, T, **call)


@pytest.mark.parametrize("n_tokens", [0, 1, 5])
@pytest.mark.parametrize("router", ["expert choice", "hierarchical", "sparsemixer", "top_p", "complexity"])
def test_few_tokens(router: str, n_tokens: int) -> None:
    arguments, call = ROUTERS[router]
    check({**SIZES, **arguments}, "native", n_tokens, **call)


@pytest.mark.parametrize("n_tokens", [0, 5])  # of a single token Sinkhorn's iteration makes all alike
def test_sinkhorn_of_few_tokens(n_tokens: int) -> None:
    arguments, call = ROUTERS["sinkhorn"]
    check({**SIZES, **arguments}, "native", n_tokens, **call)


def test_every_dynamic_k_takes_choices_away() -> None:
    """Else the comparisons above would not see it."""
    for router in ("top_p", "top_p, at least 2", "threshold", "threshold, sigmoid", "complexity"):
        arguments, _ = ROUTERS[router]
        used = (check({**SIZES, **arguments}).routing.indices >= 0).sum(axis=1)
        assert used.min() < K and used.max() > 1, router


def test_experts_prefer_the_lowest_token_among_equals() -> None:
    layer = libmoe.Layer(**SIZES, router="expert_choice")
    layer.parameters["router.weight"].data[...] = 0
    x, _ = inputs(9, 7)
    report = layer.forward(x).report
    np.testing.assert_array_equal(report.tokens_per_expert, 3)  # ceil(9 * 4 / 12)
    np.testing.assert_array_equal((report.expert_indices >= 0).all(axis=1), np.arange(9) < 3)


def test_warm_up_is_remembered_in_evaluation() -> None:
    arguments: Arguments = {**SIZES, "warmup_steps": 8, "warmup_experts": 4}
    layer = libmoe.Layer(**arguments)
    x, dy = inputs(T, 7)
    for step, active in ((0, 4), (4, 8), (7, 11), (8, 12)):
        layer.zero_grad()
        layer.forward(x, training=True, step=step)
        np.testing.assert_array_equal(layer.buffers["router.active_experts"], active)
        truth = compare(layer, arguments, x, dy)
        assert truth.routing.indices.max() < active


def test_a_table_of_its_own_has_distinct_experts_by_seed() -> None:
    def chosen(seed: int) -> Any:
        layer = libmoe.Layer(**SIZES, router="hash", vocabulary_size=500, seed=seed)
        ids = np.arange(500)
        return layer.forward(inputs(500, 7)[0], token_ids=ids).report.expert_indices

    indices = chosen(0)
    assert all(len(set(row)) == K for row in indices.tolist())
    counts = np.bincount(indices.ravel(), minlength=E)
    assert np.abs(counts - 500 * K / E).max() < 5 * np.sqrt(500 * K / E)
    np.testing.assert_array_equal(chosen(0), indices)
    assert not np.array_equal(chosen(1), indices)


def test_the_table_is_the_callers() -> None:
    layer = libmoe.Layer(**SIZES, **HASH)
    report = layer.forward(inputs(T, 7)[0], token_ids=TOKEN_IDS).report
    np.testing.assert_array_equal(report.expert_indices, TABLE[TOKEN_IDS])


def test_without_a_gate_there_is_no_router_weight() -> None:
    for arguments in ({"router": "external"}, {**HASH, "router_weights": "equal"}):
        names = libmoe.Layer(**{**SIZES, **arguments}).parameters
        assert not any(name.startswith("router.") for name in names)
