"""The oracle's gradients are the slopes of its own forward; test_parity.py compares both with PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import oracle

T, H, E, INNER, K = 19, 5, 6, 7, 2
Arguments = dict[str, Any]

# One layer for each path through the oracle. T tokens are one or, with sequence_length, several sequences.
TRAINING = {"training": True}
CASES: dict[str, tuple[Arguments, Arguments]] = {  # settings, options
    "unnormalized": ({"router_normalize": False}, {}),
    "topk_softmax": ({"router_weights": "topk_softmax"}, {}),
    "topk_sigmoid": ({"router_weights": "topk_sigmoid", "router_normalize": "norm2"}, {}),
    "sigmoid, normp": ({"score": "sigmoid", "router_normalize": "normp", "normalize_p": 3.0}, {}),
    "sqrt_softplus": ({"score": "sqrt_softplus", "routed_scale": 2.5, "selection_bias": True}, {}),
    "identity, norm1": ({"score": "identity", "router_normalize": "norm1", "normalize_epsilon": 0.3}, {}),
    "least": ({"normalize_epsilon": 0.9, "epsilon_form": "least", "expert_scale": True}, {}),
    "equal": ({"router_weights": "equal"}, {}),
    "sparsemixer": ({"router_weights": "sparsemixer", "mask_threshold": 0.4, "router_normalize": False}, {}),
    "groups": ({"n_groups": 3, "top_groups": 2, "group_top_m": 2, "score": "sigmoid"}, {}),
    "expert choice": ({"router": "expert_choice", "router_normalize": False}, {}),
    "expert choice by logits": ({"router": "expert_choice", "router_weights": "topk_softmax"}, {}),
    "hierarchical": ({"router": "hierarchical", "n_groups": 3, "top_groups": 2}, {}),
    "hierarchical, noise": (
        {
            "router": "hierarchical",
            "n_groups": 3,
            "top_groups": 1,
            "noise": "learned",
            "router_normalize": False,
        },
        TRAINING,
    ),
    "hash": ({"router": "hash", "router_normalize": False}, {}),
    "sinkhorn": ({"router": "sinkhorn", "router_weights": "topk_softmax"}, TRAINING),
    "external": ({"router": "external"}, {}),
    "jitter for the gate": ({"jitter": 0.4}, TRAINING),
    "jitter for all": ({"jitter": 0.4, "jitter_experts": True, "n_shared": 2}, TRAINING),
    "dropout of input": ({"router_dropout": 0.3}, TRAINING),
    "dropout of logits": ({"router_dropout": 0.3, "router_dropout_on": "logits"}, TRAINING),
    "Gaussian noise": ({"noise": "gaussian", "noise_std": 0.8, "losses": {"shazeer": 0.7}}, TRAINING),
    "learned noise": ({"noise": "learned", "losses": {"shazeer": 0.7}}, TRAINING),
    "learned noise, no draw": ({"noise": "learned", "losses": {"tutel_importance_load": 0.7}}, {}),
    "batch norm": ({"router_batch_norm": True, "jitter": 0.1, "router_dropout": 0.2}, TRAINING),
    "batch norm, evaluation": ({"router_batch_norm": True}, {}),
    "top_p": ({"dynamic_k": "top_p", "dynamic_value": 0.5, "top_k": 3, "min_k": 2}, {}),
    "threshold": ({"dynamic_k": "threshold", "dynamic_value": 0.3}, {}),
    "complexity": ({"dynamic_k": "complexity", "dynamic_value": 0.9, "top_k": 4}, {}),
    "hierarchical, warm-up": (
        {"router": "hierarchical", "n_groups": 3, "top_groups": 1, "warmup_steps": 10, "warmup_experts": 5},
        {**TRAINING, "step": 5},
    ),
    "noise and dropout": (
        {"noise": "learned", "router_dropout": 0.3, "router_dropout_on": "logits"},
        TRAINING,
    ),
    "warm-up": ({"warmup_steps": 10, "warmup_experts": 3}, {**TRAINING, "step": 5}),
    "random second": ({"random_second": True}, TRAINING),
    "random second, after": ({"random_second": True, "renormalize": "after"}, TRAINING),
    "shared": ({"n_shared": 2, "output_bias": True}, {}),
    "shared, sigmoid": ({"n_shared": 2, "shared_gate": "sigmoid"}, {}),
    "shared, residual": ({"n_shared": 1, "shared_gate": "residual", "output_bias": True}, {}),
    "weight on input": ({"weight_on_input": True, "mixed": True}, {}),
    "mixed": ({"mixed": True, "router_normalize": False}, {}),
}
CAPACITY: Arguments = {"capacity_formula": "megatron", "capacity_factor": 0.7, "expert_scale": True}
for drop in ("position", "choice_position", "probability", "batch_prioritized", "random"):
    CASES[f"drop by {drop}"] = ({**CAPACITY, "drop": drop}, TRAINING)
for overflow in ("drop", "next_best"):
    for weights in ("scores", "topk_softmax", "sparsemixer"):
        for renormalize in ("before", "after"):
            more: Arguments = {"overflow": overflow, "router_weights": weights, "renormalize": renormalize}
            more |= {"mask_threshold": 0.4} if weights == "sparsemixer" else {}
            CASES[f"{overflow}, {weights}, {renormalize}"] = ({**CAPACITY, **more}, {})
CASES["capacity by sequence"] = (
    {**CAPACITY, "capacity_per_sequence": True, "adaptive_capacity": True},
    {"sequence_length": 5},
)
for kind in oracle.LOSSES:
    if kind not in ("load", "shazeer", "tutel_importance_load"):
        for score in ("softmax", "sigmoid"):
            CASES[f"{kind}, {score}"] = ({"losses": {kind: 0.7}, "score": score}, {"sequence_length": 5})
for kind in ("load", "shazeer", "tutel_importance_load"):
    CASES[f"{kind}, learned"] = ({"losses": {kind: 0.7}, "noise": "learned"}, TRAINING)


def parameters_of(settings: Arguments, random: np.random.Generator) -> oracle.Parameters:
    """Random parameters under libmoe's names; MLP experts, or one group of each kind."""

    def normal(*shape: int) -> oracle.Array:
        return random.normal(size=shape)

    def mlp(prefix: str, n: int) -> oracle.Parameters:
        up = {f"{prefix}.up.weight": normal(n, INNER, H), f"{prefix}.up.bias": normal(n, INNER)}
        down = {f"{prefix}.down.weight": normal(n, H, INNER), f"{prefix}.down.bias": normal(n, H)}
        return up | down

    p: oracle.Parameters = {}
    if settings.get("router") != "external":
        p |= {"router.weight": normal(E, H), "router.bias": normal(E)}
    if settings.get("mixed"):
        p |= mlp("experts.0", 1) | {"experts.1.constant": normal(1, H)}
        p |= {"experts.4.weight": normal(1, H, H), "experts.4.bias": normal(1, H)}
    else:
        p |= mlp("experts", E)
    n_shared = settings.get("n_shared", 0)
    if n_shared:
        p |= mlp("shared", n_shared)
    if settings.get("shared_gate") == "sigmoid":
        p["shared.router.weight"] = normal(n_shared, H)
    elif settings.get("shared_gate") == "residual":
        p |= {"shared.router.weight": normal(2, H), "shared.router.bias": normal(2)}
    if settings.get("output_bias"):
        p["output.bias"] = normal(H)
    if settings.get("expert_scale"):
        p["router.expert_scale"] = 1 + 0.3 * normal(E)
    if settings.get("selection_bias"):
        p["router.selection_bias"] = 0.3 * normal(E)
    if settings.get("router") == "hierarchical":
        p |= {"router.coarse.weight": normal(3, H), "router.coarse.bias": normal(3)}
    if settings.get("noise") == "learned":
        p["router.noise.weight"] = normal(E, H)
    if settings.get("router_batch_norm"):
        p |= {"router.norm.weight": normal(H), "router.norm.bias": normal(H)}
        p |= {"router.norm.running_mean": normal(H), "router.norm.running_var": normal(H) ** 2}
    return p


