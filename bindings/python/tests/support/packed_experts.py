"""Experts by packed weights alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe

# No multiples of 32, of several scales in each form.
H, I = 301, 75  # noqa: E741


def sizes(form: str) -> tuple[int, int]:
    """H and I: some forms keep 256 inputs together."""
    return (512, 256) if form.startswith(("q4_k", "q6_k")) else (H, I)


def every_expert(n_tokens: int, n_experts: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Choices by which each token has all experts, in turn, with the weight 1."""
    choices = np.tile(np.arange(n_experts, dtype=np.int32), (n_tokens, 1))
    return choices, np.ones((n_tokens, n_experts), np.float32)


def outputs(
    x: NDArray[np.float32], weights: libmoe.ExpertWeights, form: Any, context: Any, **options: Any
) -> NDArray[np.float32]:
    """What each expert puts out, [T, E, H], by packed weights alone."""
    indices, ones = every_expert(len(x), weights.n_experts)
    with libmoe.experts_prepare(weights, form, context=context) as prepared:
        found: NDArray[np.float32] = libmoe.experts_forward(
            x,
            indices,
            ones,
            weights.without_matrices(),
            prepared=prepared,
            rows=True,
            context=context,
            **options,
        ).rows
    return found
