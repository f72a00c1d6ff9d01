"""Values of the oracle that are known from elsewhere: by hand, from papers, from the authors' own code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import oracle
from oracle import capacity, choice, losses, philox, weights
from rooms import ROOMS

E, K, T = 8, 2, 64


def route(z: oracle.Array, call: dict[str, Any] | None = None, **settings: Any) -> oracle.Forward:
    """A layer of identical, silent experts whose logits are x: [T,E]."""
    n_experts = z.shape[1]
    more = {"top_k": K, **settings}
    parameters = {
        "router.weight": np.eye(n_experts),
        "experts.weight": np.zeros((n_experts, n_experts, n_experts)),
        **more.pop("parameters", {}),
    }
    return oracle.forward(oracle.Settings.of(more), parameters, z, options=oracle.Options(**(call or {})))


# ------------------------------------------------------------------------------------------------------------
# Random numbers
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, (2**32 - 1, 2**32 - 1), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter: list[int], key: tuple[int, int], expected: str) -> None:
    """The known answers of Random123, by the authors of Philox."""
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
    (drawn,) = philox.philox((c0, c1, c2, c3), key)
    assert " ".join(f"{int(word):08x}" for word in drawn) == expected


def test_distributions() -> None:
    words = philox.words(3, 17, 5, 20000)
    uniform, normal = philox.symmetric(words), philox.normal(3, 19, 5, 20000)
    assert abs(uniform.mean()) < 0.02 and abs(uniform.var() - 1 / 3) < 0.01 and np.abs(uniform).max() < 1
    assert abs(normal.mean()) < 0.03 and abs(normal.var() - 1) < 0.04
    assert np.mean(np.abs(normal) < 1.96) == pytest.approx(0.95, abs=0.006)
    assert not np.array_equal(normal, philox.normal(3, 19, 6, 20000))


# ------------------------------------------------------------------------------------------------------------
# Choice
# ------------------------------------------------------------------------------------------------------------


def test_a_hierarchy_multiplies_probabilities() -> None:
    random = np.random.default_rng(0)
    parameters = {"router.weight": random.normal(size=(6, 4)), "experts.weight": np.zeros((6, 4, 4))}
    parameters["router.coarse.weight"] = random.normal(size=(2, 4))
    x = random.normal(size=(20, 4))
    settings = oracle.Settings(2, router="hierarchical", n_groups=2, top_groups=1, router_normalize=False)
    routing = oracle.forward(settings, parameters, x).routing
    coarse = np.exp(x @ parameters["router.coarse.weight"].T)
    fine = np.exp(x @ parameters["router.weight"].T).reshape(20, 2, 3)
    p = coarse / coarse.sum(axis=1, keepdims=True)
    p = (p[:, :, None] * fine / fine.sum(axis=2, keepdims=True)).reshape(20, 6)
    np.testing.assert_allclose(routing.probabilities, p)
    np.testing.assert_array_equal(routing.indices // 3, coarse.argmax(axis=1)[:, None].repeat(2, axis=1))
    np.testing.assert_allclose(routing.weights, np.take_along_axis(p, routing.indices, axis=1))


def test_sinkhorn_balances_experts() -> None:
    """With every token's factor put back, rows sum to 1/T and columns to 1/E."""
    by = np.exp(choice.sinkhorn(np.random.default_rng(0).normal([3, 0, 0, 0], 1, (64, 4))))
    by /= 64 * by.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(by.sum(axis=0), 1 / 4, atol=1e-3)


def test_experts_choose_their_best_tokens() -> None:
    z = np.random.default_rng(0).normal(size=(12, 4))
    routing = route(z, router="expert_choice", router_normalize=False).routing
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    for e in range(4):
        tokens = np.flatnonzero((routing.indices == e).any(axis=1))
        np.testing.assert_array_equal(tokens, np.sort(np.argsort(-p[:, e])[:6]))  # C = 12 * 2 / 4


def test_sparsemixer_is_that_of_phimoe() -> None:
    """transformers' sparsemixer in evaluation: mask by relative distance, softmax, next without the first."""
    z, epsilon = np.random.default_rng(0).normal(size=(50, E)), 0.3
    routing = route(z, router_weights="sparsemixer", mask_threshold=epsilon, router_normalize=False).routing
    left = z.copy()
    for k in range(2):
        best = left.max(axis=1, keepdims=True)
        far = (best - z) / np.maximum(np.abs(z), best) > 2 * epsilon
        gates = np.where(far, 0, np.exp(left))
        shares = gates / gates.sum(axis=1, keepdims=True)
        chosen = left.argmax(axis=1)[:, None]
        np.testing.assert_array_equal(routing.indices[:, k], chosen[:, 0])
        np.testing.assert_allclose(routing.weights[:, [k]], np.take_along_axis(shares, chosen, axis=1))
        np.put_along_axis(left, chosen, -np.inf, axis=1)


