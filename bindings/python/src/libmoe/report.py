"""What forward tells about a call: its losses, and where the tokens went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._native import abi, fields
from ._native.check import Array
from ._native.reports import Report, Summary
from ._repr import Briefly, brief


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
