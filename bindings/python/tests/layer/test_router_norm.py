"""The gate's own norm and the hierarchy's two gates apart: textbook values, finite differences, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from against_oracle import Arguments, check, inputs, unsettle

E, K, T, H = 6, 2, 20, 8
SIZES: Arguments = {"hidden_size": H, "intermediate_size": 11, "n_experts": E, "top_k": K}
HIERARCHY: Arguments = {"router": "hierarchical", "n_groups": 3, "top_groups": 2, "top_k": 4, "n_experts": 9}


def softmax(z: NDArray[Any]) -> NDArray[Any]:
    exponentials: NDArray[Any] = np.exp(z - z.max(axis=-1, keepdims=True))
    shares: NDArray[Any] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def test_gemma4s_gate() -> None:
    """Written out: norm without weight, times scale, times 1 / sqrt(H)."""
    layer = libmoe.Layer(**libmoe.presets.gemma4(**SIZES))
    unsettle(layer)
    x, _ = inputs(T, H)
    wide = x.astype(np.float64)
    read = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6)
    read *= layer.parameters["router.norm.weight"].data * H**-0.5
    p = softmax(read @ layer.parameters["router.weight"].data.T.astype(np.float64))
    indices = np.argsort(-p, axis=1)[:, :K]
    weights = np.take_along_axis(p, indices, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    weights *= layer.parameters["router.expert_scale"].data[indices]
    report = layer.forward(x).report
    np.testing.assert_array_equal(report.expert_indices, indices)
    np.testing.assert_allclose(report.expert_weights, weights, rtol=1e-5)
    assert "router.norm.bias" not in layer.parameters


def test_the_sizes_of_x_do_not_matter_to_the_gate() -> None:
    layer = libmoe.Layer(**SIZES, router_norm="rms", router_bias=False)
    assert "router.norm.weight" not in layer.parameters
    x, _ = inputs(T, H)
    one, other = layer.forward(x).report, layer.forward(x * np.float32(64)).report
    np.testing.assert_array_equal(one.expert_indices, other.expert_indices)
    np.testing.assert_allclose(one.expert_weights, other.expert_weights, rtol=1e-4)


def test_two_gates_apart() -> None:
    """softmax(u)_g times the softmax over the chosen experts of g, from the gates' own weights."""
    layer = libmoe.Layer(**{**SIZES, **HIERARCHY}, router_weights="group_softmax", router_normalize=False)
    unsettle(layer)
    values = {name: parameter.data.astype(np.float64) for name, parameter in layer.parameters.items()}
    x, _ = inputs(T, H)
    u = softmax(x @ values["router.coarse.weight"].T + values["router.coarse.bias"])  # [T,G]
    z = (x @ values["router.weight"].T + values["router.bias"]).reshape(T, 3, 3)
    groups = np.argsort(-u, axis=1)[:, :2]
    fine = np.take_along_axis(z, groups[:, :, None], axis=1)  # [T,2,3]
    best = np.argsort(-fine, axis=2)[:, :, :2]
    weights = np.take_along_axis(u, groups, axis=1)[:, :, None] * softmax(
        np.take_along_axis(fine, best, axis=2)
    )
    report = layer.forward(x).report
    np.testing.assert_array_equal(report.expert_indices, (3 * groups[:, :, None] + best).reshape(T, 4))
    np.testing.assert_allclose(report.expert_weights, weights.reshape(T, 4), rtol=1e-5)
    divided = libmoe.Layer(**{**SIZES, **HIERARCHY}, router_weights="group_softmax")
    divided.load_state_dict(layer.state_dict())
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(divided.forward(x).report.expert_weights, weights.reshape(T, 4), rtol=1e-5)