def test_softmax_before_and_after_the_choice_agree() -> None:
    z = np.random.default_rng(0).normal(size=(50, E))
    after = route(z, router_weights="topk_softmax").routing
    np.testing.assert_allclose(route(z).routing.weights, after.weights)


def test_dynamic_k_by_hand() -> None:
    z = np.log([[0.6, 0.25, 0.1, 0.05], [0.3, 0.28, 0.22, 0.2]])
    top_p = route(z, top_k=3, dynamic_k="top_p", dynamic_value=0.7).routing
    np.testing.assert_array_equal(top_p.indices, [[0, 1, -1], [0, 1, 2]])
    np.testing.assert_allclose(top_p.weights[0], [0.6 / 0.85, 0.25 / 0.85, 0])
    threshold = route(z, top_k=3, dynamic_k="threshold", dynamic_value=0.29, min_k=1).routing
    np.testing.assert_array_equal(threshold.indices, [[0, -1, -1], [0, -1, -1]])
    z = np.diag([2.0, 4.0, 6.0, 0.5])  # of mean norm 3.125
    assert (route(z, top_k=4, dynamic_k="complexity", dynamic_value=1.5).routing.indices >= 0).sum() == 8


def test_norms() -> None:
    values = np.array([[0.5, -2.0, 1.0]])
    counted = np.ones((1, 3), bool)
    for p, name in ((1.0, "norm1"), (2.0, "norm2"), (3.0, "normp")):
        settings = oracle.Settings(3, router_normalize=name, normalize_p=3.0)
        size, _ = weights.divisor(settings, values, counted)
        assert size.item() == pytest.approx(np.linalg.norm(values[0], p))


# ------------------------------------------------------------------------------------------------------------
# Capacity
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "e", "k", "training", "settings", "expected"), ROOMS)
def test_rooms(t: int, e: int, k: int, training: bool, settings: dict[str, Any], expected: int) -> None:
    assert capacity.room(oracle.Settings(k, **settings), t, e, training, fullest=t) == expected


def test_adaptive_rooms() -> None:
    settings = oracle.Settings(1, capacity_formula="constant", capacity=10, adaptive_capacity=True)
    loads = np.array([0, 4, 5, 15, 16])  # below half of 10, above one and a half
    np.testing.assert_array_equal(capacity.rooms(settings, loads, 40, True), [8, 8, 10, 10, 12])


# Three tokens, three experts; every expert has room for one.
CROWD = np.log([[0.5, 0.3, 0.2], [0.6, 0.25, 0.15], [0.7, 0.1, 0.2]])


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        ("position", [[0, 1], [-1, -1], [-1, 2]]),
        ("choice_position", [[0, 1], [-1, -1], [-1, 2]]),
        ("probability", [[-1, 1], [-1, -1], [0, 2]]),
        ("batch_prioritized", [[-1, -1], [-1, 1], [0, 2]]),
    ],
)
def test_drop_orders_by_hand(drop: str, expected: list[list[int]]) -> None:
    done = route(CROWD, router_normalize=False, capacity_formula="constant", capacity=1, drop=drop).report
    np.testing.assert_array_equal(done.expert_indices, expected)
    assert done.n_dropped == 3 and done.dropped_per_expert.tolist() == [2, 1, 0]


def test_overflow_by_hand() -> None:
    """Token 0 takes 0 and 1; 1 finds only 2 for its first choice, nothing for its second; 2 nothing."""
    crowd: dict[str, Any] = {
        "capacity_formula": "constant",
        "capacity": 1,
        "overflow": "next_best",
        "router_normalize": False,
    }
    done = route(CROWD, **crowd).report
    np.testing.assert_array_equal(done.expert_indices, [[0, 1], [2, -1], [-1, -1]])
    np.testing.assert_allclose(done.expert_weights, np.array([[0.5, 0.3], [0.15, 0], [0, 0]]))


