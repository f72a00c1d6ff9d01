"""The oracle's gradients are the slopes of its own forward; test_parity.py compares both with PyTorch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import oracle

T, H, E, INNER, K = 19, 5, 4, 7, 2


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS)
@pytest.mark.parametrize("kind", ["mlp", "gated", "linear"])
@pytest.mark.parametrize(
    "settings",
    [
        oracle.Settings(K, "scores", normalize=True, balance_coef=0.3, z_coef=0.2),
        oracle.Settings(K, "scores", normalize=False, balance_coef=0.3, z_coef=0.2),
        oracle.Settings(K, "topk_softmax", balance_coef=0.3, z_coef=0.2),
        oracle.Settings(K, glu_limit=1.5, glu_offset=1.0),
    ],
    ids=["normalized", "unnormalized", "topk_softmax", "clamps"],
)
def test_backward_is_the_slope_of_forward(settings: oracle.Settings, kind: str, activation: str) -> None:
    settings = dataclasses.replace(settings, activation=activation)
    random = np.random.default_rng(7)
    point = {"router.weight": random.normal(size=(E, H)), "router.bias": random.normal(size=E)}
    for name in {"mlp": ["up"], "gated": ["gate", "up"], "linear": []}[kind]:
        point[f"experts.{name}.weight"] = random.normal(size=(E, INNER, H))
        point[f"experts.{name}.bias"] = random.normal(size=(E, INNER))
    down, width = ("experts", H) if kind == "linear" else ("experts.down", INNER)
    point[f"{down}.weight"] = random.normal(size=(E, H, width))
    point[f"{down}.bias"] = random.normal(size=(E, H))
    point["x"] = random.normal(size=(T, H))
    d_y, d_aux_loss = random.normal(size=(T, H)), -1.7
    dropout_mask = random.choice([0.0, 1.25], size=(T, K, INNER), p=[0.2, 0.8])

    def run(point: oracle.Parameters) -> oracle.Forward:
        parameters = {name: value for name, value in point.items() if name != "x"}
        return oracle.forward(settings, parameters, point["x"], dropout_mask)

    def objective(point: oracle.Parameters) -> float:
        done = run(point)
        return float((d_y * done.y).sum()) + d_aux_loss * done.report.aux_loss

    done = run(point)
    assert done.routing.margin() > 1e-4  # so that the small steps below change no choice
    d_x, gradients = oracle.backward(done, d_y, d_aux_loss)
    gradients["x"] = d_x
    assert gradients.keys() == point.keys()

    step = 1e-6
    for name, value in point.items():
        direction = random.normal(size=value.shape)
        ahead = objective(point | {name: value + step * direction})
        behind = objective(point | {name: value - step * direction})
        slope = (ahead - behind) / (2 * step)
        assert slope == pytest.approx(float((gradients[name] * direction).sum()), rel=1e-6), name
