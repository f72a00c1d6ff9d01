"""What forward reports on the routing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .batch import Batch
from .losses import loss
from .routing import Routing, RoutingGradient, nothing
from .settings import Array, Integers, Settings


@dataclass(frozen=True)
class Report:
    """Named as in libmoe.Report; arrays of tokens are of the whole call, padding included."""

    balance_loss: float
    z_loss: float
    aux_loss: float
    entropy: float
    tokens_per_expert: Integers  # [E]
    mean_probability: Array  # [E]
    expert_indices: Integers  # [T,C]
    expert_weights: Array  # [T,C]
    dropped_per_expert: Integers  # [E]
    losses: dict[str, float]
    n_dropped: int
    n_valid: int
    max_over_mean: float
    variation: float
    dead_share: float


def coefficients(settings: Settings) -> list[tuple[str, float]]:
    """What aux_loss is made of."""
    return [("balance", settings.balance_coef), ("z", settings.z_coef), *settings.losses.items()]


def report_on(settings: Settings, batch: Batch, routing: Routing) -> Report:
    """The losses and statistics; losses are 0 for T = 0, and so are ratios to a mean of 0."""
    p = routing.probabilities[batch.counts]  # [N,E]
    n_experts = p.shape[1]
    per_token = 1 / max(len(p), 1)
    indices = routing.indices
    dropped = routing.admission.dropped & (batch.computed & batch.counts)[:, None]
    # Padding that counts has its choices, though nothing computes them.
    used = np.where(batch.computed[:, None], indices, routing.chosen)[batch.counts]
    counts = np.bincount(used[used >= 0], minlength=n_experts)
    mean = counts.mean() or 1.0
    expert_indices = np.full((batch.n_rows, indices.shape[1]), -1)
    expert_indices[batch.valid] = indices
    expert_weights = np.zeros(expert_indices.shape)
    expert_weights[batch.valid] = routing.weights
    return Report(
        balance_loss=loss("balance", settings, batch, routing)[0],
        z_loss=loss("z", settings, batch, routing)[0],
        aux_loss=sum(c * loss(kind, settings, batch, routing)[0] for kind, c in coefficients(settings)),
        # 0 ln 0 = 0: an expert that is shut out adds nothing.
        entropy=-float(np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p)))) * per_token,
        tokens_per_expert=counts,
        mean_probability=p.sum(axis=0) * per_token,
        expert_indices=expert_indices,
        expert_weights=expert_weights,
        dropped_per_expert=np.bincount(routing.chosen[dropped], minlength=n_experts),
        losses={kind: loss(kind, settings, batch, routing)[0] for kind in settings.losses},
        n_dropped=int(dropped.sum()),
        n_valid=len(p),
        max_over_mean=float(counts.max() / mean),
        variation=float(counts.std() / mean),
        dead_share=float(np.mean(counts == 0)),
    )


def report_backward(
    settings: Settings, batch: Batch, routing: Routing, d_aux_loss: float, d_mean_probability: Array
) -> RoutingGradient:
    """What aux_loss and the caller's own losses of mean_probability [E] want of the router."""
    total = nothing(routing)
    for kind, coefficient in coefficients(settings):
        total = total.plus(d_aux_loss * coefficient, loss(kind, settings, batch, routing)[1])
    total.probabilities[batch.counts] += d_mean_probability / max(int(batch.counts.sum()), 1)
    return total
