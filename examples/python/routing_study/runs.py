"""One training: the model of the demo under one scheme, and how its experts were used meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe
from routing_study.schemes import Scheme
from train_text.model import TextModel
from train_text.text import Bytes, Corpus, unigram
from train_text.training import (
    BATCH,
    LEARNING_RATE,
    evaluate,
    learning_rate,
    sample_positions,
    train_step,
)

ORDER_SEED = 0  # of the bytes trained on: the same for every run
POINTS = 20  # over the training
EVALUATED = 65536  # held-out bytes at the end


@dataclass(frozen=True)
class Point:
    """How experts were used in training since the point before."""

    step: int
    max_over_mean: float  # of the experts' tokens: 1 is perfect balance
    dead_share: float  # experts without a token
    entropy: float  # of the router's probabilities, nats
    dropped_share: float  # of the choices, K a token
    shares: NDArray[np.float64]  # [E] of the computed choices


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    scheme: Scheme
    seed: int
    bits: float  # per held-out byte
    active_width: float  # inner features a held-out token used, on average
    points: list[Point]


class RoutedModel(TextModel):
    """The demo's model around a scheme's layer."""

    def __init__(
        self, scheme: Scheme, shares: NDArray[np.float64], seed: int, context: libmoe.Context
    ) -> None:
        super().__init__(shares, seed, scheme.layer(seed, context))
        self.scheme = scheme

    def given(self, contexts: Bytes) -> dict[str, Any]:
        """Return what this scheme's router has to be told."""
        return self.scheme.given(contexts)


def run(
    scheme: Scheme,
    corpus: Corpus,
    *,
    steps: int,
    seed: int,
    context: libmoe.Context,
    show: Callable[[float], None],
) -> Result:
    """Train for `steps` and evaluate; the seed is the model's, the order of the text stays the same."""
    model = RoutedModel(scheme, unigram(corpus.training), seed, context)
    order = np.random.default_rng(ORDER_SEED)
    optimizer = libmoe.AdamW(model.parameters, LEARNING_RATE, betas=(0.9, 0.99), context=context)
    since = libmoe.Statistics(model.moe.n_experts, context=context)
    points: list[Point] = []
    coefficient = 1e-8
    for step in range(steps):
        optimizer.learning_rate = learning_rate(step, steps)
        positions = order.integers(len(corpus.training), size=BATCH)
        report = train_step(model, optimizer, corpus.training, positions, step).report
        if scheme.bias_rate:
            model.moe.update_selection_bias(report.tokens_per_expert, scheme.bias_rate, zero_sum=True)
        if scheme.wanted:
            used = report.tokens_per_expert.sum() / report.n_valid
            coefficient *= float(1.2 ** np.sign(used - scheme.wanted))  # arXiv:2412.14711
            model.moe.set_loss_coefficient(0, coefficient)
        since.add(report)
        done = (step + 1) / steps
        show(done)
        if done * POINTS >= len(points) + 1:
            points.append(point(step + 1, since.read(), model.moe.top_k))
            since.reset()
    places = sample_positions(corpus.held_out, EVALUATED)
    found = evaluate(model, corpus.held_out, places)
    return Result(scheme, seed, found.bits, active_width(scheme, found.experts), points)


def point(step: int, summary: libmoe.Summary, top_k: int) -> Point:
    """Sum up the reports since the point before."""
    counts = summary.tokens_per_expert
    return Point(
        step,
        summary.max_over_mean,
        summary.dead_share,
        summary.entropy,
        summary.n_dropped / (summary.n_valid * top_k),
        counts / counts.sum(),
    )


def active_width(scheme: Scheme, experts: NDArray[np.int32]) -> float:
    """Inner features used per token: experts [T,C], -1 for none."""
    width = np.append(scheme.widths(), 0)  # -1 means the last, which is none
    return float(width[experts].sum(axis=1).mean()) + scheme.shared_width()
