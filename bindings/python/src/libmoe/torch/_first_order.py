"""Gradients of gradients, derivatives forwards and torch.func are refused, since the library has none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import InvalidArgumentError


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse a backward of which torch keeps a graph: its gradients would count as constants there.

    torch's own ``once_differentiable`` refuses only where the incoming gradient wants one itself.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise InvalidArgumentError(
                "create_graph: libmoe has no gradients of gradients; call backward or grad without "
                "create_graph=True"
            )
        refuse_transforms()
        return backward(ctx, *gradients)

    return checked


def refuse_tangents(tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that carry a tangent, which would be lost: y would seem not to depend on them."""
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):  # type: ignore[no-untyped-call]
        raise InvalidArgumentError(
            "jvp: libmoe has no derivatives forwards (torch.func.jvp, jacfwd, hessian, forward_ad); use "
            "backward() or torch.autograd.grad"
        )


_TRANSFORMS = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Vmap)


def refuse_transforms() -> None:
    """Refuse a call within a transform of torch.func, of which torch itself says less."""
    if torch.compiler.is_compiling():
        return
    outer = torch._C._functorch.peek_interpreter_stack()
    if outer is not None and outer.key() in _TRANSFORMS:
        raise InvalidArgumentError(
            "torch.func: libmoe is not for its transforms (grad, vjp, jacrev, vmap, per-sample gradients); "
            "use backward() or torch.autograd.grad, and a loop or a batch in place of vmap"
        )
