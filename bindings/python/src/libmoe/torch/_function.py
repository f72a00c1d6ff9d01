"""Autograd through a layer's call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .._native.check import Array
from .._native.reports import Report as Numbers
from ..tape import Tape
from ._arrays import array_of
from ._engine import Engine
from ._first_order import first_order, refuse_tangents, refuse_transforms


class Call(NamedTuple):
    """One forward, beside its tensors."""

    engine: Engine
    options: dict[str, Any]  # of Layer.forward
    taped: bool
    reported: bool
    told: list[Numbers]  # the report is put here


def computed(
    call: Call, x: torch.Tensor, weights: torch.Tensor | None, tensors: Sequence[torch.Tensor]
) -> Any:
    """Return y with the report's differentiable parts: aux_loss, mean_ and sequence_probability."""
    refuse_tangents((x, *tensors) if weights is None else (x, weights, *tensors))
    refuse_transforms()
    if call.taped:
        return Through.apply(call, x, weights, *tensors)  # type: ignore[no-untyped-call]
    return forward_of(call, x, weights, tensors, None)


def forward_of(
    call: Call,
    x: torch.Tensor,
    weights: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    tape: Tape | None,
) -> tuple[torch.Tensor, ...]:
    """Return y, and of a call with a report its differentiable parts."""
    engine, given = call.engine, dict(call.options)
    if weights is not None:
        given["expert_weights"] = array_of(weights)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    with engine.turn:
        engine.hold(tensors)
        engine.require_current(tensors)
        report = engine.layer.forward(array_of(x), tape=tape, out=array_of(y), **given).report
        if tape is not None:
            tape._x = None  # which nobody needs until backward
    if not call.reported:
        return (y,)
    call.told.append(report)
    parts = (report.mean_probability, report.sequence_probability)
    return (y, torch.tensor(report.aux_loss), *map(torch.from_numpy, parts))


class Through(torch.autograd.Function):
    """The call with a tape; backward gives each parameter's gradient as torch wants it."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, x: torch.Tensor, weights: torch.Tensor | None, *tensors: torch.Tensor
    ) -> Any:
        """Compute, and keep the tape."""
        ctx.set_materialize_grads(False)
        ctx.engine, ctx.tape = call.engine, call.engine.layer.tape()
        results = forward_of(call, x, weights, tensors, ctx.tape)
        ctx.weights_shape = None if weights is None else weights.shape
        ctx.save_for_backward(x, *tensors)
        return results if len(results) > 1 else results[0]

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Any, d_aux: Any = None, d_mean: Any = None, d_sequence: Any = None) -> Any:
        """Return the gradients of forward's arguments; None where torch does not ask."""
        x, *tensors = ctx.saved_tensors
        dy = torch.zeros_like(x) if dy is None else dy.to(x.dtype).contiguous()
        return None, *backward_of(
            ctx.engine,
            ctx.tape,
            x,
            dy,
            tensors,
            ctx.needs_input_grad[1:],
            ctx.weights_shape,
            d_aux_loss=0.0 if d_aux is None else float(d_aux),
            d_mean_probability=_array(d_mean),
            d_sequence_probability=_array(d_sequence),
        )


def backward_of(
    engine: Engine,
    tape: Tape,
    x: torch.Tensor,
    dy: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    need: Sequence[bool],
    weights_shape: Sequence[int] | None,
    *,
    d_aux_loss: float = 0.0,
    **more: Any,
) -> list[torch.Tensor | None]:
    """Return the gradients of x, of the given weights and of the tensors, None of those not needed."""
    need_x, need_weights, *needed = need
    d_weights = None
    if need_weights and weights_shape is not None:
        d_weights = np.empty(tuple(weights_shape), np.float32)
    # What is saved may have been put elsewhere since forward.
    dx, gradients = engine.backward(
        tensors,
        needed,
        tape,
        array_of(x),
        array_of(dy),
        d_aux_loss=d_aux_loss,
        need_dx=need_x or engine.is_spread,  # where it is wanted on some rank all make it
        d_expert_weights=d_weights,
        **more,
    )
    d_x = None if dx is None else torch.from_numpy(dx).view(x.dtype)
    return [d_x, None if d_weights is None else torch.from_numpy(d_weights), *gradients]


def _array(gradient: torch.Tensor | None) -> Array | None:
    return None if gradient is None else array_of(gradient.contiguous())
