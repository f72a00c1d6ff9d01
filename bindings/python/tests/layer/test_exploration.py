"""Exploration in training: the library draws the oracle's random numbers, and none in evaluation."""

from __future__ import annotations

import numpy as np
import pytest

import libmoe
from against_oracle import MATMULS, Arguments, check, compare, inputs, unsettle
from comparison import assert_all_same_bits

E, K, T, H = 6, 2, 37, 7  # T and H are odd, so that no row begins at a block of random numbers
SIZES: Arguments = {"hidden_size": H, "intermediate_size": 11, "n_experts": E, "top_k": K}
SHARED: Arguments = {"n_shared_experts": 2, "shared_gate": "sigmoid"}
STEP = 2**40 + 5  # uses all of the counter

EXPLORATIONS: dict[str, Arguments] = {
    "jitter": {"jitter": 0.3},
    "jitter for the experts too": {"jitter": 0.3, "jitter_experts": True},
    "jitter, shared experts": {"jitter": 0.3, "jitter_experts": True, **SHARED},
    "dropout of the input": {"router_dropout": 0.25},
    "dropout of the logits": {"router_dropout": 0.25, "router_dropout_on": "logits"},
    "Gaussian noise": {"noise": "gaussian", "noise_std": 0.7},
    "learned noise": {"noise": "learned"},
    "learned noise, topk_softmax": {"noise": "learned", "router_weights": "topk_softmax"},
    "batch norm": {"router_batch_norm": True},
    "batch norm, own numbers": {
        "router_batch_norm": True,
        "batch_norm_momentum": 0.4,
        "batch_norm_epsilon": 0.3,
    },
    "norm of the gate": {"router_norm": "rms"},
    "norm of the gate, weight": {"router_norm": "rms_weight", "router_norm_scale": 1.7},
    "norm of the gate, epsilon": {"router_norm": "rms_weight", "router_norm_epsilon": 0.3, "jitter": 0.2},
    "norm of the gate, dropout": {"router_norm": "rms_weight", "router_dropout": 0.2, "noise": "learned"},
    "norm of the gate, hierarchical": {
        "router_norm": "rms_weight",
        "router_normalize": False,
        "router": "hierarchical",
        "n_groups": 3,
        "top_groups": 1,
    },
    "random second": {"random_second": True},
    "random second, after": {"random_second": True, "renormalize": "after"},
    "random second, capacity": {"random_second": True, "capacity_formula": "classic", "capacity_factor": 1.2},
    "random order": {"drop": "random", "capacity_formula": "classic"},
    "all of the input's": {"jitter": 0.2, "router_batch_norm": True, "router_dropout": 0.2},
    "all of the logits'": {
        "router_dropout": 0.2,
        "router_dropout_on": "logits",
        "noise": "learned",
        "jitter": 0.1,
    },
    "hierarchical": {
        "router": "hierarchical",
        "n_groups": 3,
        "top_groups": 1,
        "noise": "learned",
        "jitter": 0.1,
    },
    "experts choose": {"router": "expert_choice", "noise": "gaussian", "noise_std": 0.3},
}


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("exploration", EXPLORATIONS)
def test_training(exploration: str, matmul: str) -> None:
    check({**SIZES, **EXPLORATIONS[exploration], "seed": 2**40 + 1}, matmul, T, training=True, step=STEP)


@pytest.mark.parametrize("exploration", EXPLORATIONS)
def test_evaluation(exploration: str) -> None:
    check({**SIZES, **EXPLORATIONS[exploration]}, "native", T, seed=5, step=STEP)


@pytest.mark.parametrize("exploration", EXPLORATIONS)
def test_a_training_call_without_tokens(exploration: str) -> None:
    check({**SIZES, **EXPLORATIONS[exploration]}, "native", 0, training=True)


FIXED = ("batch norm", "norm of the gate")
RANDOM = [name for name in EXPLORATIONS if not name.startswith(FIXED)]


@pytest.mark.parametrize("exploration", RANDOM)
def test_seed_and_step_decide(exploration: str) -> None:
    arguments = {**SIZES, **EXPLORATIONS[exploration]}
    layer, other = libmoe.Layer(**arguments), libmoe.Layer(**arguments, seed=1)
    unsettle(layer)
    other.load_state_dict(layer.state_dict())
    x, _ = inputs(T, H)
    y = layer.forward(x, training=True, step=4).y
    np.testing.assert_array_equal(layer.forward(x, training=True, step=4).y, y)
    assert not np.array_equal(layer.forward(x, training=True, step=5).y, y)
    assert not np.array_equal(other.forward(x, training=True, step=4).y, y)


def test_a_random_number_belongs_to_its_token() -> None:
    """More tokens behind it change nothing."""
    layer = libmoe.Layer(**SIZES, jitter=0.3, noise="gaussian", noise_std=0.7, router_dropout=0.2)
    x, _ = inputs(T, H)
    few, many = (layer.forward(x[:n], training=True, step=4) for n in (5, T))
    np.testing.assert_array_equal(few.report.expert_indices, many.report.expert_indices[:5])
    np.testing.assert_array_equal(few.report.expert_weights, many.report.expert_weights[:5])


def test_running_statistics_follow_training_alone() -> None:
    """After many calls they are the tokens' mean and variance, and evaluation uses them."""
    arguments: Arguments = {**SIZES, "router_batch_norm": True}
    layer = libmoe.Layer(**arguments)
    np.testing.assert_array_equal(layer.buffers["router.norm.running_mean"], 0)
    np.testing.assert_array_equal(layer.buffers["router.norm.running_var"], 1)
    x, dy = inputs(T, H)
    x *= 3
    x += np.arange(H)
    for step in range(200):
        layer.forward(x, training=True, step=step)
    before = {name: values.copy() for name, values in layer.buffers.items()}
    np.testing.assert_allclose(before["router.norm.running_mean"], x.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(before["router.norm.running_var"], x.var(axis=0, ddof=1), rtol=1e-4)
    compare(layer, arguments, x, dy)
    assert_all_same_bits(before, layer.buffers)
