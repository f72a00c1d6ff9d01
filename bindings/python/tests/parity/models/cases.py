"""Situations that every model is run in, and some that several are."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import torch

from .base import Case, Draft, Model

IDLE = 1  # the expert that gets no token


def ordinary(draft: Draft) -> None:
    """As drawn."""


def idle_expert(draft: Draft) -> None:
    """One expert that no token wants: x has a constant feature, to which its weight is very negative."""
    draft.x[:, 0] = 1
    draft.router[:, 0] *= 0.1
    draft.router[IDLE, 0] = -30
    if draft.selection_bias is not None:
        draft.selection_bias[IDLE] = -1


def huge(draft: Draft) -> None:
    """Logits in the hundreds, where scores saturate and underflow, but for pairs that differ by about 1.

    Without the pairs there would be no gradient but rounding errors. All factors are short binary fractions,
    so that the logits are exact in float32: a rounding error in the hundreds would be a large one in what is
    made of it. Through a pair dx gets two opposite terms, a hundred times as large as what is left of them:
    two digits less than all else has.
    """
    draft.x.mul_(64).round_().div_(64)
    difference = draft.router.mul(64).round().div(64)
    draft.router.mul_(32).round_().div_(64).mul_(draft.model.huge)
    half = len(draft.router) // 2
    draft.router[half : 2 * half] = draft.router[:half] + difference[:half]
    if draft.router_bias is not None:
        draft.router_bias.mul_(64).round_().div_(64)


def ties(draft: Draft) -> None:
    """Experts have twins with the same logits in the other half; transformers' choice is arbitrary."""
    half = len(draft.router) // 2
    for part in (draft.router, draft.router_bias, draft.selection_bias):
        if part is not None:
            part[half : 2 * half] = part[:half]


def negative_bias(draft: Draft) -> None:
    """Selection values below 0, which a mask of 0 would beat."""
    assert draft.selection_bias is not None
    draft.selection_bias.uniform_(-3.0, -1.5)


def large_weights(draft: Draft) -> None:
    """Values far beyond the experts' clamps on both sides."""
    for name, p in draft.block.named_parameters():
        if "gate_up" in name:
            torch.nn.init.normal_(p, std=2.0)


def cases_of(model: Model) -> dict[str, Case]:
    """All of a model's."""
    return {
        "ordinary": Case(ordinary),
        "idle_expert": Case(idle_expert),
        "huge": Case(huge, forced=not model.by_logits, dx_tolerance=1e-4),
        "ties": Case(ties, forced=True),
        **model.cases,
    }
