"""What forward tells about a call: its losses, and where the tokens went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._native import abi, fields
from ._native.check import Array, FloatArray
from ._repr import Briefly, brief, rounded


@dataclass(frozen=True, repr=False)
class Summary(Briefly):
    """Losses and loads of one forward call, or of several together.  T tokens, E experts, K choices a token.

    Attributes
    ----------
    balance_loss : float
        E * sum over e of f_e P_e, where f_e is the share of the tokens that chose expert e, before dropping,
        and P_e its mean probability (arXiv:2101.03961, over all K choices).  Perfect balance gives K.
    z_loss : float
        Mean over tokens of logsumexp(logits)^2 (arXiv:2202.08906).
    aux_loss : float
        balance_coef * balance_loss + z_coef * z_loss + the layer's ``losses``, each times its coefficient:
        add it to the objective.
    entropy : float
        Mean over tokens of the entropy of the router's softmax, in nats: 0 to ln E.
    n_dropped : int
        Choices that found no room.
    n_valid : int
        Tokens that are no padding; with a ``loss_mask`` those that count, and so is all else here.
    max_over_mean : float
        Largest of ``tokens_per_expert`` / their mean: 1 at perfect balance.
    variation : float
        Their standard deviation / their mean: 0 at perfect balance.
    dead_share : float
        Share of the experts without a token.
    tokens_per_expert : ndarray of int64, [E]
        How many tokens e computes; dropped ones are not among them.
    mean_probability : ndarray of float32, [E]
        P_e.
    dropped_per_expert : ndarray of int64, [E]
        Choices of e that found no room.
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
    mean_probability: FloatArray
    dropped_per_expert: NDArray[np.int64]

    def _told(self) -> str:
        loads = self.tokens_per_expert
        return (
            f"{self.n_valid:,} tokens to {len(loads)} experts: {loads.min():,} to {loads.max():,} each, "
            f"{(loads == 0).sum():,} experts without, {self.n_dropped:,} choices dropped; {self._numbers()}"
        )

    def _numbers(self) -> str:
        return rounded(
            aux_loss=self.aux_loss, balance_loss=self.balance_loss, z_loss=self.z_loss, entropy=self.entropy
        )


@dataclass(frozen=True, repr=False)
class Report(Summary):
    """A :class:`Summary` of one forward call, with the choices.  C = K, or E of ``"expert_choice"``.

    Attributes
    ----------
    losses : dict of str to float
        The layer's ``losses`` by name, without their coefficients.
    expert_indices : ndarray of int32, [T, C]
        The chosen experts, best first; -1 for a choice that was dropped or is none.
    expert_weights : ndarray of float32, [T, C]
        Their weights in y; 0 for those.
    sequence_counts : ndarray of int64, [B, E]
        Of each sequence, the tokens whose most probable expert is e; this and the next two are empty without
        a ``sequence_length``.
    sequence_probability : ndarray of float32, [B, E]
        P_e of each sequence's tokens.
    sequence_valid : ndarray of int64, [B]
        Tokens of each sequence that count.
    """

    losses: dict[str, float]
    expert_indices: NDArray[np.int32]
    expert_weights: FloatArray
    sequence_counts: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), np.int64))
    sequence_probability: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    sequence_valid: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def _numbers(self) -> str:
        of_each = [rounded(**{name: value}) for name, value in self.losses.items()]
        if len(of_each) > 3:
            of_each = [*of_each[:2], f"{len(of_each) - 2} more losses"]
        return ", ".join([super()._numbers(), *of_each])


def n_sequences(n_tokens: int, sequence_length: int) -> int:
    """Return how many sequences the library makes of a call's tokens."""
    return n_tokens // sequence_length if n_tokens and sequence_length > 0 else 1


@dataclass(frozen=True, repr=False)
class Output(Briefly):
    """What forward gives: ``y`` of x's shape, and the ``report``."""

    y: Array
    report: Report

    def _told(self) -> str:
        return f"y={brief(self.y)}, report={self.report}"


_ARRAYS = abi.moe_report._arrays_
_NUMBERS = [name for name in fields.types(abi.moe_report) if name not in _ARRAYS and name != "losses"]


class Blank:
    """A report for the library to fill, with the arrays it writes to.

    Parameters
    ----------
    losses
        Names of the layer's losses.
    sizes
        n_experts E, n_tokens T, choices C, n_sequences B; there is no room for arrays with other sizes.

    Attributes
    ----------
    c_report : moe_report
        Its pointers are those of the arrays.
    """

    def __init__(self, losses: Sequence[str] | None = None, **sizes: int) -> None:
        letters = {"n_experts": "E", "n_tokens": "T", "choices": "C", "n_sequences": "B"}
        self._losses = losses
        self._arrays = fields.room(abi.moe_report, {letters[name]: (size,) for name, size in sizes.items()})
        self._values = np.empty(len(losses or ()), np.float32)
        pointers = {name: array.ctypes.data for name, array in self._arrays.items()}
        self.c_report = abi.moe_report(losses=self._values.ctypes.data if losses else None, **pointers)

    def filled(self) -> dict[str, Any]:
        """Return what the library has written, by name."""
        found = {name: getattr(self.c_report, name) for name in _NUMBERS} | self._arrays
        if self._losses is not None:
            found["losses"] = dict(zip(self._losses, self._values.tolist()))
        return found


def to_c(summary: Summary) -> abi.moe_report:
    """Return a summary as the library reads it; its arrays belong to the summary."""
    numbers = {name: getattr(summary, name) for name in _NUMBERS}
    arrays = {name: getattr(summary, name).ctypes.data for name in _ARRAYS if _ARRAYS[name][1] == "E"}
    return abi.moe_report(**numbers, **arrays)
