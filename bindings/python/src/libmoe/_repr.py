"""How objects tell what they are, in a line or two: sizes, words, a few numbers, never those of an array."""

from __future__ import annotations

from typing import Any

import numpy as np


def described(thing: Any, what: str) -> str:
    """Return the name of the object's class, and what there is to say in parentheses."""
    return f"{type(thing).__name__}({what})"


def brief(value: Any) -> str:
    """Return a value as it is written in Python; of an array its type and shape, of long lists the ends."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {brief(each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        shown = [brief(each) for each in value]
        if len(shown) > 6:
            shown = [*shown[:2], f"... {len(shown) - 3} more ...", shown[-1]]
        left, right = "[]" if isinstance(value, list) else "()"
        return f"{left}{', '.join(shown)}{right}"
    return repr(value)


def named(values: dict[str, Any]) -> str:
    """Return ``name=value`` for each, as the arguments of a call."""
    return ", ".join(f"{name}={brief(value)}" for name, value in values.items())


def rounded(**values: float) -> str:
    """Return ``name=value`` for each, to four digits."""
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())


class Briefly:
    """Base of dataclasses whose fields are too many to be told: of :meth:`_told`, what a person looks for."""

    def __repr__(self) -> str:
        """Say what it is, in a line or two."""
        return described(self, self._told())

    def _told(self) -> str:
        raise NotImplementedError


class Loads(Briefly):
    """What reports say, whose fields are written from the header: where the tokens went, and numbers."""

    def _told(self) -> str:
        told: Any = self
        loads = told.tokens_per_expert
        numbers = {name: getattr(told, name) for name in ("aux_loss", "balance_loss", "z_loss", "entropy")}
        losses = [rounded(**{name: value}) for name, value in getattr(self, "losses", {}).items()]
        if len(losses) > 3:
            losses = [*losses[:2], f"{len(losses) - 2} more losses"]
        return (
            f"{told.n_valid:,} tokens to {len(loads)} experts: {loads.min():,} to {loads.max():,} each, "
            f"{(loads == 0).sum():,} experts without, {told.n_dropped:,} choices dropped; "
            + ", ".join([rounded(**numbers), *losses])
        )
