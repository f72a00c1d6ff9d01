"""Memory for gradients, lent to torch and used again from step to step."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_BITS = {torch.bfloat16: torch.int16}  # what numpy views a type as that it does not know

_kept: Any = WeakTensorKeyDictionary()  # weight -> Gradient
_turn = threading.Lock()


class Gradient:
    """One weight's gradient: memory that is lent to torch, and used again when torch has let go of it.

    Autograd wants a gradient of its own from every backward.  In most training loops the last one is gone by
    then (``zero_grad`` sets it to None), and the same memory serves step after step; ``p.grad`` is that
    memory.  As long as torch still holds it, in ``p.grad`` or on its way there from another call of the same
    graph, a backward gets other memory, and torch adds both up.

    The system clears fresh memory page by page when it is first written to: a third of the time of a backward
    over experts.
    """

    def __init__(self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> None:
        self._like = tuple(shape), tuple(stride), dtype
        self._memory: torch.Tensor | None = None
        self._lent: weakref.ref[Any] | None = None

    @classmethod
    def of(cls, weight: torch.Tensor) -> Gradient:
        """Return that of a weight."""
        return cls(weight.shape, weight.stride(), weight.dtype)

    def is_like(self, weight: torch.Tensor) -> bool:
        """Return whether the weight is still what it was; ``module.to`` gives it other data in place."""
        return self._like == (weight.shape, weight.stride(), weight.dtype)

    @property
    def home(self) -> torch.Tensor:
        """The memory that is used again."""
        if self._memory is None:
            self._memory = self._fresh()
        return self._memory

    def lend(self) -> torch.Tensor:
        """Return uninitialised memory: this one's own, where nobody holds it."""
        if self._lent is not None and self._lent() is not None:
            return self._fresh()
        dtype = self._like[-1]
        view = self.home.view(_BITS.get(dtype, dtype)).numpy()[...]
        self._lent = weakref.ref(view)  # which lives as long as a tensor over it
        return torch.from_numpy(view).view(dtype)

    def _fresh(self) -> torch.Tensor:
        shape, stride, dtype = self._like
        return torch.empty_strided(shape, stride, dtype=dtype, device="cpu")


def lend(weight: torch.Tensor) -> torch.Tensor:
    """Return uninitialised memory for a gradient of the weight; it is kept as long as the weight lives."""
    with _turn:
        kept: Gradient | None = _kept.get(weight)
        if kept is None or not kept.is_like(weight):
            kept = _kept[weight] = Gradient.of(weight)
        return kept.lend()
