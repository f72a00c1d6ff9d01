"""The gate: logits of all experts, a hierarchy's out of those of two gates, with dropout and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .batch import Batch
from .linear import linear, linear_backward, logsumexp, sigmoid, softmax, softplus
from .router_input import dropout_factors
from .settings import Array, Parameters, Settings


@dataclass(frozen=True)
class Logits:
    """What the gate says of T tokens, and how it came to that."""

    z: Array  # [T,E], with all noise: what everything goes by
    clean: Array  # [T,E], before the noise
    coarse: Array  # [T,G], of a hierarchy's groups, else empty
    shares: Array  # [T,G,E/G], softmax within each group, else empty
    kept: Array  # [T,E] or [1,1], factors of router dropout
    spread: Array  # [T,E] or [1,1], the noise's standard deviation
    raw_spread: Array  # [T,E], x W_n^T, else empty


def in_groups(of_experts: Array, n_groups: int) -> Array:
    """[T,E] -> [T,G,E/G]."""
    n_tokens, n_experts = of_experts.shape
    return of_experts.reshape(n_tokens, n_groups, n_experts // n_groups)


def gate(settings: Settings, parameters: Parameters, batch: Batch, x: Array) -> Logits:
    """The gate's input x [T,H] -> logits: linear, hierarchy, dropout, noise, in this order."""
    z = linear(parameters, "router", x)
    coarse, shares = np.empty((len(x), 0)), np.empty((len(x), 0, 0))
    if settings.router == "hierarchical":
        coarse = linear(parameters, "router.coarse", x)  # [T,G]
        grouped = in_groups(z, settings.n_groups)
        shares = softmax(grouped)
        # ln of softmax(coarse)_g * share, but for logsumexp of coarse, which is the same for all experts.
        z = (coarse[:, :, None] + grouped - logsumexp(grouped)[:, :, None]).reshape(z.shape)
    kept = dropout_factors(settings, batch, "logits")
    clean = z * kept
    spread, raw = np.full((1, 1), settings.noise_std), np.empty((len(x), 0))
    if settings.noise == "learned":
        raw = linear(parameters, "router.noise", x)
        spread = softplus(raw) + 0.01
    noisy = clean if batch.draws.noise is None else clean + batch.draws.noise * spread
    return Logits(noisy, clean, coarse, shares, kept, spread, raw)


def gate_backward(
    settings: Settings,
    parameters: Parameters,
    gradients: Parameters,
    batch: Batch,
    x: Array,
    made: Logits,
    d_z: Array,
    d_clean: Array,
    d_spread: Array,
) -> Array:
    """Add to the gates' gradients; return the gradient of their input [T,H].

    d_clean and d_spread [T,E] are what MOE_LOSS_LOAD adds, which looks behind the noise.
    """
    d_x = np.zeros_like(x)
    if settings.noise == "learned":
        d_spread = d_spread if batch.draws.noise is None else d_spread + d_z * batch.draws.noise
        d_x += linear_backward(parameters, gradients, "router.noise", x, d_spread * sigmoid(made.raw_spread))
    d = (d_z + d_clean) * made.kept
    if settings.router == "hierarchical":
        grouped = d.reshape(made.shares.shape)
        of_group = grouped.sum(axis=2)  # [T,G]
        d_x += linear_backward(parameters, gradients, "router.coarse", x, of_group)
        d = (grouped - made.shares * of_group[:, :, None]).reshape(d.shape)
    return d_x + linear_backward(parameters, gradients, "router", x, d)
