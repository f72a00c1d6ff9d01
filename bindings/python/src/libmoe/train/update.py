"""One optimiser step: the rate of the schedule, the bound of the gradients, AdamW or Muon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe

from .config import Settings

BETAS = (0.9, 0.95)


class Update:
    """AdamW, or Muon, with a run's schedule and clipping.

    Parameters
    ----------
    settings : Settings
    model : Model
        Whose parameters are stepped.
    context : Context
        Whose threads compute.
    parameters : mapping of str to Parameter, optional
        Those of the model that are stepped, by name; by default all.

    Attributes
    ----------
    optimizer : AdamW or Muon
    numbers : ndarray of float64, [3]
        What has to be saved beside it: count, mean and variance of adaptive clipping.
    """

    def __init__(
        self,
        settings: Settings,
        model: libmoe.Model,
        context: libmoe.Context,
        parameters: Mapping[str, libmoe.Parameter] | None = None,
    ) -> None:
        self._model = model
        rises = min(settings.warmup_steps, settings.steps)
        if settings.schedule.startswith("one_cycle"):
            how: dict[str, Any] = {"pct_start": rises / settings.steps}
        else:
            how = {"warmup_steps": rises, "final_fraction": settings.final_fraction}
        self._schedule = libmoe.Schedule(
            settings.schedule, settings.learning_rate, total_steps=settings.steps, **how
        )
        parameters = model.parameters if parameters is None else parameters
        undecayed = [p for name, p in parameters.items() if p.data.ndim == 1 or name.endswith(".bias")]
        kind = libmoe.Muon if settings.optimizer == "muon" else libmoe.AdamW
        self.optimizer: libmoe.AdamW | libmoe.Muon = kind(
            parameters,
            settings.learning_rate,
            betas=BETAS,
            weight_decay=settings.weight_decay,
            groups=[{"parameters": undecayed, "weight_decay": 0.0}],
            context=context,
        )
        self._fixed = settings.max_norm if settings.clip == "norm" else math.inf
        self._clip = libmoe.AdaptiveClip() if settings.clip == "adaptive" else None
        self.numbers: NDArray[np.float64] = np.zeros(3)

    def __call__(self, step: int) -> tuple[float, float, float]:
        """Step, and return the rate, the norm of all gradients, and the bound they were scaled down to."""
        rate = self._schedule(step)
        self.optimizer.learning_rate = rate
        momentum = self._schedule.momentum(step)
        if momentum is not None:
            self.optimizer.momentum = momentum
        if self._clip is None:
            return rate, self._step(self._fixed), self._fixed
        before = libmoe.AdaptiveClip()
        before.load_state_dict(self._clip.state_dict())
        norm = self._step(self._clip)
        self.numbers[:] = [self._clip.state_dict()[name] for name in ("count", "mean", "variance")]
        return rate, norm, before.max_norm(norm)

    def _step(self, bound: float | libmoe.AdaptiveClip) -> float:
        """Step with gradients scaled down to a bound; return their norm, over ranks that of all together."""
        if self._model.communicator is None:
            return self.optimizer.step(max_norm=bound)
        if isinstance(bound, libmoe.AdaptiveClip):
            norm = self._model.clip_grad_norm(math.inf)
            self._model.clip_grad_norm(bound.max_norm(norm))
        else:
            norm = self._model.clip_grad_norm(bound)
        self.optimizer.step()
        return norm

    def take_up(self) -> None:
        """Go on from what `numbers` says, after a training state was read into it."""
        if self._clip is not None:
            count, mean, variance = self.numbers.tolist()
            state = {"count": int(count), "mean": mean, "variance": variance}
            self._clip.load_state_dict({**self._clip.state_dict(), **state})
