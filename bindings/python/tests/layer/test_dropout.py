"""Dropout of the experts' inner activations: how much, when, and the same in backward as in forward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
import oracle
from comparison import assert_all_close, assert_close, gradients_of

E, INNER, K, H = 3, 16, 2, 3 * 16  # H = E * INNER: a column of y for every inner activation of every expert
DROPOUT = 0.25
ARGUMENTS: dict[str, Any] = {"hidden_size": H, "intermediate_size": INNER, "n_experts": E, "top_k": K}
X, DY = np.random.default_rng(0).standard_normal((2, 200, H), dtype=np.float32)


def transparent_layer(**more: Any) -> libmoe.Layer:
    """A layer whose down projections lay expert e's inner activations bare in columns e*INNER ... of y."""
    layer = libmoe.Layer(**ARGUMENTS, expert_bias=True, dropout=DROPOUT, **more)
    down = layer.parameters["experts.down.weight"].data  # [E,H,INNER]
    down[...] = np.eye(H, dtype=np.float32).reshape(E, INNER, H).transpose(0, 2, 1)
    layer.parameters["experts.down.bias"].data[...] = 0
    return layer


def dropout_mask(layer: libmoe.Layer, step: int) -> NDArray[np.float64]:
    """What a training step multiplies the inner activations by, [T,K,INNER]."""
    evaluated = layer.forward(X)
    trained = layer.forward(X, training=True, step=step)
    chosen = evaluated.report.expert_indices[:, :, None]  # [T,K,1]
    before = np.take_along_axis(evaluated.y.reshape(-1, E, INNER), chosen, axis=1)
    after = np.take_along_axis(trained.y.reshape(-1, E, INNER), chosen, axis=1)
    mask: NDArray[np.float64] = (after / before).astype(np.float64)
    return mask


def test_share_and_scale() -> None:
    """Whatever is not dropped is scaled by 1 / (1 - dropout), so that the mean stays."""
    mask = dropout_mask(transparent_layer(), step=0)
    kept = mask != 0
    np.testing.assert_allclose(mask[kept], 1 / (1 - DROPOUT), rtol=1e-6)

    # Over everything, for each inner feature, and for each choice of each token, the share kept is
    # 1 - dropout, within a few standard deviations of the binomial distribution.
    deviation = math.sqrt(DROPOUT * (1 - DROPOUT))
    assert abs(kept.mean() - (1 - DROPOUT)) <= 4 * deviation / math.sqrt(kept.size)
    assert np.abs(kept.mean(axis=(0, 1)) - (1 - DROPOUT)).max() <= 5 * deviation / math.sqrt(len(X) * K)
    assert np.abs(kept.mean(axis=2) - (1 - DROPOUT)).max() <= 5 * deviation / math.sqrt(INNER)


def test_the_mask_depends_on_seed_and_step_alone() -> None:
    mask = dropout_mask(transparent_layer(), step=5)
    with libmoe.Context(n_threads=1) as context:
        np.testing.assert_array_equal(dropout_mask(transparent_layer(context=context), step=5), mask)
    reseeded = transparent_layer(seed=1)
    reseeded.load_state_dict(transparent_layer().state_dict())
    for other in (dropout_mask(transparent_layer(), step=6), dropout_mask(reseeded, step=5)):
        # Two independent masks agree where both drop or both keep.
        agreement = np.mean((other != 0) == (mask != 0))
        assert agreement == pytest.approx(DROPOUT**2 + (1 - DROPOUT) ** 2, abs=0.03)


def test_evaluation_drops_nothing() -> None:
    layer = transparent_layer()
    without = libmoe.Layer(**ARGUMENTS)
    without.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(layer(X), without(X))
    np.testing.assert_array_equal(layer.forward(X, step=3).y, without(X))


@pytest.mark.parametrize("expert_kind", ["mlp", "gated"])
def test_backward_drops_what_forward_dropped(expert_kind: str) -> None:
    layer = transparent_layer(expert_kind=expert_kind)
    mask = np.where(dropout_mask(layer, step=9) == 0, 0, 1 / (1 - DROPOUT))
    tape = layer.tape()
    y = layer.forward(X, tape=tape, training=True, step=9).y
    dx = layer.backward(tape, DY)

    truth = oracle.forward(oracle.Settings(K), layer.state_dict(), X, mask)
    assert truth.routing.margin() > 1e-5, "choose another seed"
    d_x, gradients = oracle.backward(truth, DY)
    assert_close("y", y, truth.y)
    assert_all_close(gradients_of(layer, dx), {"x": d_x} | gradients)
