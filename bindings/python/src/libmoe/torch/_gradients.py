"""Memory for the gradients of a layer that torch may keep."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Gradient:
    """One parameter's gradient: memory that is lent to torch, and used again when torch has let go of it.

    Autograd wants a gradient of its own from every backward.  In most training loops the last one is gone by
    then (``zero_grad`` sets it to None), and the same memory serves step after step; ``p.grad`` is that
    memory.  As long as torch still holds it, in ``p.grad`` or on its way there from another call of the same
    graph, a backward gets other memory, and torch adds both up.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._memory: NDArray[np.float32] | None = None
        self._lent: weakref.ref[Any] | None = None

    def lend(self) -> NDArray[np.float32]:
        """Return zeros for one backward to add to."""
        if self._lent is not None and self._lent() is not None:
            return np.zeros(self._shape, np.float32)
        if self._memory is None:
            self._memory = np.zeros(self._shape, np.float32)  # which the system clears when it is first used
        else:
            self._memory.fill(0)
        return self._memory

    def given(self, lent: NDArray[np.float32]) -> torch.Tensor:
        """Return what was lent as torch takes it; as long as it is in use, others are lent."""
        view = lent[...]
        if lent is self._memory:
            self._lent = weakref.ref(view)
        return torch.from_numpy(view)

    def home(self) -> NDArray[np.float32] | None:
        """Return the memory that is used again, to which the layer goes back."""
        return self._memory
