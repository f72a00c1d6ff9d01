"""What chosen experts weigh: values from scores or logits, divided, scaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .choice import SCORES
from .linear import sigmoid, softmax, softmax_backward
from .logits import in_groups
from .settings import Array, Booleans, Integers, Parameters, Settings


@dataclass(frozen=True)
class Weights:
    """The weights of T tokens' choices, and how they came about."""

    weights: Array  # [T,C], 0 where there is no choice
    values: Array  # [T,C], what was divided; 0 where a choice does not count
    indices: Integers  # [T,C], -1 for none
    counted: Booleans  # [T,C], which of them are in the divisor


def at(of_all: Array, indices: Integers) -> Array:
    """[T,E] -> [T,C]: the chosen experts' values, 0 for none."""
    return np.where(indices >= 0, np.take_along_axis(of_all, np.maximum(indices, 0), axis=1), 0.0)


def spread(of_chosen: Array, indices: Integers, n_experts: int) -> Array:
    """[T,C] -> [T,E]: every value added at its expert's place."""
    of_all = np.zeros((len(indices), n_experts))
    tokens, slots = np.nonzero(indices >= 0)
    np.add.at(of_all, (tokens, indices[tokens, slots]), of_chosen[tokens, slots])
    return of_all


def weigh(
    settings: Settings, parameters: Parameters, logits: Array, indices: Integers, counted: Booleans
) -> Weights:
    """w = v / D * routed_scale * expert scale, of those that count."""
    values = np.where(counted, values_of(settings, logits, indices, counted), 0.0)
    weights = values / divisor(settings, values, counted)[0] * factors(settings, parameters, indices)
    return Weights(weights, values, indices, counted)


def factors(settings: Settings, parameters: Parameters, indices: Integers) -> Array:
    """routed_scale * expert scale [T,C]."""
    scale = parameters.get("router.expert_scale")
    routed = np.float64(settings.routed_scale or 1.0)
    return routed * (np.ones(indices.shape) if scale is None else scale[indices])


def weigh_backward(
    settings: Settings,
    parameters: Parameters,
    gradients: Parameters,
    logits: Array,
    made: Weights,
    d_weights: Array,
) -> Array:
    """Add to the gradient of the experts' scale; return d_logits [T,E]."""
    size, slopes = divisor(settings, made.values, made.counted)
    if "router.expert_scale" in gradients:
        d_scale = d_weights * made.values / size * (settings.routed_scale or 1.0)
        here = made.counted
        np.add.at(gradients["router.expert_scale"], made.indices[here], d_scale[here])
    d_shares = d_weights * factors(settings, parameters, made.indices)  # of values / size
    d_size = -(d_shares * made.values).sum(axis=1, keepdims=True) / size**2
    d_values = np.where(made.counted, d_shares / size + d_size * slopes, 0.0)
    return values_backward(settings, logits, made, d_values)


# ------------------------------------------------------------------------------------------------------------
# Values
# ------------------------------------------------------------------------------------------------------------


def values_of(settings: Settings, logits: Array, indices: Integers, counted: Booleans) -> Array:
    """v [T,C] of the chosen experts."""
    chosen = at(logits, indices)
    if settings.router_weights == "equal":
        return np.ones(indices.shape)
    if settings.router_weights == "topk_softmax":
        exponentials = np.where(counted, np.exp(chosen - row_max(chosen, counted)), 0.0)
        return exponentials / np.where(counted.any(axis=1), exponentials.sum(axis=1), 1.0)[:, None]
    if settings.router_weights == "topk_sigmoid":
        return sigmoid(chosen)
    if settings.router_weights == "sparsemixer":
        slots = range(indices.shape[1])
        counting = np.where(counted, indices, -1)
        shares = [at(sparse_softmax(settings, logits, counting, k), counting[:, [k]]) for k in slots]
        return np.concatenate(shares, axis=1)
    if settings.router_weights == "group_softmax":
        of_group, share, _ = group_shares(settings, logits, indices, counted)
        return of_group * share
    return at(SCORES[settings.score](logits), indices)


def group_shares(
    settings: Settings, logits: Array, indices: Integers, counted: Booleans
) -> tuple[Array, Array, Booleans]:
    """Of each choice: its group's probability [T,C], its share in a softmax over the group's choices [T,C].

    And which choices [T,C,C] are of one group and count.
    """
    size = logits.shape[1] // settings.n_groups
    group = np.maximum(indices, 0) // size
    same = (group[:, :, None] == group[:, None, :]) & counted[:, None, :] & counted[:, :, None]
    chosen = at(logits, indices)
    exponentials = np.where(counted, np.exp(chosen - row_max(chosen, counted)), 0.0)
    sums = (same * exponentials[:, None, :]).sum(axis=2)
    of_groups = in_groups(softmax(logits), settings.n_groups).sum(axis=2)  # [T,G]
    return np.take_along_axis(of_groups, group, axis=1), exponentials / np.where(sums > 0, sums, 1.0), same


