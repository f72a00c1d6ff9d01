"""What the gate reads: x with jitter, then a norm, then dropout."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .batch import Batch
from .settings import Array, Parameters, Settings


@dataclass(frozen=True)
class RouterInput:
    """The gate's input and the way to it."""

    x: Array  # [T,H], what the gate reads
    jitter: Array  # [T,H] or [1,1], factors of the layer's x
    kept: Array  # the same, factors of router dropout
    standard: Array | None  # [T,H], (x - mean) / deviation of a batch-normalised gate
    deviation: Array | None  # [H], or [T,1] of a norm of each token by itself
    changed: Parameters = field(default_factory=dict)  # running statistics after a training call


def dropout_factors(settings: Settings, batch: Batch, on: str) -> Array:
    """0, or 1 / (1 - rate)."""
    if settings.router_dropout_on != on or batch.draws.kept is None:
        return np.ones((1, 1))
    return batch.draws.kept / (1 - settings.router_dropout)


def read(settings: Settings, parameters: Parameters, batch: Batch) -> RouterInput:
    """x [T,H] of a batch -> the gate's input."""
    ones = np.ones((1, 1))
    jitter = ones if batch.draws.jitter is None else 1 + settings.jitter * batch.draws.jitter
    kept = dropout_factors(settings, batch, "input")
    x = batch.x * jitter
    if settings.router_norm != "none":
        deviation = np.sqrt((x**2).mean(axis=1, keepdims=True) + (settings.router_norm_epsilon or 1e-6))
        normal = x / deviation * row_scale(settings, parameters, x.shape[1])
        return RouterInput(normal * kept, jitter, kept, x / deviation, deviation)
    if not settings.router_batch_norm:
        return RouterInput(x * kept, jitter, kept, None, None)
    mean, variance = parameters["router.norm.running_mean"], parameters["router.norm.running_var"]
    changed: Parameters = {}
    seen = x[batch.computed]
    if batch.training and len(seen):
        momentum = settings.batch_norm_momentum or 0.1
        changed["router.norm.running_mean"] = (1 - momentum) * mean + momentum * seen.mean(axis=0)
        # The running variance is the unbiased one, as torch keeps it; of a single token there is none.
        unbiased = seen.var(axis=0, ddof=1) if len(seen) > 1 else variance
        changed["router.norm.running_var"] = (1 - momentum) * variance + momentum * unbiased
        mean, variance = seen.mean(axis=0), seen.var(axis=0)
    deviation = np.sqrt(variance + (settings.batch_norm_epsilon or 1e-5))
    standard = (x - mean) / deviation
    normal = standard * parameters["router.norm.weight"] + parameters["router.norm.bias"]
    return RouterInput(normal * kept, jitter, kept, standard, deviation, changed)


def row_scale(settings: Settings, parameters: Parameters, hidden_size: int) -> Array:
    """[H], what a token's own norm multiplies by: Gemma 4's scale is 1 / sqrt(H)."""
    weight = (
        parameters["router.norm.weight"] if settings.router_norm == "rms_weight" else np.ones(hidden_size)
    )
    return weight * (settings.router_norm_scale or hidden_size**-0.5)


def read_backward(
    settings: Settings,
    parameters: Parameters,
    gradients: Parameters,
    batch: Batch,
    made: RouterInput,
    d_read: Array,
) -> Array:
    """Add to the gradients of the normalisation; return the gate's share of d_x [T,H]."""
    d_x = d_read * made.kept
    if made.standard is not None and made.deviation is not None and settings.router_norm != "none":
        if settings.router_norm == "rms_weight":
            scale = settings.router_norm_scale or made.x.shape[1] ** -0.5
            gradients["router.norm.weight"] += (d_x * made.standard).sum(axis=0) * scale
        d_x = d_x * row_scale(settings, parameters, made.x.shape[1])
        d_x = (d_x - made.standard * (d_x * made.standard).mean(axis=1, keepdims=True)) / made.deviation
    elif made.standard is not None and made.deviation is not None:
        gradients["router.norm.weight"] += (d_x * made.standard).sum(axis=0)
        gradients["router.norm.bias"] += d_x.sum(axis=0)
        d_x = d_x * parameters["router.norm.weight"] / made.deviation
        seen, n_seen = batch.computed[:, None], batch.computed.sum()
        if batch.training and n_seen:  # mean and variance depend on x
            of_means = d_x.sum(axis=0) + made.standard * (d_x * made.standard).sum(axis=0)
            d_x = d_x - np.where(seen, of_means / n_seen, 0.0)
    return d_x * made.jitter
