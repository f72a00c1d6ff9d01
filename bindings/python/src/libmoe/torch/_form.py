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


class Piece(NamedTuple):
    """One part within a slot's tensors."""

    part: str  # of words.ExpertPart
    offset: int  # elements from the tensor's beginning
    output: int  # elements from one output to the next
    input: int  # from one input to the next


@functools.lru_cache(maxsize=256)
def pieces(
    slot: str, transposed: bool, fused: str, shape: tuple[int, ...], strides: tuple[int, ...]
) -> list[Piece]:
    """Return the parts that lie in a slot's tensor: shape and strides are those of one expert."""
    outputs, output, inputs = shape[0], strides[0], 0
    if slot in MATRICES:
        out, into = (1, 0) if transposed else (0, 1)
        outputs, output, inputs = shape[out], strides[out], strides[into]
    if not slot.startswith("gate_up"):
        return [Piece(slot, 0, output, inputs)]
    tail = slot.removeprefix("gate_up")
    if fused == "interleaved":
        return [Piece("gate" + tail, 0, 2 * output, inputs), Piece("up" + tail, output, 2 * output, inputs)]
    return [
        Piece("gate" + tail, 0, output, inputs),
        Piece("up" + tail, outputs // 2 * output, output, inputs),
    ]
