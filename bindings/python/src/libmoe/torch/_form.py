"""How the weights of experts lie in tensors: which tensors there are, and where each part is in them.

An operator of torch takes numbers and words besides tensors, so a form travels as one word.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

MATRICES = ("gate_up", "gate", "up", "down")


class Form(NamedTuple):
    """What the experts compute, and how their weights are laid out."""

    kind: str  # gated, mlp or linear
    activation: str
    fused: str  # gate and up: "concatenated", "interleaved", or "apart"
    transposed: bool  # [E, in, out] in place of [E, out, in]
    weight_on_input: bool
    slots: tuple[str, ...]  # what is given, in order: gate_up or gate, up; down; gate_up_bias, ...
    spread: tuple[bool, ...]  # of each slot: one tensor for each expert, in place of one for all

    def word(self) -> str:
        """Return the form as one word."""
        flags = (self.kind, self.activation, self.fused, _bit(self.transposed), _bit(self.weight_on_input))
        return " ".join((*flags, ",".join(self.slots), "".join(map(_bit, self.spread))))

    @property
    def has_matrices(self) -> bool:
        """Whether the matrices are given, and not the biases alone."""
        return "down" in self.slots

    def counts(self, n_experts: int) -> list[int]:
        """Return how many tensors each slot has."""
        return [n_experts if spread else 1 for spread in self.spread]


def _bit(value: bool) -> str:
    return "1" if value else "0"


@functools.lru_cache(maxsize=256)
def form_of(word: str) -> Form:
    """Return the form that a word stands for."""
    kind, activation, fused, transposed, on_input, slots, spread = word.split(" ")
    given = tuple(slots.split(",")) if slots else ()
    return Form(
        kind,
        activation,
        fused,
        transposed == "1",
        on_input == "1",
        given,
        tuple(bit == "1" for bit in spread),
    )
