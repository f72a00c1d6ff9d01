"""What forward tells about a call: its losses, and where the tokens went.

Written by scripts/abi from include/*.h; do not edit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .._repr import Loads


@dataclass(frozen=True, repr=False)
class Summary(Loads):
    """Losses and loads of one forward call, or of several together.

    T tokens, E experts, K choices a token.

    Attributes
    ----------
    balance_loss : float
        ``"balance"``, E * sum over e of f_e P_e, where f_e is the share of the tokens that chose e, before
        dropping, and P_e is mean_probability [Switch 2021, over all K choices]: K at perfect balance; 0 for T
        = 0.
    z_loss : float
        ``"z"``, the mean over tokens of logsumexp(logits)^2 [ST-MoE 2022]; 0 for T = 0.
    aux_loss : float
        balance_coef * balance_loss + z_coef * z_loss + the layer's losses times their coefficients: add it to
        the objective.
    entropy : float
        Mean over tokens of -sum p ln p of the router's softmax, in nats: 0 to ln E.
    n_dropped : int
        The sum of dropped_per_expert.
    n_valid : int
        Tokens that are no padding; with ``loss_mask`` those that count, and so is all that stands here but
        expert_indices and expert_weights of these.
    max_over_mean : float
        Of tokens_per_expert: largest / mean, 1 at perfect balance.
    variation : float
        Of tokens_per_expert: standard deviation / mean, 0 at perfect balance.
    dead_share : float
        Share of the experts without a token.
    tokens_per_expert : ndarray of int64, [E]
        How many tokens e computes (dropped ones are not among them).
    mean_probability : ndarray of float32, [E]
        P_e, the mean of the router's softmax over the valid tokens; 0 without a gate, as are entropy,
        balance_loss and z_loss.
    dropped_per_expert : ndarray of int64, [E]
        Choices of e that found no room, or second ones not kept at random.
    """

    balance_loss: float
    z_loss: float
    aux_loss: float
    entropy: float
    n_dropped: int
    n_valid: int
    max_over_mean: float
    variation: float
    dead_share: float
    tokens_per_expert: NDArray[np.int64]
    mean_probability: NDArray[np.float32]
    dropped_per_expert: NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Report(Summary):
    """A :class:`Summary` of one forward call, with the choices.

    C = K, or E of ``"expert_choice"``; B sequences, whose arrays are empty without a ``sequence_length``.

    Attributes
    ----------
    losses : dict[str, float]
        The layer's losses, without their coefficients.
    expert_indices : ndarray of int32, [T, C]
        Chosen experts, best first (of ``"hierarchical"`` within each group); -1 for a choice that was dropped
        or is none.
    expert_weights : ndarray of float32, [T, C]
        The weights of expert_indices in y; 0 where these are -1.
    sequence_counts : ndarray of int64, [B, E]
        Tokens whose most probable expert is e, the lowest among equals.
    sequence_probability : ndarray of float32, [B, E]
        Mean of the router's softmax over the sequence's tokens.
    sequence_valid : ndarray of int64, [B]
        Tokens of the sequence that count.
    """

    losses: dict[str, float]
    expert_indices: NDArray[np.int32]
    expert_weights: NDArray[np.float32]
    sequence_counts: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))
    sequence_probability: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    sequence_valid: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
