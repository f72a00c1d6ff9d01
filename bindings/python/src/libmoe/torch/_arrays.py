"""Tensors as arrays over the same memory, as the library takes them."""

from __future__ import annotations

from typing import Any

import torch

from .._native.check import Array
from ..errors import ArgumentTypeError, InvalidArgumentError

BITS = {torch.bfloat16: torch.uint16}
"""What is viewed as another type, since numpy has none of that name."""


def require_tensor(name: str, value: Any) -> torch.Tensor:
    """Return a tensor in the processor's memory; refuse all else, and say what to do."""
    if not isinstance(value, torch.Tensor):
        raise ArgumentTypeError(
            f"{name}: expected a torch.Tensor, got {type(value).__name__}; use torch.as_tensor({name})"
        )
    if not value.is_cpu:
        raise InvalidArgumentError(
            f"{name}: is on {str(value.device)!r}, and libmoe computes on the CPU; use {name}.cpu()"
        )
    if value.layout is not torch.strided:
        raise InvalidArgumentError(
            f"{name}: expected a dense tensor, got {value.layout}; use {name}.to_dense()"
        )
    return value


def array_of(tensor: torch.Tensor) -> Array:
    """Return an array over a contiguous tensor's memory, which it keeps alive; bfloat16 as its bits."""
    plain = tensor.detach()
    array: Array = plain.view(BITS.get(plain.dtype, plain.dtype)).numpy()
    return array


def taken(name: str, value: Any, dtype: torch.dtype) -> Array:
    """Return what the library only reads as an array of this type: the same memory where it is so already."""
    tensor = require_tensor(name, value).detach()
    if dtype.is_floating_point != tensor.dtype.is_floating_point or tensor.is_complex():
        raise ArgumentTypeError(f"{name}: expected {dtype}, got {tensor.dtype}; use {name}.to({dtype})")
    made = tensor.to(dtype)
    if (
        not dtype.is_floating_point
        and dtype is not torch.bool
        and not torch.equal(made.to(tensor.dtype), tensor)
    ):
        raise InvalidArgumentError(f"{name}: a number in it does not fit {dtype}")
    return array_of(made.contiguous())