def row_max(values: Array, counted: Booleans) -> Array:
    """[T,1] of those that count, 0 where none does."""
    return np.where(counted.any(axis=1), np.where(counted, values, -np.inf).max(axis=1), 0.0)[:, None]


def sparse_softmax(settings: Settings, logits: Array, indices: Integers, k: int) -> Array:
    """Softmax [T,E] over the experts not chosen before slot k and not far below its choice."""
    own = at(logits, indices[:, [k]])  # [T,1]
    with np.errstate(invalid="ignore"):
        far = (own - logits) / np.maximum(np.abs(logits), own) > 2 * settings.mask_threshold
    before = spread(np.ones((len(indices), k)), indices[:, :k], logits.shape[1]) > 0
    shut = far | before
    shut[indices[:, k] < 0] = False  # of no interest, and not to be divided by 0
    return softmax(np.where(shut, -np.inf, logits))


def values_backward(settings: Settings, logits: Array, made: Weights, d_values: Array) -> Array:
    """d_logits [T,E] of d_values [T,C]."""
    n_experts = logits.shape[1]
    values, indices = made.values, made.indices
    if settings.router_weights == "equal":
        return np.zeros_like(logits)
    if settings.router_weights == "topk_softmax":
        return spread(softmax_backward(values, d_values), indices, n_experts)
    if settings.router_weights == "sparsemixer":
        d_logits, counting = np.zeros_like(logits), np.where(made.counted, indices, -1)
        for k in range(indices.shape[1]):
            d_share = spread(d_values[:, [k]], counting[:, [k]], n_experts)
            d_logits += softmax_backward(sparse_softmax(settings, logits, counting, k), d_share)
        return d_logits
    if settings.router_weights == "topk_sigmoid":
        return spread(d_values * values * (1 - values), indices, n_experts)
    if settings.router_weights == "group_softmax":
        of_group, share, same = group_shares(settings, logits, indices, made.counted)
        d_share = d_values * of_group
        d_chosen = share * (d_share - (same * (d_share * share)[:, None, :]).sum(axis=2))
        size = n_experts // settings.n_groups
        group = np.where(made.counted, indices // size, -1)
        d_p = np.repeat(spread(d_values * share, group, settings.n_groups), size, axis=1)
        return spread(d_chosen, indices, n_experts) + softmax_backward(softmax(logits), d_p)
    return score_backward(settings, logits, spread(d_values, indices, n_experts))


def score_backward(settings: Settings, logits: Array, d_scores: Array) -> Array:
    """d_logits for scores = SCORES[...](logits), all [T,E]."""
    scores = SCORES[settings.score](logits)
    if settings.score == "softmax":
        return softmax_backward(scores, d_scores)
    slopes = np.ones_like(scores)
    if settings.score == "sigmoid":
        slopes = scores * (1 - scores)
    elif settings.score == "sqrt_softplus":
        slopes = sigmoid(logits) / (2 * np.where(scores > 0, scores, 1.0))  # 0 where z is -inf
    return d_scores * slopes


# ------------------------------------------------------------------------------------------------------------
# The divisor
# ------------------------------------------------------------------------------------------------------------


def divisor(settings: Settings, values: Array, counted: Booleans) -> tuple[Array, Array]:
    """D [T,1] of the values [T,C] that count, and its slopes with respect to them; 1 where none does."""
    wanted = settings.router_normalize
    kind = wanted if isinstance(wanted, str) else "sum" if wanted else "none"
    if kind == "none" or settings.router_weights == "topk_softmax":
        return np.ones_like(values[:, :1]), np.zeros_like(values)
    if kind == "sum":
        size, slopes = values.sum(axis=1, keepdims=True), np.ones_like(values)
    else:
        p = {"norm1": 1.0, "norm2": 2.0, "normp": settings.normalize_p}[kind]
        size = (np.abs(values) ** p).sum(axis=1, keepdims=True) ** (1 / p)
        positive = np.where(size > 0, size, 1.0)
        slopes = np.sign(values) * (np.abs(values) / positive) ** (p - 1)
    if settings.epsilon_form == "added":
        size = size + settings.normalize_epsilon
    else:
        too_small = size < settings.normalize_epsilon
        size, slopes = np.where(too_small, settings.normalize_epsilon, size), np.where(too_small, 0, slopes)
    alone = ~counted.any(axis=1, keepdims=True)
    return np.where(alone, 1.0, size), np.where(alone, 0.0, slopes)
