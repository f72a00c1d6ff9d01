"""The layer: forward on one page, then backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .batch import Batch, Options, batch_of
from .experts import ExpertCall
from .mixture import Part, mix, mix_backward
from .report import Report, report_backward, report_on
from .routing import Routing, route, route_backward
from .settings import Array, Parameters, Settings
from .shared import Shared, join, join_backward

BUFFERS = (  # what has no gradient
    "router.selection_bias",
    "router.norm.running_mean",
    "router.norm.running_var",
    "router.active_experts",
)


@dataclass(frozen=True)
class Forward:
    """The output, and what backward needs."""

    settings: Settings
    parameters: Parameters
    y: Array  # [T,H], of all rows of the call
    batch: Batch
    read: Array  # [T,H], what the experts read
    routing: Routing
    parts: list[Part]  # [E]
    shared: Shared
    report: Report

    @property
    def calls(self) -> list[ExpertCall]:
        """What each expert saw and made."""
        return [part.call for part in self.parts]

    @property
    def changed(self) -> Parameters:
        """Parameters without gradients that a training call changes."""
        return self.routing.made.changed | self.routing.gate.changed


def forward(
    settings: Settings,
    parameters: Mapping[str, ArrayLike],
    x: ArrayLike,
    dropout_mask: Array | None = None,
    options: Options = Options(),  # noqa: B008 (it is frozen)
) -> Forward:
    """y[t] = sum over k of weights[t,k] * expert(indices[t,k])(x[t]), with all that the settings add.

    x [T,H] of any precision; dropout_mask [T,K,I] holds 0 or 1 / (1 - dropout), and None drops nothing.
    """
    p: Parameters = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    x = np.asarray(x, np.float64)
    batch = batch_of(x, options, dropout_mask)
    n_experts = settings.n_experts or len(p["router.weight"])
    routing = route(settings, p, batch, n_experts)
    read = batch.x * routing.made.jitter if settings.jitter_experts else batch.x
    mixture, parts = mix(settings, p, routing, n_experts, read, batch.dropout_mask)
    joined, shared = join(settings, p, read, mixture)
    y = np.zeros_like(x)
    y[batch.valid] = np.where(batch.computed[:, None], joined + p.get("output.bias", np.float64(0)), 0.0)
    report = report_on(settings, batch, routing)
    return Forward(settings, p, y, batch, read, routing, parts, shared, report)


def backward(
    done: Forward,
    d_y: ArrayLike,
    d_aux_loss: float = 1.0,
    d_mean_probability: ArrayLike | None = None,
    d_expert_weights: Array | None = None,
) -> tuple[Array, Parameters]:
    """d_x [T,H] and the parameters' gradients, for the objective <d_y, y> + d_aux_loss * aux_loss.

    d_mean_probability [E] is what the objective has beside that; d_expert_weights [T,K] is filled.
    """
    settings, p, batch, routing = done.settings, done.parameters, done.batch, done.routing
    d_y = np.asarray(d_y, np.float64)[batch.valid] * batch.computed[:, None]
    gradients = {name: np.zeros_like(value) for name, value in p.items() if name not in BUFFERS}
    if "output.bias" in gradients:
        gradients["output.bias"] += d_y.sum(axis=0)
    d_read, d_mixture = join_backward(settings, p, gradients, done.shared, done.read, d_y)
    d_mixed_x, d_weights = mix_backward(settings, p, gradients, routing, done.parts, done.read, d_mixture)
    d_read += d_mixed_x
    own_loss = np.asarray(0.0 if d_mean_probability is None else d_mean_probability, np.float64)
    d_routing = report_backward(settings, batch, routing, d_aux_loss, own_loss)
    d_routing.weights[...] += d_weights
    if d_expert_weights is not None:
        d_expert_weights[...] = 0
        d_expert_weights[batch.valid] = np.where(routing.indices >= 0, d_routing.weights, 0.0)
    d_x = np.zeros_like(done.y)
    d_x[batch.valid] = d_read * routing.made.jitter if settings.jitter_experts else d_read
    d_x[batch.valid] += route_backward(settings, p, gradients, batch, routing, d_routing)
    return d_x, gradients
