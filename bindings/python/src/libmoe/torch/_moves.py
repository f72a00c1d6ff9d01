"""What torch's ``.to()`` and its like make of a module: where it goes, and what type its matrices get."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError

Move = Callable[[Tensor], Tensor]

# What a layer is made with whose module was converted: float16 is a type of matrices alone.
_OPTIONS = {
    torch.float32: {"weight_dtype": "f32", "io_dtype": "f32"},
    torch.bfloat16: {"weight_dtype": "bf16", "io_dtype": "bf16"},
    torch.float16: {"weight_dtype": "f16", "io_dtype": "f32"},
}
_HERE = "leave the module where it is, move the others, and give it what is here: moe(x.cpu())"


def options_after(move: Move, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's options after what torch is about to do to its tensors; refuse what it cannot."""
    made = {_tried(move, dtype).dtype for dtype in _OPTIONS}
    if len(made) > 1:  # each keeps its own
        return dict(options)
    (dtype,) = made
    if dtype in _OPTIONS:
        wanted = _OPTIONS[dtype]
        same = all(options.get(name, "f32") == word for name, word in wanted.items())
        return dict(options) if same else {**options, **wanted}
    if dtype is not torch.float64:
        raise InvalidArgumentError(
            f"MoE: libmoe computes in float32, bfloat16 and float16, and not in {dtype}; use .float()"
        )
    warnings.warn(
        "libmoe: MoE keeps its types, since libmoe has no float64: x is converted, and y comes back in "
        "x's type",
        RuntimeWarning,
        stacklevel=4,
    )
    return dict(options)


def _tried(move: Move, dtype: torch.dtype) -> Tensor:
    """Return what becomes of a tensor of this type."""
    try:
        made = move(torch.empty(0, dtype=dtype, device="cpu"))
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise InvalidArgumentError(
            f"MoE: libmoe computes on the CPU, and cannot go elsewhere ({error}); {_HERE}"
        ) from error
    if made.device.type not in ("cpu", "meta"):
        raise InvalidArgumentError(
            f"MoE: libmoe computes on the CPU, and has nothing for {str(made.device)!r}; {_HERE}"
        )
    return made


def keeping(move: Move, wanted: Mapping[int, torch.dtype]) -> Move:
    """Return the same move with the type that each tensor is to have, by its id; others keep theirs."""

    def moved(tensor: Tensor) -> Tensor:
        made, dtype = move(tensor), wanted.get(id(tensor), tensor.dtype)
        return made if made.dtype == dtype else tensor.to(made.device, dtype)

    return moved
