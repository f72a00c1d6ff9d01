"""Every loss of the router: values and gradients against the oracle, and values that are known."""

from __future__ import annotations

import numpy as np
import pytest

import libmoe
import oracle
from against_oracle import MATMULS, Arguments, check, inputs

E, K, T = 6, 3, 40
SIZES: Arguments = {"hidden_size": 7, "intermediate_size": 11, "n_experts": E, "top_k": K}
COUNTS = np.arange(E, dtype=np.int64) * 7
CALL: Arguments = {"sequence_length": 8, "global_counts": COUNTS}
TRAINING: Arguments = {**CALL, "training": True, "step": 3}
OF_LOADS = ["load", "shazeer", "tutel_importance_load"]  # which want noise
OTHERS = [kind for kind in oracle.LOSSES if kind not in OF_LOADS]


def with_loss(*kinds: str, **more: object) -> Arguments:
    """A layer whose aux_loss is these losses alone."""
    coefficients = {kind: 0.7 + 0.1 * number for number, kind in enumerate(kinds)}
    return {**SIZES, "balance_coef": 0.0, "z_coef": 0.0, "losses": coefficients, **more}


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("kind", OTHERS)
def test_losses(kind: str, score: str, matmul: str) -> None:
    check(with_loss(kind, score=score), matmul, T, **CALL)


@pytest.mark.parametrize("noise", [{"noise": "learned"}, {"noise": "gaussian", "noise_std": 0.6}])
@pytest.mark.parametrize("top_k", [1, 3, E])
@pytest.mark.parametrize("kind", OF_LOADS)
def test_losses_of_smooth_loads(kind: str, top_k: int, noise: Arguments) -> None:
    check(with_loss(kind, **noise, top_k=top_k), "native", T, **TRAINING)


@pytest.mark.parametrize("kind", OF_LOADS)
def test_smooth_loads_in_evaluation(kind: str) -> None:
    check(with_loss(kind, noise="learned"), "native", T, **CALL)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("kind", OTHERS)
def test_one_and_two_choices(kind: str, top_k: int) -> None:
    check(with_loss(kind, top_k=top_k), "native", T, **CALL)


ROUTERS: dict[str, Arguments] = {
    "a bias changes choices": {"selection_bias": True, "score": "sigmoid"},
    "groups": {"n_groups": 3, "top_groups": 2},
    "topk_softmax": {"router_weights": "topk_softmax"},
    "expert choice": {"router": "expert_choice"},
    "hierarchical": {"router": "hierarchical", "n_groups": 2, "top_groups": 1},
    "fewer choices": {"dynamic_k": "top_p", "dynamic_value": 0.5},
    "dropping": {"capacity_formula": "megatron", "capacity_factor": 0.6},
    "moving": {"capacity_formula": "megatron", "capacity_factor": 0.6, "overflow": "next_best"},
    "a random second": {"random_second": True, "top_k": 2},
}


@pytest.mark.parametrize("router", ROUTERS)
def test_all_losses_together(router: str) -> None:
    """Counts are those before dropping; the importance is that of the weights in use."""
    kinds = OTHERS
    if router == "expert choice":  # where there is no first choice
        kinds = [kind for kind in OTHERS if "gshard" not in kind]
    check(with_loss(*kinds, noise="learned", **ROUTERS[router]), "native", T, **TRAINING)


@pytest.mark.parametrize("top_k", [2, E])
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if "megatron" not in kind])
def test_losses_of_the_relu_router(kind: str, top_k: int) -> None:
    arguments = with_loss(kind, router="relu", score="identity", router_normalize=False, top_k=top_k)
    check(arguments, "native", T, **CALL)


def test_l1_counts_what_is_left_after_dropping() -> None:
    arguments = with_loss("l1", "l1_balanced", capacity_formula="megatron", capacity_factor=0.6)
    check(arguments, "native", T, **TRAINING)


@pytest.mark.parametrize("kind", oracle.LOSSES)
def test_no_tokens(kind: str) -> None:
    check(with_loss(kind, noise="learned"), "native", 0, training=True)


@pytest.mark.parametrize("kind", oracle.LOSSES)
def test_one_expert(kind: str) -> None:
    check(with_loss(kind, n_experts=1, top_k=1, noise="learned"), "native", 5, training=True)


def test_an_expert_named_twice_counts_once_or_twice() -> None:
    """E P_0 where all tokens have named expert 0 twice, and twice that where every choice counts."""
    layer = libmoe.Layer(**{**with_loss("balance", "balance_count"), "top_k": 2})
    given = np.zeros((T, 2), np.int32)
    report = layer.forward(inputs(T, 7)[0], expert_indices=given).report
    expected = E * report.mean_probability[0]
    assert report.losses["balance"] == pytest.approx(expected, rel=1e-5)
    assert report.losses["balance_count"] == pytest.approx(2 * expected, rel=1e-5)


def test_terms_add_up() -> None:
    """aux_loss is the sum over its terms; one that has a coefficient of its own may be there once more."""
    layer = libmoe.Layer(**SIZES, balance_coef=0.5, z_coef=0.25, losses={"z": 2.0, "switch": 3.0})
    report = layer.forward(inputs(T, 7)[0]).report
    assert report.losses["z"] == pytest.approx(report.z_loss)
    terms = 0.5 * report.balance_loss + 2.25 * report.z_loss + 3.0 * report.losses["switch"]
    assert report.aux_loss == pytest.approx(terms, rel=1e-6)


BALANCED = {
    "balance": 2,
    "balance_count": 2,
    "transformers": 2,
    "switch": 1,
    "switch_sequence": 1,
    "gshard": 1,
}
BALANCED |= {"deepspeed": 1, "megatron": 1, "megatron_sequence": 1, "tutel_gshard": 1}
BALANCED |= {"variance": 0, "importance": 0, "load": 0, "shazeer": 0, "tutel_importance_load": 0}


@pytest.mark.parametrize("kind", BALANCED)
def test_perfect_balance(kind: str) -> None:
    """Token t prefers expert t modulo E, and then the next one."""
    arguments: Arguments = {"router_bias": False, "noise": "learned", "losses": {kind: 1.0}}
    layer = libmoe.Layer(E, 4, E, 2, **arguments)
    layer.parameters["router.weight"].data[...] = np.eye(E)
    x = np.zeros((6 * E, E), np.float32)
    tokens = np.arange(len(x))
    x[tokens, tokens % E], x[tokens, (tokens + 1) % E] = 2, 1
    report = layer.forward(x, sequence_length=E).report
    assert report.losses[kind] == pytest.approx(BALANCED[kind], abs=1e-5)
    assert (report.max_over_mean, report.dead_share) == (1, 0)
    assert report.variation == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_many_tokens_in_sequences_with_padding(score: str) -> None:
    """More tokens than are routed at a time, in sequences that lie across; the second one is all padding."""
    mask = np.random.default_rng(1).random(300) < 0.8
    mask[50:100] = False
    call: Arguments = {**CALL, "sequence_length": 50, "valid_mask": mask}
    check(with_loss(*OTHERS, score=score), "native", 300, **call)


def test_many_tokens_of_smooth_loads() -> None:
    mask = np.random.default_rng(1).random(300) < 0.8
    arguments = with_loss(*OF_LOADS, "importance", noise="learned")
    check(arguments, "native", 300, valid_mask=mask, training=True)
