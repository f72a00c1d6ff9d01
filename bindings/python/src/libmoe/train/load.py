"""Where the tokens went since the last line of the log: sums over forwards, for each layer of experts."""

from __future__ import annotations

from typing import Any

import libmoe


class Load:
    """Sums of the reports of a model's layers; dense layers have none."""

    def __init__(self) -> None:
        self._sums: dict[int, libmoe.Statistics] = {}  # by the layer's number

    def add(self, layers: list[libmoe.Report | None]) -> None:
        """Add one forward's."""
        for number, report in enumerate(layers):
            if report is None:
                continue
            if number not in self._sums:
                self._sums[number] = libmoe.Statistics(len(report.tokens_per_expert))
            self._sums[number].add(report)

    def take(self) -> list[dict[str, Any]]:
        """Return the sums as the log has them, one object for each layer, and begin anew.

        layer, load [E] (tokens of each expert), dropped (share of the choices), dead (experts without a
        token), peak (load of the fullest over the mean), z_loss, balance_loss, entropy (nats)
        """
        taken = []
        for number, statistics in self._sums.items():
            summary = statistics.read()
            kept = int(summary.tokens_per_expert.sum())
            taken.append(
                {
                    "layer": number,
                    "load": summary.tokens_per_expert.tolist(),
                    "dropped": summary.n_dropped / max(1, kept + summary.n_dropped),
                    "dead": int((summary.tokens_per_expert == 0).sum()),
                    "peak": summary.max_over_mean,
                    "z_loss": summary.z_loss,
                    "balance_loss": summary.balance_loss,
                    "entropy": summary.entropy,
                }
            )
            statistics.reset()
        return taken
