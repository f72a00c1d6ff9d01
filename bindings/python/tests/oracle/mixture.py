"""The chosen experts together: rows to experts, outputs back to tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .experts import ExpertCall, expert, expert_backward, of_expert, weight_backward
from .routing import Routing
from .settings import Array, Group, Integers, Parameters, Settings


@dataclass(frozen=True)
class Part:
    """One expert's part in the mixture."""

    prefix: str  # of its parameters' names
    group: Group
    e: int  # number within the group
    tokens: Integers  # [N], which rows of x
    slots: Integers  # [N], which of each token's choices this expert was
    call: ExpertCall


def mix(
    settings: Settings,
    parameters: Parameters,
    routing: Routing,
    n_experts: int,
    x: Array,
    dropout_mask: Array | None,
) -> tuple[Array, list[Part]]:
    """Sum over k of w expert(x), or expert(w x):  x [T,H] -> [T,H]."""
    y = np.zeros_like(x)
    parts: list[Part] = []
    for prefix, group in settings.groups(n_experts):
        for e in range(group.n_experts):
            tokens, slots = np.nonzero(routing.indices == len(parts))
            weights = routing.weights[tokens, slots, None]  # [N,1]
            before, after = (weights, 1.0) if settings.weight_on_input else (1.0, weights)
            mask = 1.0 if dropout_mask is None else dropout_mask[tokens, slots]
            call = expert(settings, group, of_expert(parameters, prefix, e), before * x[tokens], mask)
            np.add.at(y, tokens, after * call.output)  # a token may be there twice
            parts.append(Part(prefix, group, e, tokens, slots, call))
    return y, parts


def mix_backward(
    settings: Settings,
    parameters: Parameters,
    gradients: Parameters,
    routing: Routing,
    parts: list[Part],
    x: Array,
    d_y: Array,
) -> tuple[Array, Array]:
    """Add to the experts' gradients; return d_x [T,H] and d_weights [T,C]."""
    d_x, d_weights = np.zeros_like(x), np.zeros_like(routing.weights)
    for part in parts:
        tokens, slots, call = part.tokens, part.slots, part.call
        own = of_expert(parameters, part.prefix, part.e)
        own_gradients = of_expert(gradients, part.prefix, part.e)
        d_mixed = d_y[tokens]  # [N,H]
        weights = routing.weights[tokens, slots, None]  # [N,1]
        after = np.ones_like(weights) if settings.weight_on_input else weights
        d_row = expert_backward(settings, part.group, own, own_gradients, call, after, d_mixed)
        if settings.weight_on_input:
            d_weights[tokens, slots] = (d_row * x[tokens]).sum(axis=1)
            d_row = weights * d_row
        else:
            d_weights[tokens, slots] = weight_backward(settings, own, call, d_mixed)
        np.add.at(d_x, tokens, d_row)
    return d_x, d_weights
