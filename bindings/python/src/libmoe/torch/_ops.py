"""The experts as operators of torch: what torch.compile and others that look at operators see of them.

:func:`run` takes the shorter way of an autograd function where nobody looks: an operator that is written in
Python costs several times as much per call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..errors import InvalidArgumentError
from . import _by_call
from ._by_call import Described, Experts, Spread
from ._first_order import first_order, refuse_tangents, refuse_transforms
from ._laid_out import require_fitting
from .prepared import Prepared, prepared_of

if TYPE_CHECKING:
    from ..expert_ranks import ExpertRanks


@torch.library.custom_op("libmoe::experts", mutates_args=(), device_types="cpu")
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: list[Tensor],
    form: str,
    sizes: list[int],
    glu: list[float],
    prepared: int,
    saves: bool,
) -> tuple[Tensor, Tensor]:
    """Return y [T, H] and what backward wants, as bytes.

    x [T, H], ids and weights [T, K]; tensors, form, sizes (E, I) and glu describe the experts.
    """
    given = Experts.of(form, sizes, glu)
    require_fitting(given, x, ids, weights, tensors)
    routing = ids.contiguous(), weights.contiguous()
    y, saved = _forward(x.contiguous(), *routing, tensors, given, prepared, saves=saves)
    return y, torch.empty(0, dtype=torch.uint8) if saved is None else saved


def _forward(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    given: Experts,
    prepared: int,
    *,
    saves: bool,
    described: Described | None = None,
    spread: Spread | None = None,
) -> tuple[Tensor, Tensor | None]:
    packed = prepared_of(prepared)
    if packed is not None:
        packed.require_usable(tensors, has_matrices=given.form.has_matrices, saves=saves)
    more: Any = {"saves": saves, "described": described, "spread": spread}
    return _by_call.forward(given, x, ids, weights, tensors, packed, **more)


@experts.register_fake
def _(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: list[Tensor],
    form: str,
    sizes: list[int],
    glu: list[float],
    prepared: int,
    saves: bool,
) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size() if saves else 0
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty((size,), dtype=torch.uint8)


# It and its fake take more than ten parameters: an operator of torch takes tensors, numbers and words alone.
@torch.library.custom_op("libmoe::experts_backward", mutates_args=(), device_types="cpu")
def experts_backward(
    dy: Tensor,
    saved: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: list[Tensor],
    form: str,
    sizes: list[int],
    glu: list[float],
    prepared: int,
    need: list[bool],
) -> list[Tensor]:
    """Return the gradients of x, weights and the tensors, those that are needed, in this order."""
    given = Experts.of(form, sizes, glu)
    require_fitting(given, x, ids, weights, tensors)
    if dy.shape != x.shape or dy.dtype != x.dtype or len(need) != 2 + len(tensors):
        raise InvalidArgumentError(
            f"dy, need: expected {x.dtype} {list(x.shape)} and {2 + len(tensors)} flags, got {dy.dtype} "
            f"{list(dy.shape)} and {len(need)}"
        )
    routing = ids.contiguous(), weights.contiguous()
    rows = dy.contiguous(), saved, x.contiguous()
    return _by_call.backward(given, *rows, *routing, tensors, prepared_of(prepared), need)


@experts_backward.register_fake
def _(
    dy: Tensor,
    saved: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: list[Tensor],
    form: str,
    sizes: list[int],
    glu: list[float],
    prepared: int,
    need: list[bool],
) -> list[Tensor]:
    plain = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weights)]
    made = [*plain, *map(torch.empty_like, tensors)]
    return [gradient for gradient, needed in zip(made, need) if needed]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, ids, weights, tensors, *ctx.told, ctx.number, _ = inputs
    ctx.prepared = prepared_of(ctx.number)  # held, as backward reads it, or spoils it
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, ids, weights, output[1], *tensors)


def _spoil(packed: Prepared | None) -> None:
    if packed is not None and not packed.is_frozen:
        packed.spoil("a backward has computed gradients of the weights, which an optimiser may follow")


def _backward(ctx: Any, dy: Tensor | None, _: Any) -> Any:
    refuse_transforms()
    x, ids, weights, saved, *tensors = ctx.saved_tensors
    need_x, _, need_weights, need_tensors, *_ = ctx.needs_input_grad
    need = [need_x, need_weights, *need_tensors]
    if dy is None or not any(need):
        return None, None, None, [None] * len(tensors), None, None, None, None, None
    if any(need_tensors):
        _spoil(ctx.prepared)
    made = iter(experts_backward(dy, saved, x, ids, weights, tensors, *ctx.told, ctx.number, need))
    d_x, d_weights, *gradients = (next(made) if needed else None for needed in need)
    return d_x, None, d_weights, gradients, None, None, None, None, None


experts.register_autograd(_backward, setup_context=_setup)


class Through(torch.autograd.Function):
    """The same without an operator, and over ranks.

    There every rank goes back where one does, so ``anchor`` wants a gradient where nothing else of this rank
    does; and one whose y has no gradient takes it for 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        given: Experts,
        prepared: int,
        described: Described | None,
        spread: Spread | None,
        anchor: Tensor | None,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Compute, and keep the bytes."""
        more: Any = {"saves": True, "described": described, "spread": spread}
        y, saved = _forward(x, ids, weights, tensors, given, prepared, **more)
        ctx.set_materialize_grads(False)
        ctx.given, ctx.prepared = given, prepared_of(prepared)  # held, as backward reads it, or spoils it
        ctx.ranks = None if spread is None else spread.ranks
        ctx.save_for_backward(x, ids, weights, saved, *tensors)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Any) -> Any:
        """Return the gradients that are asked for."""
        x, ids, weights, saved, *tensors = ctx.saved_tensors
        need = [ctx.needs_input_grad[5], *ctx.needs_input_grad[7:]]
        if dy is None:
            if ctx.ranks is None:
                return (None,) * (8 + len(tensors))
            dy = torch.zeros_like(x)
        if any(need[2:]):
            _spoil(ctx.prepared)
        rows = dy.contiguous(), saved, x
        given = *rows, ids, weights, tensors, ctx.prepared, need
        made = iter(_by_call.backward(ctx.given, *given, ctx.ranks))
        d_x, d_weights, *gradients = (next(made) if needed else None for needed in need)
        return None, None, None, None, None, d_x, None, d_weights, *gradients


def run(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: list[Tensor],
    given: Experts,
    prepared: int,
    described: Described | None = None,
    ranks: ExpertRanks | None = None,
) -> Tensor:
    """Return y of contiguous x [T, H], ids and weights [T, K]; see _by_call.forward for ``described``."""
    refuse_tangents((x, weights, *tensors))
    refuse_transforms()
    if ranks is not None:
        spread: Tensor = _over(ranks, x, ids, weights, tensors, given, prepared)
        return spread
    saves = torch.is_grad_enabled() and (
        x.requires_grad or weights.requires_grad or any(t.requires_grad for t in tensors)
    )
    if is_watched(x, ids, weights, *tensors):
        y: Tensor = experts(x, ids, weights, tensors, *given.told(), prepared, saves)[0]
    elif saves:
        told = given, prepared, described, None, None
        y = Through.apply(*told, x, ids, weights, *tensors)  # type: ignore[no-untyped-call]
    else:
        y = _forward(x, ids, weights, tensors, given, prepared, saves=False, described=described)[0]
    return y


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the other ranks are outside of every graph
def _over(
    ranks: ExpertRanks,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: list[Tensor],
    given: Experts,
    prepared: int,
) -> Tensor:
    """Return y where the experts are spread over ranks: where one of them goes back, all do."""
    spread, inputs = Spread(ranks, 0), (x, weights, *tensors)
    if torch.is_grad_enabled():
        wanted = any(tensor.requires_grad for tensor in inputs)
        rows = x, ids, weights, tensors, prepared_of(prepared), ranks
        spread = Spread(ranks, _by_call.agreed_bytes(given, *rows, saves=wanted))
        if spread.saved_bytes > 0:
            anchor = None if wanted else torch.empty(0, requires_grad=True)
            told = given, prepared, None, spread, anchor
            found: Tensor = Through.apply(*told, x, ids, weights, *tensors)  # type: ignore[no-untyped-call]
            return found
    return _forward(x, ids, weights, tensors, given, prepared, saves=False, spread=spread)[0]


_PLAIN = (Tensor, torch.nn.Parameter)


def is_watched(*tensors: Tensor) -> bool:
    """Whether somebody follows torch's operators: a compiler, a mode, a transform, a kind of tensor."""
    return (
        torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
        or any(type(tensor) not in _PLAIN for tensor in tensors)
    )
