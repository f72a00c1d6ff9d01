"""Experts that every token uses, and how they join the mixture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .experts import ExpertCall, expert, expert_backward, of_expert
from .linear import linear, linear_backward, sigmoid, softmax, softmax_backward
from .settings import Array, Parameters, Settings


@dataclass(frozen=True)
class Shared:
    """What they made of T tokens, and their share in y."""

    calls: list[ExpertCall]  # [S]
    mixture: Array  # [T,H], of the chosen experts
    share: Array  # [T,S]: 1, or a sigmoid, or c_1
    routed_share: Array  # [T,1]: 1, or c_0


def count(parameters: Parameters) -> int:
    """S, as the parameters show it."""
    return next((len(v) for name, v in parameters.items() if name.startswith("shared.") and v.ndim == 3), 0)


def join(settings: Settings, parameters: Parameters, x: Array, mixture: Array) -> tuple[Array, Shared]:
    """y [T,H] of x and of what the chosen experts made."""
    n_shared = count(parameters)
    _, group = settings.groups(0)[0]
    calls = [expert(settings, group, of_expert(parameters, "shared.", s), x, 1.0) for s in range(n_shared)]
    share, routed_share = np.ones((len(x), n_shared)), np.ones((len(x), 1))
    if n_shared and settings.shared_gate == "sigmoid":
        share = sigmoid(linear(parameters, "shared.router", x))
    elif n_shared and settings.shared_gate == "residual":
        c = softmax(linear(parameters, "shared.router", x))  # [T,2]
        routed_share, share = c[:, :1], c[:, 1:]
    y = routed_share * mixture
    for s, call in enumerate(calls):
        y = y + share[:, [s]] * call.output
    return y, Shared(calls, mixture, share, routed_share)


def join_backward(
    settings: Settings, parameters: Parameters, gradients: Parameters, made: Shared, x: Array, d_y: Array
) -> tuple[Array, Array]:
    """Add to the shared experts' gradients; return d_x and the gradient of the mixture, both [T,H]."""
    _, group = settings.groups(0)[0]
    d_x, d_share = np.zeros_like(x), np.zeros_like(made.share)
    for s, call in enumerate(made.calls):
        own, own_gradients = of_expert(parameters, "shared.", s), of_expert(gradients, "shared.", s)
        d_share[:, s] = (d_y * call.output).sum(axis=1)
        d_x += expert_backward(settings, group, own, own_gradients, call, made.share[:, [s]], d_y)
    if made.calls and settings.shared_gate == "sigmoid":
        d_gate = d_share * made.share * (1 - made.share)
        d_x += linear_backward(parameters, gradients, "shared.router", x, d_gate)
    elif made.calls and settings.shared_gate == "residual":
        d_routed = (d_y * made.mixture).sum(axis=1, keepdims=True)
        c, d_c = np.hstack([made.routed_share, made.share]), np.hstack([d_routed, d_share])
        d_x += linear_backward(parameters, gradients, "shared.router", x, softmax_backward(c, d_c))
    return d_x, made.routed_share * d_y
