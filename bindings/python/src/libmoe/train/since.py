"""Sums over the steps since the last line of the log."""

from __future__ import annotations

from typing import Any


class Since:
    """Sums over steps.

    Parameters
    ----------
    bits : float
        Bits per byte of text that a nat per token is.

    Attributes
    ----------
    loss, objective : float
        Sums, in nats per token.
    steps : int
        Steps that were added.
    """

    def __init__(self, bits: float) -> None:
        self.loss = self.objective = self._seconds = self._norm = self._norm_max = self._rate = 0.0
        self.steps = self._tokens = self._clipped = 0
        self._bits = bits

    def add(self, tokens: int, seconds: float, rate: float, norm: float, bound: float) -> None:
        """Count one step: gradients of norm `norm` were scaled down to `bound`, where they were above it."""
        self.steps += 1
        self._tokens += tokens
        self._seconds += seconds
        self._rate = rate
        self._norm += norm
        self._norm_max = max(self._norm_max, norm)
        self._clipped += norm > bound

    def means(self) -> dict[str, Any]:
        """Return what the log says; the rate is the last step's."""
        n = self.steps
        return {
            "loss": self.loss / n,
            "bits_per_byte": self.loss / n * self._bits,
            "objective": self.objective / n,
            "learning_rate": self._rate,
            "norm": self._norm / n,
            "norm_max": self._norm_max,
            "clipped": self._clipped / n,
            "tokens_per_second": round(self._tokens / self._seconds, 1),
        }

    def told(self) -> tuple[str, str]:
        """Return a few words for people: loss and speed."""
        means = self.means()
        return f"{means['bits_per_byte']:.3f} bits/byte", f"{means['tokens_per_second']:,.0f} tokens/s"
