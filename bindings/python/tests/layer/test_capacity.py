"""Room in experts: how much, who gets it, and what becomes of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
from against_oracle import MATMULS, Arguments, check
from rooms import ROOMS

E, K, T = 8, 3, 40
SIZES: Arguments = {"hidden_size": 7, "intermediate_size": 11, "n_experts": E, "top_k": K}
TIGHT: Arguments = {**SIZES, "capacity_formula": "megatron", "capacity_factor": 0.7}
TRAINING: Arguments = {"training": True, "step": 2**35 + 3}
WEIGHTS: dict[str, Arguments] = {
    "scores": {"expert_scale": True},
    "as they are": {"router_normalize": False},
    "norm2": {"router_normalize": "norm2", "score": "sigmoid"},
    "topk_softmax": {"router_weights": "topk_softmax"},
    "topk_sigmoid": {"router_weights": "topk_sigmoid", "normalize_epsilon": 0.1},
    "equal": {"router_weights": "equal"},
    "sparsemixer": {"router_weights": "sparsemixer", "mask_threshold": 0.5},
}


# ------------------------------------------------------------------------------------------------------------
# How much
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_tokens", "n_experts", "top_k", "training", "settings", "room"), ROOMS)
def test_rooms(
    n_tokens: int, n_experts: int, top_k: int, training: bool, settings: Arguments, room: int
) -> None:
    """All tokens choose the first K experts, which compute as many as they have room for."""
    layer = libmoe.Layer(5, 3, n_experts, top_k, router_bias=False, **settings)
    layer.parameters["router.weight"].data[...] = 0
    x = np.ones((n_tokens, 5), np.float32)
    report = layer.forward(x, training=training).report
    taken = min(room, n_tokens)
    expected = [taken] * top_k + [0] * (n_experts - top_k)
    np.testing.assert_array_equal(report.tokens_per_expert, expected)
    np.testing.assert_array_equal(report.dropped_per_expert, np.where(expected, n_tokens - taken, 0))
    assert report.n_dropped == (n_tokens - taken) * top_k
    assert np.all(report.expert_indices[:taken] == np.arange(top_k))  # the first tokens
    assert np.all(report.expert_indices[taken:] == -1) and np.all(report.expert_weights[taken:] == 0)


FORMULAS = ["constant", "megatron", "deepspeed", "megablocks", "tutel", "fastmoe", "lucidrains", "nllb"]
FORMULAS += ["flaxformer", "classic", "classic_total"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas(formula: str, training: bool) -> None:
    arguments: Arguments = {**SIZES, "capacity_formula": formula, "capacity_factor": 0.55}
    arguments |= {"eval_capacity_factor": 0.45}
    if formula == "constant":
        arguments = {**SIZES, "capacity_formula": formula, "capacity": 9}
    if formula == "nllb":  # room for 10 in each, or 12 in evaluation
        arguments = {**SIZES, "capacity_formula": formula, "eval_capacity_factor": 0.3}
    if formula in ("fastmoe", "classic_total"):
        arguments |= {"capacity_factor": 0.3, "eval_capacity_factor": 0.25}
    truth = check(arguments, n_tokens=T, training=training)
    assert truth.report.n_dropped > 0


@pytest.mark.parametrize("factors", [{}, {"adaptive_high": 1.25, "adaptive_high_factor": 2.0}])
@pytest.mark.parametrize("overflow", ["drop", "next_best"])
def test_adaptive_rooms(overflow: str, factors: Arguments) -> None:
    arguments = {**SIZES, "capacity_formula": "megatron", "capacity_factor": 0.8, "adaptive_capacity": True}
    adaptive = check({**arguments, **factors, "overflow": overflow})
    fixed = check({**arguments, "adaptive_capacity": False, "overflow": overflow})
    assert not np.array_equal(adaptive.report.tokens_per_expert, fixed.report.tokens_per_expert)


@pytest.mark.parametrize(
    "drop", ["position", "choice_position", "probability", "batch_prioritized", "random"]
)
def test_rooms_of_each_sequence(drop: str) -> None:
    arguments = {**TIGHT, "capacity_per_sequence": True, "drop": drop}
    truth = check(arguments, sequence_length=10, **TRAINING)
    of_sequence = truth.report.expert_indices.reshape(4, -1)
    assert max(np.bincount(row[row >= 0]).max() for row in of_sequence) == 3  # ceil(10 * 3 / 8 * 0.7)


# ------------------------------------------------------------------------------------------------------------
# Who, and what becomes of the others
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("overflow", ["drop", "next_best"])
@pytest.mark.parametrize(
    "drop", ["position", "choice_position", "probability", "batch_prioritized", "random"]
)
def test_orders(drop: str, overflow: str, matmul: str) -> None:
    truth = check({**TIGHT, "drop": drop, "overflow": overflow}, matmul, T, **TRAINING)
    assert truth.report.n_dropped > 0


# Weights that are used as they are have nothing to divide afterwards.
@pytest.mark.parametrize(
    ("weights", "renormalize"),
    [(w, r) for w in WEIGHTS for r in ("before", "after") if (w, r) != ("as they are", "after")],
)
@pytest.mark.parametrize("overflow", ["drop", "next_best"])
def test_weights_of_what_is_left(weights: str, overflow: str, renormalize: str) -> None:
    arguments = {**TIGHT, **WEIGHTS[weights], "overflow": overflow, "renormalize": renormalize}
    truth = check(arguments)
    assert truth.report.n_dropped > 0


def test_tokens_without_any_expert() -> None:
    """They get 0, and no gradient but that of the losses."""
    truth = check({**SIZES, "capacity_formula": "constant", "capacity": 2, "renormalize": "after"})
    left_out = (truth.routing.indices < 0).all(axis=1)
    assert left_out.any() and not truth.y[left_out].any()


@pytest.mark.parametrize(
    "router",
    [
        {"n_groups": 4, "top_groups": 2, "selection_bias": True, "score": "sigmoid"},
        {"n_groups": 4, "top_groups": 2, "group_mask": "zero"},
        {"router": "hierarchical", "n_groups": 4, "top_groups": 3},
        {"router": "sinkhorn"},
        {"warmup_steps": 10, "warmup_experts": 5},
        {"dynamic_k": "threshold", "dynamic_value": 0.12},
    ],
    ids=["groups", "groups, zero", "hierarchical", "sinkhorn", "warm-up", "threshold"],
)
def test_the_next_best_is_one_that_may_be_chosen(router: Arguments) -> None:
    arguments = {**TIGHT, "capacity_factor": 0.5, "overflow": "next_best", **router}
    truth = check(arguments, n_tokens=41, training=True, step=5)
    assert np.any((truth.routing.indices != truth.routing.chosen) & (truth.routing.indices >= 0))


@pytest.mark.parametrize("overflow", ["drop", "next_best"])
def test_a_table_overflows_too(overflow: str) -> None:
    random = np.random.default_rng(0)
    table = np.array([random.permutation(E)[:K] for _ in range(5)], np.int32)
    arguments = {**TIGHT, "router": "hash", "hash_table": table, "overflow": overflow}
    truth = check(arguments, token_ids=random.integers(0, 5, T))
    assert np.any(truth.routing.indices != truth.routing.chosen)


def test_given_experts_always_have_room() -> None:
    given = np.zeros((T, K), np.int32) + np.arange(K, dtype=np.int32)
    assert check(TIGHT, expert_indices=given).report.n_dropped == 0


# Three tokens, three experts with room for one, whose probabilities these are.
CROWD = np.log(np.array([[0.5, 0.3, 0.2], [0.6, 0.25, 0.15], [0.7, 0.1, 0.2]], np.float32))


@pytest.mark.parametrize(
    ("options", "indices", "weights"),
    [
        ({}, [[0, 1], [-1, -1], [-1, 2]], [[0.5, 0.3], [0, 0], [0, 0.2]]),
        ({"drop": "probability"}, [[-1, 1], [-1, -1], [0, 2]], [[0, 0.3], [0, 0], [0.7, 0.2]]),
        ({"drop": "batch_prioritized"}, [[-1, -1], [-1, 1], [0, 2]], [[0, 0], [0, 0.25], [0.7, 0.2]]),
        ({"overflow": "next_best"}, [[0, 1], [2, -1], [-1, -1]], [[0.5, 0.3], [0.15, 0], [0, 0]]),
        (
            {"router_normalize": True, "renormalize": "before"},
            [[0, 1], [-1, -1], [-1, 2]],
            [[5 / 8, 3 / 8], [0, 0], [0, 2 / 9]],
        ),
        (
            {"router_normalize": True, "renormalize": "after"},
            [[0, 1], [-1, -1], [-1, 2]],
            [[5 / 8, 3 / 8], [0, 0], [0, 1]],
        ),
    ],
    ids=["position", "probability", "batch_prioritized", "next_best", "before", "after"],
)
def test_by_hand(options: Any, indices: list[list[int]], weights: list[list[float]]) -> None:
    room: Arguments = {"capacity_formula": "constant", "capacity": 1, "router_normalize": False}
    layer = libmoe.Layer(3, 4, 3, 2, router_bias=False, **{**room, **options})
    layer.parameters["router.weight"].data[...] = np.eye(3)
    report = layer.forward(CROWD).report
    np.testing.assert_array_equal(report.expert_indices, indices)
    np.testing.assert_allclose(report.expert_weights, np.array(weights), atol=1e-6)
