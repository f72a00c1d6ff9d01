"""Loads and losses over many calls."""

from __future__ import annotations

import ctypes

from ._keywords import keywords
from ._native import check
from ._native.library import Handle, Native, lib
from ._native.reports import Summary
from .context import Context, handle_of
from .errors import ArgumentTypeError, InvalidArgumentError
from .report import Blank, to_c


@keywords
class Statistics(Native):
    """Sums of reports over many calls, of a training epoch for instance.

    Parameters
    ----------
    n_experts : int
        E of the layers whose reports are added, at least 1.
    context : Context, optional
        By default the shared one.  The statistics keep it alive.

    Raises
    ------
    InvalidArgumentError
        ``n_experts`` is out of range.
    OutOfMemoryError
        There is no memory.

    Examples
    --------
    >>> import libmoe, numpy
    >>> layer, statistics = libmoe.Layer(64, 256, n_experts=8, top_k=2), libmoe.Statistics(8)
    >>> for _ in range(3):
    ...     statistics.add(layer.forward(numpy.ones((5, 64), numpy.float32)).report)
    >>> summary = statistics.read()
    >>> summary.n_valid, int(summary.tokens_per_expert.sum()), summary.dead_share
    (15, 30, 0.75)
    """

    def __init__(self, n_experts: int, *, context: Context | None = None) -> None:
        self._n_experts = check.integer("n_experts", n_experts, ctypes.c_int64)
        parent = handle_of(context)
        self._open_handle = Handle(
            lib.moe_statistics_create,
            lib.moe_statistics_free,
            parent,
            self._n_experts,
            keep={"context": parent},
        )

    _instead = "pickle what its read() returns"

    def _told(self) -> str:
        return f"n_experts={self._n_experts}"

    @property
    def n_experts(self) -> int:
        """E, the experts of the reports."""
        return self._n_experts

    def add(self, report: Summary) -> None:
        """Add a call's report, or what other statistics have read.

        Parameters
        ----------
        report : Report or Summary
            Of a layer with as many experts.

        Raises
        ------
        TypeError, ValueError
            It is no report, or one of a layer with another number of experts.
        BadStateError
            The statistics are closed.
        """
        if not isinstance(report, Summary):
            raise ArgumentTypeError(
                f"report: expected a libmoe.Report, got {type(report).__name__}; use output.report"
            )
        if len(report.tokens_per_expert) != self._n_experts:
            raise InvalidArgumentError(
                f"report: expected {self._n_experts} experts, got {len(report.tokens_per_expert)}; "
                "use libmoe.Statistics(layer.n_experts)"
            )
        lib.moe_statistics_add(self._handle, ctypes.byref(to_c(report)))

    def read(self) -> Summary:
        """Return the reports so far as if they had been one call.

        Counts are added up; losses, entropy and ``mean_probability`` are means over tokens;
        ``max_over_mean``, ``variation`` and ``dead_share`` are of the summed counts.  All 0 before the first.

        Raises
        ------
        BadStateError
            The statistics are closed.
        """
        blank = Blank(n_experts=self._n_experts)
        lib.moe_statistics_read(self._handle, ctypes.byref(blank.c_report))
        return Summary(**blank.filled())

    def reset(self) -> None:
        """Forget all reports.

        Raises
        ------
        BadStateError
            The statistics are closed.
        """
        lib.moe_statistics_reset(self._handle)