def prepare(
    arguments: Arguments, call: Arguments
) -> tuple[oracle.Settings, oracle.Parameters, oracle.Options, oracle.Array]:
    """A layer, its parameters and "x" together, the options of a call, and dy."""
    random = np.random.default_rng(7)
    own: Arguments = {"top_k": K, "n_experts": E, "balance_coef": 0.3, "z_coef": 0.2, **arguments}
    kinds = ["", "constant", "identity", "zero", ""]
    if own.get("mixed"):
        own["expert_groups"] = [{"n_experts": 2 if k == "zero" else 1, "expert_kind": k} for k in kinds]
    options = {"valid_mask": random.random(T + 1) < 0.9, **call}
    if own.get("router") == "hash":
        own["hash_table"] = np.array([random.permutation(E)[:K] for _ in range(10)])
        options["token_ids"] = random.integers(0, 10, T + 1)
    if own.get("router") == "external":
        options["expert_indices"] = random.integers(-1, E, (T + 1, K))  # some name one expert twice
        options["expert_weights"] = random.normal(size=(T + 1, K))
    settings = oracle.Settings.of(own)
    if options.get("training"):
        options["draws"] = oracle.draw(settings, T + 1, H, E, options.get("step", 0))
    point = parameters_of(own, random) | {"x": random.normal(size=(T + 1, H))}
    return settings, point, oracle.Options(**options), random.normal(size=(T + 1, H))


