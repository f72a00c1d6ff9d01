"""The gate: logits of all experts with noise and dropout, a hierarchy's joined, warm-up's experts open."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .batch import Batch
from .linear import linear, linear_backward, logsumexp, sigmoid, softmax, softplus
from .router_input import dropout_factors
from .settings import Array, Parameters, Settings


@dataclass(frozen=True)
class Logits:
    """What the gate says of T tokens, and how it came to that."""

    z: Array  # [T,E], what everything goes by
    clean: Array  # [T,E], what the gate said before the noise
    spread: Array  # [T,E] or [1,1], the noise's standard deviation
    raw_spread: Array  # [T,E], x W_n^T, else empty
    kept: Array  # [T,E] or [1,1], factors of router dropout
    coarse: Array  # [T,G], of a hierarchy's groups, else empty
    shares: Array  # [T,G,E/G], softmax within each group, else empty
    changed: Parameters = field(default_factory=dict)  # router.active_experts after a training call


def in_groups(of_experts: Array, n_groups: int) -> Array:
    """[T,E] -> [T,G,E/G]."""
    n_tokens, n_experts = of_experts.shape
    return of_experts.reshape(n_tokens, n_groups, n_experts // n_groups)


def active_experts(
    settings: Settings, parameters: Parameters, batch: Batch, n_experts: int
) -> tuple[int, Parameters]:
    """How many experts warm-up lets be chosen: it grows in training, and stays in evaluation."""
    if not settings.warmup_steps:
        return n_experts, {}
    if not batch.training:
        return int(parameters["router.active_experts"][0]), {}
    first = settings.warmup_experts or settings.top_k
    more = (n_experts - first) * min(batch.step, settings.warmup_steps) // settings.warmup_steps
    return first + more, {"router.active_experts": np.array([first + more], np.float64)}


def gate(settings: Settings, parameters: Parameters, batch: Batch, x: Array) -> Logits:
    """The gate's input x [T,H] -> logits: linear, noise, dropout, hierarchy, warm-up, in this order."""
    clean = linear(parameters, "router", x)
    own = 1.0 if settings.noise == "none" else settings.noise_std
    spread, raw = np.full((1, 1), own), np.empty((len(x), 0))
    if settings.noise == "learned":
        raw = linear(parameters, "router.noise", x)
        spread = softplus(raw) + 0.01
    noisy = clean if batch.draws.noise is None else clean + batch.draws.noise * spread
    kept = dropout_factors(settings, batch, "logits")
    z = noisy * kept
    coarse, shares = np.empty((len(x), 0)), np.empty((len(x), 0, 0))
    if settings.router == "hierarchical":
        coarse = linear(parameters, "router.coarse", x)  # [T,G]
        grouped = in_groups(z, settings.n_groups)
        shares = softmax(grouped)
        # ln of softmax(coarse)_g * share, but for logsumexp of coarse, which is the same for all experts.
        z = (coarse[:, :, None] + grouped - logsumexp(grouped)[:, :, None]).reshape(z.shape)
    active, changed = active_experts(settings, parameters, batch, z.shape[1])
    z = np.where(np.arange(z.shape[1]) < active, z, -np.inf)
    return Logits(z, clean, spread, raw, kept, coarse, shares, changed)


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
    d = np.where(made.z == -np.inf, 0.0, d_z)
    if settings.router == "hierarchical":
        grouped = in_groups(d, settings.n_groups)
        of_group = grouped.sum(axis=2)  # [T,G]
        d_x += linear_backward(parameters, gradients, "router.coarse", x, of_group)
        d = (grouped - made.shares * of_group[:, :, None]).reshape(d.shape)
    d = d * made.kept
    if settings.noise == "learned":
        d_spread = d_spread if batch.draws.noise is None else d_spread + d * batch.draws.noise
        d_x += linear_backward(parameters, gradients, "router.noise", x, d_spread * sigmoid(made.raw_spread))
    return d_x + linear_backward(parameters, gradients, "router", x, d + d_clean)
