"""Gradients of gradients are refused, since the library has none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

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
        return backward(ctx, *gradients)

    return checked
