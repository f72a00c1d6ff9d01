"""One optimiser step: the rate of the schedule, the bound of the gradients, AdamW."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

import libmoe

from .config import Settings


class Update:
    """AdamW with a run's schedule and clipping.

    Parameters
    ----------
    settings : Settings
    model : Model
        Whose parameters are stepped.
    context : Context
        Whose threads compute.

    Attributes
    ----------
    optimizer : AdamW
    numbers : list of ndarray of float64
        What else has to be saved: of adaptive clipping its state.
    """

    def __init__(self, settings: Settings, model: libmoe.Model, context: libmoe.Context) -> None:
        self._schedule = libmoe.Schedule(
            settings.schedule,
            settings.learning_rate,
            settings.steps,
            warmup_steps=settings.warmup_steps,
            final_fraction=settings.final_fraction,
        )
        parameters = model.parameters.values()
        self._parameters = list(parameters)
        self.optimizer = libmoe.AdamW(
            self._parameters,
            settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            context=context,
        )
        self.numbers: list[NDArray[np.float64]] = []
        self._bound = {"norm": settings.max_norm, "none": math.inf, "adaptive": 1.0}[settings.clip]

    def __call__(self, step: int) -> tuple[float, float, float]:
        """Step, and return the rate, the norm of all gradients, and the bound they were scaled down to."""
        rate = self._schedule(step)
        self.optimizer.learning_rate = rate
        norm = self.optimizer.step(max_norm=self._bound)
        return rate, norm, self._bound
