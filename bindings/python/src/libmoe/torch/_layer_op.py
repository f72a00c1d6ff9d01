"""A module's call as an operator of torch: what torch.compile sees of it.

The tape of a call is an object of the library.  What stands for it among tensors is its number, in memory
that tells when nobody has it any more.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from ..errors import BadStateError
from ..tape import Tape
from ._engine import Engine
from ._function import Call, backward_of, forward_of

_numbers = itertools.count(1)
_modules: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_tapes: dict[int, tuple[Engine, Tape]] = {}


def registered(module: Any) -> int:
    """Return a number by which operators find a module; copies have others."""
    number = next(_numbers)
    _modules[number] = module
    return number


def _token(engine: Engine, tape: Tape) -> Tensor:
    number = next(_numbers)
    _tapes[number] = engine, tape
    memory = np.full(1, number, np.int64)
    weakref.finalize(memory, _tapes.pop, number, None).atexit = False
    return torch.from_numpy(memory)


@torch.library.custom_op("libmoe::layer", mutates_args=(), device_types="cpu")
def layer(
    x: Tensor,
    weights: Optional[Tensor],  # noqa: UP045 - the schema is read from this
    step: Tensor,
    tensors: list[Tensor],
    module: int,
    training: bool,
    saves: bool,
) -> tuple[Tensor, Tensor]:
    """Return y of x [..., H], and what stands for the tape."""
    engine: Engine = _modules[module]._engine
    tape = engine.layer.tape() if saves else None
    call = Call(engine, {"training": training, "step": int(step)}, saves, False, [])
    y = forward_of(call, x.contiguous(), weights, tensors, tape)[0]
    return y, torch.empty(0, dtype=torch.int64) if tape is None else _token(engine, tape)


@layer.register_fake
def _(
    x: Tensor,
    weights: Optional[Tensor],  # noqa: UP045
    step: Tensor,
    tensors: list[Tensor],
    module: int,
    training: bool,
    saves: bool,
) -> tuple[Tensor, Tensor]:
    token = x.new_empty((1 if saves else 0,), dtype=torch.int64)
    return torch.empty_like(x, memory_format=torch.contiguous_format), token


@torch.library.custom_op("libmoe::layer_backward", mutates_args=(), device_types="cpu")
def layer_backward(
    dy: Tensor,
    token: Tensor,
    x: Tensor,
    weights: Optional[Tensor],  # noqa: UP045
    tensors: list[Tensor],
    need: list[bool],
) -> list[Tensor]:
    """Return the gradients of x, weights and the tensors, those that are needed, in this order."""
    found = _tapes.get(int(token)) if token.numel() else None
    if found is None:
        raise BadStateError("MoE: what forward kept for this backward is gone; call the module again")
    engine, tape = found
    shape = None if weights is None else weights.shape
    made = backward_of(engine, tape, x.contiguous(), dy.contiguous(), tensors, need, shape)
    like = [x, weights, *tensors]
    return [g.to(t.dtype) for g, t in zip(made, like) if g is not None and t is not None]


@layer_backward.register_fake
def _(
    dy: Tensor,
    token: Tensor,
    x: Tensor,
    weights: Optional[Tensor],  # noqa: UP045
    tensors: list[Tensor],
    need: list[bool],
) -> list[Tensor]:
    like = [t for t, needed in zip([x, weights, *tensors], need) if needed and t is not None]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in like]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weights, _, tensors, *_ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.has_weights = weights is not None
    ctx.save_for_backward(x, output[1], *([weights] if ctx.has_weights else []), *tensors)


def _backward(ctx: Any, dy: Tensor | None, _: Any) -> Any:
    x, token, *tensors = ctx.saved_tensors
    weights = tensors.pop(0) if ctx.has_weights else None
    need_x, need_weights, _, need_tensors, *_ = ctx.needs_input_grad
    need = [need_x, need_weights, *need_tensors]
    if dy is None or not any(need):
        return None, None, None, [None] * len(tensors), None, None, None
    made = iter(layer_backward(dy, token, x, weights, tensors, need))
    d_x, d_weights, *gradients = (next(made) if needed else None for needed in need)
    return d_x, d_weights, None, gradients, None, None, None


layer.register_autograd(_backward, setup_context=_setup)
