"""Learning rates that go with the step."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass
from typing import Any

from . import words
from ._keywords import keywords
from ._native import abi, check, fields
from ._native.library import lib


@keywords
@dataclass(frozen=True)
class Schedule:
    """A learning rate for every step; with t steps taken before, ``schedule(t)``.

    ``"constant"``, ``"linear"`` and ``"cosine"`` first rise for ``warmup_steps`` from 0 to ``learning_rate``.
    The last two then fall to ``final_fraction`` of it at ``total_steps`` (arXiv:1608.03983 for the cosine),
    where they stay; they are transformers' schedules of these names.  ``"one_cycle"`` (arXiv:1708.07120) is
    ``torch.optim.lr_scheduler.OneCycleLR``: from ``learning_rate / div_factor`` up for ``pct_start`` of the
    steps, then down to ``learning_rate / div_factor / final_div_factor``, both ways as a cosine, or straight
    as ``"one_cycle_linear"``; :meth:`momentum` goes the other way, from ``max_momentum`` down to
    ``base_momentum`` and back.  The formulas stand in ``include/moe.h``.

    Parameters
    ----------
    kind : str
        A word of the above.
    learning_rate : float
        The largest, at least 0.
    warmup_steps : int
        At least 0, at most ``total_steps``; 0 for one cycle.
    total_steps : int
        At least 1; not read for ``"constant"``.
    final_fraction : float
        From 0 to 1, for linear and cosine.
    pct_start : float
        From 0 to 1, for one cycle.
    div_factor, final_div_factor : float
        Above 0, for one cycle.
    base_momentum, max_momentum : float
        In [0, 1), for one cycle.

    Raises
    ------
    InvalidArgumentError
        A number is out of range, or the word unknown.

    Examples
    --------
    >>> import libmoe
    >>> schedule = libmoe.Schedule("cosine", learning_rate=0.5, warmup_steps=2, total_steps=10)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 6, 10, 11)]
    [0.0, 0.25, 0.5, 0.25, 0.0, 0.0]
    """

    kind: words.ScheduleKind = "constant"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    total_steps: int = 0
    final_fraction: float = 0.0
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    base_momentum: float = 0.85
    max_momentum: float = 0.95

    def __post_init__(self) -> None:
        """Let the library look at the numbers."""
        self(0)

    def __call__(self, step: int) -> float:
        """Return the learning rate of the step that comes after ``step`` others.

        Parameters
        ----------
        step : int
            At least 0.

        Raises
        ------
        InvalidArgumentError
            It is negative.
        """
        return self._ask(lib.moe_learning_rate, step)

    def momentum(self, step: int) -> float | None:
        """Return the momentum of that step for ``optimizer.momentum``: AdamW's beta1, SGD's momentum.

        Parameters
        ----------
        step : int
            At least 0.

        Returns
        -------
        float or None
            None for kinds that leave momentum alone: all but one cycle.

        Raises
        ------
        InvalidArgumentError
            The step is negative.
        """
        return self._ask(lib.moe_momentum, step) if self.kind.startswith("one_cycle") else None

    def _ask(self, function: Any, step: int) -> float:
        described = fields.filled(abi.moe_schedule, **asdict(self))
        answer = ctypes.c_double()
        count = check.integer("step", step, ctypes.c_int64)
        function(ctypes.byref(described), count, ctypes.byref(answer))
        return answer.value
