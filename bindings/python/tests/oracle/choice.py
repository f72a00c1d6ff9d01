"""Which experts each token gets, while there is room for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .batch import Batch
from .capacity import room
from .linear import sigmoid, softmax, softplus
from .logits import Logits, in_groups
from .settings import Array, Booleans, Integers, Parameters, Settings


@dataclass(frozen=True)
class Choice:
    """The experts of T tokens, and what they were chosen by."""

    indices: Integers  # [T,C], best first, or in expert choice e in column e; -1 for none
    by: Array  # [T,E], minus infinity for experts that may not be chosen
    gap: float  # how far the choice is from changing


SCORES: dict[str, Callable[[Array], Array]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "sqrt_softplus": lambda v: np.sqrt(softplus(v)),
    "identity": lambda v: v,
}


def largest(values: Array, count: int) -> Integers:
    """Where the largest are; a stable sort leaves equal ones in their order: the lowest index wins."""
    indices: Integers = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return indices


def gap_of(values: Array, chosen: int) -> float:
    """The smallest step down among the `chosen` largest of each row and the one behind them."""
    descending = -np.sort(-values, axis=1)[:, : chosen + 1]
    with np.errstate(invalid="ignore"):
        steps = descending[:, :-1] - descending[:, 1:]
    # No rounding can swap what is shut out, -inf beside -inf, or equal by design, as dropped logits are.
    return float(np.min(steps, where=steps > 0, initial=np.inf))


def choose(settings: Settings, parameters: Parameters, batch: Batch, said: Logits) -> Choice:
    """What the gate says -> the choice, by the router that the settings name or as the caller has it."""
    logits = said.z  # [T,E]
    if batch.expert_indices is not None:
        return Choice(batch.expert_indices, logits, np.inf)
    if settings.router == "hash":
        assert settings.hash_table is not None and batch.token_ids is not None
        return Choice(np.asarray(settings.hash_table, np.int64)[batch.token_ids], logits, np.inf)
    if settings.router == "hierarchical":
        return choose_hierarchically(settings, said)
    if settings.router == "relu":
        by = np.where(logits > 0, logits, -np.inf)
        indices = largest(by, settings.top_k)
        positive = np.take_along_axis(by, indices, axis=1) > 0
        near = float(np.min(np.abs(logits), initial=np.inf))  # from being chosen, or left
        return Choice(np.where(positive, indices, -1), by, min(near, gap_of(by, settings.top_k)))
    if settings.router == "sinkhorn" and batch.training:
        by = sinkhorn(logits)
    else:
        by = values_to_choose_by(settings, parameters, logits)
    if settings.router == "expert_choice":
        indices, gap = experts_choose(settings, batch, by)
        return Choice(indices, by, gap)
    gap = np.inf
    if settings.n_groups:
        by, gap = within_groups(settings, by)
    indices, trimming_gap = trim(settings, batch, logits, largest(by, settings.top_k))
    return Choice(indices, by, min(gap, gap_of(by, settings.top_k), trimming_gap))


def values_to_choose_by(settings: Settings, parameters: Parameters, logits: Array) -> Array:
    """s + selection bias, or z + selection bias with weights from the logits; [T,E]."""
    column = (
        settings.router == "expert_choice"
    )  # where tokens are compared: scores and logits differ in order
    if "router.selection_bias" not in parameters and not settings.n_groups and not column:
        return logits  # scores rise with their logits
    by = SCORES[settings.score](logits) if settings.router_weights in ("scores", "equal") else logits
    by = by + parameters.get("router.selection_bias", np.float64(0))
    return np.where(logits == -np.inf, -np.inf, by)


def within_groups(settings: Settings, by: Array) -> tuple[Array, float]:
    """Shut all groups but the best: by the sum of a group's group_top_m largest."""
    grouped = in_groups(by, settings.n_groups)
    best = -np.sort(-grouped, axis=2)[:, :, : max(1, settings.group_top_m)].sum(axis=2)  # [T,G]
    shut = 0.0 if settings.group_mask == "zero" else -np.inf
    masked = np.where(opened(best, settings.top_groups)[:, :, None], grouped, shut)
    return masked.reshape(by.shape), gap_of(best, settings.top_groups)


