"""Memory for the gradients of experts' weights, used again from step to step."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_BITS = {torch.bfloat16: torch.int16}  # what numpy views a type as that it does not know

_kept: Any = WeakTensorKeyDictionary()  # weight -> Gradient
_turn = threading.Lock()


class Gradient:
    """One weight's gradient: memory that is lent to torch, and used again when torch has let go of it.

    The system clears fresh memory page by page when it is first written to: a third of the time of a backward
    over experts.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._memory = torch.empty_like(weight, requires_grad=False)
        self._lent: weakref.ref[Any] | None = None

    def is_like(self, weight: torch.Tensor) -> bool:
        """Return whether the weight is still what it was; ``module.to`` gives it other data in place."""
        mine = self._memory
        return (mine.dtype, mine.shape, mine.stride()) == (weight.dtype, weight.shape, weight.stride())

    def lend(self) -> torch.Tensor:
        """Return memory like the weight; this one's own, where nobody holds it."""
        if self._lent is not None and self._lent() is not None:
            return torch.empty_like(self._memory)
        dtype = self._memory.dtype
        view = self._memory.view(_BITS.get(dtype, dtype)).numpy()[...]
        self._lent = weakref.ref(view)  # which lives as long as a tensor over it
        return torch.from_numpy(view).view(dtype)


def lend(weight: torch.Tensor) -> torch.Tensor:
    """Return uninitialised memory for a gradient of the weight; it is kept as long as the weight lives."""
    with _turn:
        kept: Gradient | None = _kept.get(weight)
        if kept is None or not kept.is_like(weight):
            kept = _kept[weight] = Gradient(weight)
        return kept.lend()
