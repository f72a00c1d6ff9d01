"""How fast a model of given settings is on this machine, and what memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

import libmoe

from .config import Settings
from .run import make_context, make_model, memory_limit

GENERATED = 32  # tokens


@dataclass(frozen=True)
class Speed:
    """Tokens per second, medians of several rounds, and bytes.

    Attributes
    ----------
    evaluation : float
        Forward alone.
    training : float
        Forward and backward.
    generation : float
        One sequence, token by token.
    step_bytes : int
        Activations of a training step: exactly what the library will ask for.
    weights : int
        Number of parameters.
    profile : Profile
        Of training, phase by phase.
    """

    evaluation: float
    training: float
    generation: float
    step_bytes: int
    weights: int
    profile: libmoe.Profile


def bench(settings: Settings, rounds: int = 5) -> Speed:
    """Measure random tokens; the first round of each kind is not counted.

    Parameters
    ----------
    settings : Settings
        Of which the text is not needed.
    rounds : int
        At least 1.
    """
    vocabulary_size = 256
    context = make_context(settings)
    model = make_model(settings, vocabulary_size, context)
    shape = (settings.sequences, settings.sequence_length)
    tokens = np.random.default_rng(0).integers(vocabulary_size, size=shape).astype(np.int32)
    limit = memory_limit(settings)

    def evaluate() -> None:
        model.forward(tokens, tokens, memory_limit=limit)

    def train() -> None:
        model.backward(model.forward(tokens, tokens, training=True, tape=True, memory_limit=limit))

    def generate() -> None:
        for _ in model.generate(tokens[0, :1], GENERATED):
            pass

    train()  # the profile does not count the first round either
    with context.profile() as profile:
        training = seconds(train, rounds)
    return Speed(
        evaluation=tokens.size / seconds(evaluate, rounds),
        training=tokens.size / training,
        generation=GENERATED / seconds(generate, rounds),
        step_bytes=model.plan(*shape, training=True, memory_limit=limit).total_bytes,
        weights=sum(parameter.data.size for parameter in model.parameters.values()),
        profile=profile,
    )


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of several rounds, after one that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)
