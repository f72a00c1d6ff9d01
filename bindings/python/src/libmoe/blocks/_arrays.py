"""Matrices that blocks are given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import abi, check
from ..errors import InvalidArgumentError

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


def matrix(name: str, value: Any) -> tuple[int, int]:
    """Return rows and columns of an array that has them."""
    shape = check.array(name, value).shape
    if len(shape) != 2:
        raise InvalidArgumentError(f"{name}: expected two dimensions, got shape {shape}")
    return int(shape[0]), int(shape[1])


def weight_of(weight: Any, inputs: int) -> tuple[int, int]:
    """Return outputs and element type of a matrix of products."""
    dtype = check.dtype_of(check.array("weight", weight, dtype=check.dtype_of(weight)))
    if weight.ndim != 2 or weight.shape[1] != inputs:
        raise InvalidArgumentError(f"weight: expected shape [outputs, {inputs}], got {weight.shape}")
    return int(weight.shape[0]), abi.DTYPE[dtype]
