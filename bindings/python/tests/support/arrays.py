"""Inputs for the tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Float32 normal numbers; the same seed gives the same."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
