"""The balance loss over several layers together."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal
from comparison import assert_close

E, K = 5, 2
TOKENS = (12, 3, 0, 30)  # of each layer


def routed() -> tuple[Any, Any, Any, Any]:
    """Return every token's probabilities and one-hot choices, and what the layers report of them."""
    logits = [normal(tokens, E, seed=tokens).astype(np.float64) for tokens in TOKENS]
    scores = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits]
    chosen = [np.argsort(-z, axis=1)[:, :K] for z in logits]
    counts = [np.bincount(i.ravel(), minlength=E) for i in chosen]
    means = [s.mean(0) if len(s) else np.zeros(E) for s in scores]
    return scores, chosen, counts, means


def test_it_is_the_loss_of_all_tokens_as_one_batch() -> None:
    """As transformers has it: logits of all layers one after the other, then E sum f_e P_e."""
    scores, chosen, counts, means = routed()
    everything = np.concatenate(scores)
    f = np.bincount(np.concatenate(chosen).ravel(), minlength=E) / len(everything)
    expected = E * (f * everything.mean(0)).sum()
    loss, gradient = libmoe.pooled_balance_loss(counts, TOKENS, np.array(means, np.float32))
    assert_close("loss", loss, expected)

    # d loss / d P_l: the layer's share of the tokens, times E f.
    shares = np.array(TOKENS)[:, None] / sum(TOKENS)
    assert_close("d_mean_probability", gradient, E * shares * f)
    assert gradient.dtype == np.float32


def test_perfect_balance_gives_k() -> None:
    counts, means = np.full((3, E), 4 * K), np.full((3, E), 1 / E, np.float32)
    loss, _ = libmoe.pooled_balance_loss(counts, [4 * E] * 3, means)
    assert_close("loss", loss, K)


def test_one_layer_is_its_own_balance_loss() -> None:
    report = libmoe.Layer(6, 8, E, K).forward(normal(40, 6)).report
    loss, _ = libmoe.pooled_balance_loss([report.tokens_per_expert], [40], [report.mean_probability])
    assert_close("loss", loss, report.balance_loss)


@pytest.mark.parametrize("layers", [0, 2])
def test_no_tokens_give_no_loss(layers: int) -> None:
    loss, gradient = libmoe.pooled_balance_loss(
        np.zeros((layers, E), np.int64), [0] * layers, np.zeros((layers, E), np.float32)
    )
    assert loss == 0
    assert gradient.shape == (layers, E)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("counts", "tokens", "means", "text"),
    [
        (
            (E,),
            (1,),
            (E,),
            "tokens_per_expert: expected shape [layers, experts] or [layers, sequences, experts], got (5,)",
        ),
        ((2, E), (3,), (2, E), "n_valid: expected shape (2,), got (3,)"),
        ((2, E), (2,), (2, 4), "mean_probability: expected shape (2, 5), got (2, 4)"),
    ],
)
def test_shapes_that_do_not_fit(counts: Any, tokens: Any, means: Any, text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        libmoe.pooled_balance_loss(
            np.zeros(counts, np.int64), np.zeros(tokens, np.int64), np.zeros(means, np.float32)
        )


def test_negative_counts() -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="n_valid"):
        libmoe.pooled_balance_loss(np.zeros((1, E), np.int64), [-1], np.zeros((1, E), np.float32))
