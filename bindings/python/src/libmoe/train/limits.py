"""Memory of a run's steps: the plan under the limit, or the least limit that would do."""

from __future__ import annotations

import math

import libmoe

from .config import Settings
from .run import memory_limit

UNLIMITED = 1 << 62  # bytes


def step_plan(model: libmoe.Model, settings: Settings, limit: int | None) -> libmoe.ModelPlan:
    """Return what a training step takes under a limit in bytes."""
    return model.plan(settings.sequences, settings.sequence_length, training=True, memory_limit=limit)


def unlimited_bytes(model: libmoe.Model, settings: Settings) -> int:
    """Return what a step takes that computes nothing twice."""
    return step_plan(model, settings, UNLIMITED).total_bytes


def limited_plan(model: libmoe.Model, settings: Settings) -> libmoe.ModelPlan:
    """Return what a step takes under the settings' limit."""
    return step_plan(model, settings, memory_limit(settings))


def least_limit(model: libmoe.Model, settings: Settings) -> int:
    """Return the least limit that would do, in whole MiB as the setting is."""
    too_small, enough = settings.memory_limit, math.ceil(unlimited_bytes(model, settings) / 2**20)
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        try:
            step_plan(model, settings, middle << 20)
            enough = middle
        except libmoe.InvalidArgumentError:
            too_small = middle
    return enough
