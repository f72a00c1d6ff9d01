"""What one call of forward brings: the options, the random numbers, and the tokens that are no padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .settings import Array, Booleans, Integers


@dataclass(frozen=True)
class Draws:
    """The random numbers of a training call, by token; None where the settings want none."""

    jitter: Array | None = None  # [T,H], uniform in (-1, 1)
    kept: Booleans | None = None  # [T,H] or [T,E], what router dropout leaves
    noise: Array | None = None  # [T,E], normal
    second: Array | None = None  # [T], uniform in [0, 1)
    order: NDArray[np.uint64] | None = None  # [T,K], who is dropped last


@dataclass(frozen=True)
class Options:
    """Named as in moe_forward_options; arrays are those of the whole call."""

    training: bool = False
    step: int = 0
    draws: Draws = Draws()
    valid_mask: ArrayLike | None = None
    loss_mask: ArrayLike | None = None
    token_ids: ArrayLike | None = None
    expert_indices: ArrayLike | None = None
    expert_weights: ArrayLike | None = None
    sequence_length: int = 0
    global_counts: ArrayLike | None = None


@dataclass(frozen=True)
class Batch:
    """The T routed tokens of a call, and all that comes with them: other padding is simply not there."""

    valid: Integers  # [T], their rows in the arrays of the call
    computed: Booleans  # [T], False for padding that counts in losses
    counts: Booleans  # [T], in losses and statistics
    n_rows: int  # of the call, with padding
    x: Array  # [T,H]
    training: bool
    step: int
    draws: Draws
    token_ids: Integers | None  # [T]
    expert_indices: Integers | None  # [T,K]
    expert_weights: Array | None  # [T,K]
    sequence: Integers  # [T], which one each token is of
    n_sequences: int
    global_counts: Integers | float  # [E]
    dropout_mask: Array | None  # [T,K,I]


def batch_of(x: Array, options: Options, dropout_mask: Array | None) -> Batch:
    """Leave the padding out."""
    n_rows = len(x)
    mask = np.ones(n_rows, bool) if options.valid_mask is None else np.asarray(options.valid_mask, bool)
    counts = mask if options.loss_mask is None else np.asarray(options.loss_mask, bool)
    rows = np.flatnonzero(mask | counts)
    draws = options.draws
    length = options.sequence_length or max(n_rows, 1)
    global_counts = options.global_counts
    return Batch(
        valid=rows,
        computed=mask[rows],
        counts=counts[rows],
        n_rows=n_rows,
        x=x[rows],
        training=options.training,
        step=options.step,
        draws=Draws(
            jitter=None if draws.jitter is None else draws.jitter[rows],
            kept=None if draws.kept is None else draws.kept[rows],
            noise=None if draws.noise is None else draws.noise[rows],
            second=None if draws.second is None else draws.second[rows],
            order=None if draws.order is None else draws.order[rows],
        ),
        token_ids=None if options.token_ids is None else np.asarray(options.token_ids, np.int64)[rows],
        expert_indices=(
            None if options.expert_indices is None else np.asarray(options.expert_indices, np.int64)[rows]
        ),
        expert_weights=(
            None if options.expert_weights is None else np.asarray(options.expert_weights, np.float64)[rows]
        ),
        sequence=rows // length,
        n_sequences=n_rows // length,
        global_counts=0.0 if global_counts is None else np.asarray(global_counts, np.int64),
        dropout_mask=None if dropout_mask is None else dropout_mask[rows],
    )