def opened(values: Array, count: int) -> Booleans:
    """True at the largest of each row."""
    result = np.zeros(values.shape, bool)
    np.put_along_axis(result, largest(values, count), True, axis=1)
    return result


def choose_hierarchically(settings: Settings, said: Logits) -> Choice:
    """The best groups by the coarse gate, then the best experts of each, group by group.

    The next best is another one of these groups.
    """
    grouped = in_groups(said.z, settings.n_groups)
    n_tokens, n_groups, size = grouped.shape
    each = settings.top_k // settings.top_groups
    groups = largest(said.coarse, settings.top_groups)  # [T,topG]
    inside = grouped.reshape(n_tokens * n_groups, size)
    best = largest(inside, each).reshape(n_tokens, n_groups, each) + size * np.arange(n_groups)[:, None]
    indices = np.take_along_axis(best, groups[:, :, None], axis=1).reshape(n_tokens, settings.top_k)
    open_groups = opened(said.coarse, settings.top_groups)[:, :, None]
    by = np.where(open_groups, grouped, -np.inf).reshape(said.z.shape)
    return Choice(indices, by, min(gap_of(said.coarse, settings.top_groups), gap_of(inside, each)))


def sinkhorn(logits: Array) -> Array:
    """ln of softmax(z) times a factor for each expert, which brings the experts' sums nearer to each other.

    A token's own factor does not change its order, so it is left out of the result.
    """
    cost = softmax(logits)  # [T,E]
    n_tokens, n_experts = cost.shape
    of_expert = np.ones(n_experts)
    for _ in range(100):
        of_token = 1 / (n_tokens * ((of_expert * cost).sum(axis=1) + 1e-8))
        before, of_expert = of_expert, 1 / (n_experts * ((of_token[:, None] * cost).sum(axis=0) + 1e-8))
        if np.abs(before - of_expert).mean() <= 1e-4:
            break
    with np.errstate(divide="ignore"):  # ln 0 is never
        result: Array = np.log(of_expert * cost)
    return result


def experts_choose(settings: Settings, batch: Batch, by: Array) -> tuple[Integers, float]:
    """Each expert's C best tokens of each sequence that has room of its own; [T,E], e in column e or none."""
    takes = np.zeros(by.shape, bool)
    gap = np.inf
    for _, tokens in batch_parts(settings, batch):
        columns = by[tokens].T  # [E,N]
        n = columns.shape[1]
        count = min(n, room(settings, n, by.shape[1], batch.training, 0))
        takes[tokens] = opened(columns, count).T & (columns.T > -np.inf)
        if 0 < count < n:  # the order among those that are taken does not matter
            last = -np.sort(-columns, axis=1)[:, count - 1 : count + 1]
            gap = min(gap, gap_of(last, 1))
    return np.where(takes, np.arange(by.shape[1]), -1), gap


def batch_parts(settings: Settings, batch: Batch) -> list[tuple[int, Integers]]:
    """The parts of a call that have capacity of their own: (sequence, its tokens)."""
    if not settings.capacity_per_sequence:
        return [(0, np.arange(len(batch.x)))]
    return [(s, np.flatnonzero(batch.sequence == s)) for s in range(batch.n_sequences)]


def trim(settings: Settings, batch: Batch, logits: Array, indices: Integers) -> tuple[Integers, float]:
    """Take choices away, but min_k, where the settings have fewer for some tokens; and how near that was."""
    if settings.dynamic_k == "none" or not len(indices):
        return indices, np.inf
    scores = np.take_along_axis(SCORES[settings.score](logits), indices, axis=1)  # [T,K]
    slot = np.arange(settings.top_k)
    if settings.dynamic_k == "complexity":
        ratio = np.linalg.norm(batch.x, axis=1).mean() / (settings.dynamic_value or 10.0)
        keep, gap = np.broadcast_to(slot < np.floor(ratio), indices.shape), abs(ratio - np.rint(ratio))
    elif settings.dynamic_k == "threshold":
        keep, gap = scores >= settings.dynamic_value, np.abs(scores - settings.dynamic_value).min()
    else:  # those before which the sum was not reached yet
        before = np.cumsum(scores, axis=1) - scores
        keep, gap = before < settings.dynamic_value, np.abs(before - settings.dynamic_value).min()
    keep = keep | (slot < max(1, settings.min_k))
    return np.where(keep, indices, -1), float(gap)
