"""One expert, on the N rows that chose it; several kinds in one layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activations import ACTIVATIONS, gated
from .linear import linear, linear_backward
from .settings import Array, Group, Parameters, Settings, stored


@dataclass(frozen=True)
class ExpertCall:
    """What one expert saw and made."""

    x: Array  # [N,H]
    mask: Array | float  # [N,I], what dropout multiplies by: 0, or 1 / (1 - dropout)
    gate: Array | None  # [N,I] before the activation; None where there is no gate
    up: Array | None  # [N,I], in an MLP expert before the activation; None in a linear one
    inner: Array  # [N,I], what goes down; in a linear expert x
    output: Array  # [N,H]


def of_expert(parameters: Parameters, prefix: str, e: int) -> Parameters:
    """Expert e's own slices, as views: "experts.up.weight" [E,I,H] becomes "up.weight" [I,H].

    The only map of a linear expert is "down" here.
    """
    own = {
        name.removeprefix(prefix): value[e]
        for name, value in parameters.items()
        if name.startswith(prefix) and not name.startswith(f"{prefix}router.")
    }
    return {name if "." in name else f"down.{name}": value for name, value in own.items()}


def expert(settings: Settings, group: Group, own: Parameters, x: Array, mask: Array | float) -> ExpertCall:
    """W_down inner + b_down: inner is act(up) in MLP, gated(gate, up) in gated and x in linear experts."""
    if group.expert_kind == "identity":
        return ExpertCall(x, 1.0, None, None, x, x)
    if group.expert_kind == "zero":
        return ExpertCall(x, 1.0, None, None, x, np.zeros_like(x))
    if group.expert_kind == "constant":
        return ExpertCall(x, 1.0, None, None, x, np.tile(own["down.constant"], (len(x), 1)))
    x = stored(settings, x)
    if "up.weight" not in own:
        return ExpertCall(x, 1.0, None, None, x, linear(own, "down", x))  # nothing to drop
    up = stored(settings, linear(own, "up", x))  # [N,I]
    if "gate.weight" in own:
        gate = stored(settings, linear(own, "gate", x))  # [N,I]
        inner = stored(settings, gated(group, gate, up)[0] * mask)
    else:
        gate = None
        inner = stored(settings, ACTIVATIONS[group.activation](up)[0] * mask)
    return ExpertCall(x, mask, gate, up, inner, linear(own, "down", inner))


def expert_backward(
    settings: Settings,
    group: Group,
    own: Parameters,
    gradients: Parameters,
    call: ExpertCall,
    weights: Array,
    d_mixed: Array,
) -> Array:
    """Add to the expert's gradients; return that of its x [N,H].

    d_mixed [N,H] is the gradient of weights * output, weights [N,1].
    """
    if group.expert_kind == "identity":
        return weights * d_mixed
    if group.expert_kind == "zero":
        return np.zeros_like(d_mixed)
    if group.expert_kind == "constant":
        gradients["down.constant"] += (weights * d_mixed).sum(axis=0)
        return np.zeros_like(d_mixed)
    linear_backward(own, gradients, "down", call.inner, stored(settings, weights * d_mixed))
    d_inner = weights * (stored(settings, d_mixed) @ own["down.weight"]) * call.mask  # [N,I]
    if call.up is None:
        return d_inner
    if call.gate is None:
        _, slope = ACTIVATIONS[group.activation](call.up)
        return linear_backward(own, gradients, "up", call.x, stored(settings, d_inner * slope))
    _, along_gate, along_up = gated(group, call.gate, call.up)
    d_gate = stored(settings, d_inner * along_gate)  # [N,I]
    d_x_gate = linear_backward(own, gradients, "gate", call.x, d_gate)
    return d_x_gate + linear_backward(own, gradients, "up", call.x, stored(settings, d_inner * along_up))


def weight_backward(settings: Settings, own: Parameters, call: ExpertCall, d_mixed: Array) -> Array:
    """<d_mixed, output> [N], of which the matrix's part is multiplied with d_mixed as it is stored."""
    if "down.weight" not in own:
        total: Array = (d_mixed * call.output).sum(axis=1)
        return total
    bias = own.get("down.bias", np.float64(0))
    by_matrix = stored(settings, d_mixed) * (call.output - bias)  # [N,H]
    total = (by_matrix + d_mixed * bias).sum(axis=1)
    return total