@pytest.mark.parametrize(("renormalize", "weight"), [("before", 0.2 / 0.9), ("after", 1.0)])
def test_renormalisation_by_hand(renormalize: str, weight: float) -> None:
    done = route(CROWD, capacity_formula="constant", capacity=1, renormalize=renormalize).report
    expected = np.array([[0.5 / 0.8, 0.3 / 0.8], [0, 0], [0, weight]])
    np.testing.assert_allclose(done.expert_weights, expected)


# ------------------------------------------------------------------------------------------------------------
# Losses
# ------------------------------------------------------------------------------------------------------------

BALANCED = {"balance": K, "balance_count": K, "transformers": K, "switch": 1, "switch_sequence": 1}
BALANCED |= {"gshard": 1, "deepspeed": 1, "megatron": 1, "megatron_sequence": 1, "megatron_global": 1}
BALANCED |= {"variance": 0, "importance": 0, "load": 0, "shazeer": 0}
BALANCED |= {"tutel_gshard": 1, "tutel_importance_load": 0}


@pytest.mark.parametrize("kind", BALANCED)
def test_balanced_values(kind: str) -> None:
    """Every token has another favourite in turn, the next expert being its second."""
    z = np.zeros((T, E))
    for rank in range(K):
        z[np.arange(T), (np.arange(T) + rank) % E] = 2.0 - rank
    options = {"sequence_length": E, "global_counts": np.full(E, 3)}
    report = route(z, options, losses={kind: 1.0}, noise="gaussian", noise_std=0.5).report
    assert report.losses[kind] == pytest.approx(BALANCED[kind], abs=1e-12)


def test_collapse() -> None:
    """All tokens on one expert: E P_0 for one choice, and the largest values of the others."""
    z = np.tile([30.0, 0, 0, 0], (10, 1))
    report = route(z, top_k=1, losses=dict.fromkeys(("switch", "gshard", "megatron", "variance"), 1.0)).report
    assert report.losses["switch"] == pytest.approx(4) and report.losses["gshard"] == pytest.approx(4)
    assert report.losses["megatron"] == pytest.approx(4)
    assert report.losses["variance"] == pytest.approx(25 / 6.25)  # of 10, 0, 0, 0
    assert (report.max_over_mean, report.dead_share) == (4.0, 0.75)
    assert report.variation == pytest.approx(np.sqrt(3))


def test_transformers_loss_is_that_of_its_code() -> None:
    """load_balancing_loss_func: one-hot of top-k [T,K,E], means over tokens, sum over k and e, times E."""
    z = np.random.default_rng(0).normal(size=(T, E))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    one_hot = np.eye(E)[np.argsort(-p, axis=1)[:, :K]]
    expected = E * (one_hot.mean(axis=0) * p.mean(axis=0)[None]).sum()
    assert route(z, losses={"transformers": 1.0}).report.losses["transformers"] == pytest.approx(expected)


def test_load_is_the_chance_to_be_chosen_again() -> None:
    """Against the share of many new draws of one logit's noise that leave it among the K best."""
    random = np.random.default_rng(0)
    clean, noise, deviation = random.normal(size=(3, 4)), random.normal(size=(3, 4)), 0.7
    noisy = clean + deviation * noise
    chances = np.empty((3, 4))
    for t, e in np.ndindex(3, 4):
        others = np.delete(noisy[t], e)
        again = clean[t, e] + deviation * random.normal(size=200000)
        chances[t, e] = np.mean((others[None] > again[:, None]).sum(axis=1) < K)
    draws = oracle.Draws(noise=noise)
    report = route(
        clean, {"training": True, "draws": draws}, noise="gaussian", noise_std=deviation, losses={"load": 1.0}
    ).report
    loads = chances.sum(axis=0)
    assert report.losses["load"] == pytest.approx(loads.var(ddof=1) / loads.mean() ** 2, rel=0.02)


def test_pooled_loss_is_that_of_all_tokens_together() -> None:
    z = np.random.default_rng(0).normal(size=(T, E))
    cut = T // 4
    layers = [route(part, losses={"transformers": 1.0}).report for part in (z[:cut], z[cut:])]
    counts, n_valid = np.array([r.tokens_per_expert for r in layers]), np.array([r.n_valid for r in layers])
    means = np.array([r.mean_probability for r in layers])
    value, d_means = losses.pooled_balance(counts, n_valid, means)
    assert value == pytest.approx(route(z, losses={"transformers": 1.0}).report.losses["transformers"])
    ahead, _ = losses.pooled_balance(counts, n_valid, means + 1e-6 * d_means)
    assert (ahead - value) / 1e-6 == pytest.approx((d_means**2).sum(), rel=1e-6)