DIFFERENCES: dict[str, Arguments] = {
    "norm": {"router_norm": "rms_weight", "expert_scale": True},
    "norm without weight": {"router_norm": "rms", "router_norm_scale": 1.5},
    "two gates apart": {**HIERARCHY, "router_weights": "group_softmax"},
    "two gates apart, as they are": {
        **HIERARCHY,
        "router_weights": "group_softmax",
        "router_normalize": False,
    },
    "positive weights": {"losses": {"balance_positive": 5.0}},
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_finite_differences(name: str) -> None:
    """Along random directions of x and of every parameter, at choices that stay."""
    layer = libmoe.Layer(**{**SIZES, **DIFFERENCES[name]})
    unsettle(layer)
    x, dy = inputs(T, H)
    tape = layer.tape()
    report = layer.forward(x, tape=tape).report
    dx = layer.backward(tape, dy)
    assert dx is not None
    rng = np.random.default_rng(1)

    def objective() -> float:
        output = layer.forward(x, expert_indices=report.expert_indices)
        return float((output.y.astype(np.float64) * dy).sum()) + output.report.aux_loss

    targets = {"x": (x, dx)} | {n: (p.data, p.grad) for n, p in layer.parameters.items() if "router" in n}
    for target, (values, gradient) in targets.items():
        compare_along(objective, target, values, gradient, rng.standard_normal(values.shape))


def compare_along(
    objective: Callable[[], float],
    name: str,
    values: NDArray[np.float32],
    gradient: NDArray[np.float32],
    direction: NDArray[Any],
) -> None:
    """The objective's slope along a direction is the gradient's share of it."""
    step, before = 1e-3, values.copy()
    values[...] = before + step * direction
    upper, more = objective(), values.astype(np.float64)
    values[...] = before - step * direction
    lower, less = objective(), values.astype(np.float64)
    values[...] = before
    expected = float((gradient * (more - less)).sum())
    assert upper - lower == pytest.approx(expected, rel=0.03, abs=3e-5), name


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"router_norm_scale": 1.0}, "router_norm_scale = 1, but router_norm = 'none'"),
        ({"router_norm_epsilon": 1.0}, "router_norm_epsilon = 1, but router_norm = 'none'"),
        (
            {"router_norm": "rms", "router_batch_norm": True},
            "router_norm = 'rms' beside router_batch_norm = True",
        ),
        (
            {"router_norm": "rms", "router_norm_scale": -1.0},
            "router_norm_scale = -1 is not a number of at least 0",
        ),
        (
            {"router_norm": "rms", "router": "external"},
            "router_norm has no use with router = 'external'",
        ),
        (
            {"router_weights": "group_softmax"},
            "router_weights = 'group_softmax' has no use with router = 'token_choice'",
        ),
        (
            {**HIERARCHY, "router_weights": "group_softmax", "score": "sigmoid"},
            "score = 'sigmoid' has no use with router_weights = 'group_softmax'",
        ),
        ({"router_norm": "layer"}, "router_norm = 'layer'"),
    ],
)
def test_refused(arguments: Arguments, text: str) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match=text):
        libmoe.Layer(**{**SIZES, **arguments})


def test_bfloat16_tokens_and_weights() -> None:
    layer = libmoe.Layer(**SIZES, router_norm="rms_weight", weight_dtype="bf16")
    x, dy = inputs(T, H)
    tape = layer.tape()
    layer.forward(x, tape=tape)
    dx = layer.backward(tape, dy)
    assert dx is not None and np.isfinite(dx).all()


def test_padding_of_zeros() -> None:
    """A row of zeros has no direction: its norm is 0, and so is its gradient."""
    x, _ = inputs(T, H)
    mask = np.arange(T) < 15
    check({**SIZES, "router_norm": "rms_weight"}, "native", T, valid_mask=mask)
    layer = libmoe.Layer(**SIZES, router_norm="rms_weight")
    x[15:] = 0
    tape = layer.tape()
    y = layer.forward(x, tape=tape).y
    dx = layer.backward(tape, np.ones_like(x))
    assert dx is not None and np.isfinite(y).all() and np.isfinite(dx).all()
