"""The room of each expert, and who gets it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .batch import Batch
from .settings import Array, Booleans, Integers, Settings

# What a factor of 0 means, in training and in evaluation; 1 in formulas that are not here.
FACTORS = {
    "tutel": (0.0, 0.0),
    "fastmoe": (1.2, 2.4),
    "lucidrains": (1.25, 2.0),
    "flaxformer": (1.25, 2.0),
    "classic": (1.25, 1.25),
    "classic_total": (1.25, 1.25),
}
LEAST = {"deepspeed": 4, "lucidrains": 4, "flaxformer": 4}  # what min_capacity = 0 means


def room(settings: Settings, n_tokens: int, n_experts: int, training: bool, fullest: int) -> int:
    """C for T tokens; `fullest` is how many chose the most popular expert."""
    t, e, k = n_tokens, n_experts, settings.top_k
    formula = settings.capacity_formula
    own = 0.0 if training else settings.eval_capacity_factor
    f = own or settings.capacity_factor or FACTORS.get(formula, (1.0, 1.0))[0 if training else 1]
    if formula == "none":
        c = math.ceil(t * k / e)  # of expert choice
    elif formula == "constant":
        c = settings.capacity
    elif formula in ("megatron", "deepspeed"):
        c = math.ceil(t * k / e * f)
    elif formula == "megablocks":
        c = int(f * k * t / e)
    elif formula == "tutel":
        c = k * int(abs(f) * math.ceil(t / e))
        c = fullest if f == 0 else min(fullest, c) if f < 0 else c
    elif formula == "fastmoe":
        c = math.ceil(f * t) * k // e
    elif formula == "lucidrains":
        c = min(t, int(t * f / e))
    elif formula == "nllb":
        c = math.ceil(f * t) if own else 2 * math.ceil(t / e)
    elif formula == "flaxformer":
        c = round(f * t / e)  # halves to even
    elif formula == "classic":
        c = int(f * t / e)
    else:
        assert formula == "classic_total"
        c = int(f * t)
    return max(c, settings.min_capacity or LEAST.get(formula, 0))


def rooms(settings: Settings, loads: Integers, n_tokens: int, training: bool) -> Integers:
    """C of each expert [E], which adapts to how many chose it where the settings say so."""
    c = room(settings, n_tokens, len(loads), training, int(loads.max(initial=0)))
    if not settings.adaptive_capacity:
        return np.full(len(loads), c)
    more = int((settings.adaptive_high_factor or 1.2) * c)
    less = int((settings.adaptive_low_factor or 0.8) * c)
    high, low = settings.adaptive_high or 1.5, settings.adaptive_low or 0.5
    return np.where(loads > high * c, more, np.where(loads < low * c, less, c))


@dataclass(frozen=True)
class Admission:
    """Who computes what, after all."""

    indices: Integers  # [T,C], the expert that takes each choice: another one after an overflow, -1 for none
    dropped: Booleans  # [T,C], choices that were not kept or found no room
    gap: float  # how far from another order


def order_of(settings: Settings, batch: Batch, weights: Array, kept: Booleans) -> tuple[Integers, float]:
    """Numbers token * C + slot of the choices, first come first; and how near the order is to another."""
    n_tokens, n_slots = weights.shape
    pairs = np.arange(n_tokens * n_slots)
    token, slot = pairs // n_slots, pairs % n_slots
    if settings.drop == "choice_position":
        return np.lexsort((token, slot)), np.inf
    if settings.drop == "probability":
        return np.lexsort((pairs, -weights.ravel())), gap_between(weights[kept])
    if settings.drop == "batch_prioritized":
        best = np.where(kept, weights, -np.inf).max(axis=1, initial=-np.inf)  # [T]
        rank = np.argsort(np.argsort(-best, kind="stable"))  # of each token
        return np.lexsort((rank[token], slot)), gap_between(best[kept.any(axis=1)])
    if settings.drop == "random" and batch.training:
        assert batch.draws.order is not None
        return np.lexsort((pairs, batch.draws.order.ravel())), np.inf
    return pairs, np.inf


def gap_between(values: Array) -> float:
    """The smallest difference of two values; what is equal in exact arithmetic is no near tie."""
    steps = np.diff(np.sort(values.ravel()))
    return float(np.min(steps, where=steps > 0, initial=np.inf))


def admit(
    settings: Settings, batch: Batch, by: Array, chosen: Integers, kept: Booleans, weights: Array
) -> Admission:
    """Fill the experts in the order of dropping.

    chosen, weights [T,C]; kept says which choices there are; by [T,E] finds the next best.
    """
    taken = np.where(kept, chosen, -1)
    dropped = (chosen >= 0) & ~kept
    limited = settings.capacity_formula != "none" and settings.router != "expert_choice"
    if not limited or batch.expert_indices is not None:
        return Admission(taken, dropped, np.inf)
    part = batch.sequence if settings.capacity_per_sequence else np.zeros(len(chosen), np.int64)
    left = {}  # room that is left in each part
    for s in np.unique(part):
        loads = np.bincount(taken[part == s][kept[part == s]], minlength=by.shape[1])
        n_tokens = int(((part == s) & batch.computed).sum())
        left[s] = rooms(settings, loads, n_tokens, batch.training)
    order, gap = order_of(settings, batch, weights, kept)
    for pair in order:
        token, slot = divmod(int(pair), chosen.shape[1])
        space = left[part[token]]
        if not kept[token, slot]:
            continue
        if space[taken[token, slot]] <= 0 and settings.overflow == "next_best":
            # Not an expert that another slot of this token holds or waits for.
            usable = (space > 0) & (by[token] > -np.inf)
            usable[taken[token][taken[token] >= 0]] = False
            if usable.any():
                values = np.where(usable, by[token], -np.inf)[None]
                gap = min(gap, first_gap(values[0]))
                taken[token, slot] = values.argmax()
        if space[taken[token, slot]] <= 0:
            taken[token, slot], dropped[token, slot] = -1, True
        else:
            space[taken[token, slot]] -= 1
    return Admission(taken, dropped, gap)


def first_gap(values: Array) -> float:
    """From the largest to the next, unless the two are equal by design."""
    descending = np.sort(values)[::-1]
    return (
        float(descending[0] - descending[1]) if len(values) > 1 and descending[0] > descending[1] else np.inf
    )