def run(
    settings: oracle.Settings, point: oracle.Parameters, options: oracle.Options, mask: Any = None
) -> oracle.Forward:
    parameters = {name: value for name, value in point.items() if name != "x"}
    return oracle.forward(settings, parameters, point["x"], mask, options)


def assert_slopes(
    settings: oracle.Settings,
    point: oracle.Parameters,
    options: oracle.Options,
    d_y: oracle.Array,
    mask: Any = None,
) -> oracle.Forward:
    """Along a random direction of each parameter, backward gives what small steps forward give."""
    random = np.random.default_rng(8)
    d_aux_loss, d_mean_probability = -1.7, random.normal(size=E)

    def objective(point: oracle.Parameters) -> float:
        done = run(settings, point, options, mask)
        own_loss = float(d_mean_probability @ done.report.mean_probability)
        return float((d_y * done.y).sum()) + d_aux_loss * done.report.aux_loss + own_loss

    done = run(settings, point, options, mask)
    assert done.routing.margin() > 1e-5  # so that the small steps below change no choice
    d_x, gradients = oracle.backward(done, d_y, d_aux_loss, d_mean_probability)
    gradients["x"] = d_x
    assert gradients.keys() == point.keys() - set(oracle.BUFFERS)

    step = 1e-6
    for name in gradients:
        direction = random.normal(size=point[name].shape)
        ahead = objective(point | {name: point[name] + step * direction})
        behind = objective(point | {name: point[name] - step * direction})
        slope = (ahead - behind) / (2 * step)
        expected = float((gradients[name] * direction).sum())
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7), name
    return done


@pytest.mark.parametrize("case", CASES)
def test_backward_is_the_slope_of_forward(case: str) -> None:
    arguments, call = CASES[case]
    settings, point, options, d_y = prepare(arguments, call)
    done = assert_slopes(settings, point, options, d_y)
    if "capacity_formula" in arguments:
        moved = (done.routing.indices != done.routing.chosen) & (done.routing.indices >= 0)
        assert done.report.n_dropped or moved.any()  # otherwise nothing of this was tested


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS)
@pytest.mark.parametrize("kind", ["mlp", "gated", "clamped", "linear"])
def test_slopes_of_experts(kind: str, activation: str) -> None:
    clamps = {"glu_limit": 1.5, "glu_offset": 1.0} if kind == "clamped" else {}
    settings, point, options, d_y = prepare({"activation": activation, **clamps}, {})
    random = np.random.default_rng(9)
    if kind in ("gated", "clamped"):
        point["experts.gate.weight"] = random.normal(size=(E, INNER, H))
        point["experts.gate.bias"] = random.normal(size=(E, INNER))
    if kind == "linear":
        point = {name: value for name, value in point.items() if not name.startswith("experts.")}
        point |= {"experts.weight": random.normal(size=(E, H, H)), "experts.bias": random.normal(size=(E, H))}
    mask = None if kind == "linear" else random.choice([0.0, 1.25], size=(T + 1, K, INNER), p=[0.2, 0.8])
    assert_slopes(settings, point, options, d_y, mask)


def test_slopes_along_given_weights() -> None:
    """They are the caller's, and so is their gradient, through the importance loss too."""
    settings, point, options, d_y = prepare({"router": "external", "losses": {"importance": 0.7}}, {})
    assert options.expert_weights is not None and options.expert_indices is not None
    weights = np.asarray(options.expert_weights)
    d_weights = np.full(weights.shape, np.nan)
    oracle.backward(run(settings, point, options), d_y, d_expert_weights=d_weights)
    direction = np.random.default_rng(8).normal(size=weights.shape)
    objective = []
    for step in (1e-6, -1e-6):
        done = run(settings, point, replace(options, expert_weights=weights + step * direction))
        objective.append(float((d_y * done.y).sum()) + done.report.aux_loss)
    slope = (objective[0] - objective[1]) / 2e-6
    assert slope == pytest.approx(float((d_weights * direction).sum()), rel=1e-6)
