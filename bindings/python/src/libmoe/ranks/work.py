"""What a layer computes, sends and keeps in a training step, as equations of its sizes.

Letters: T tokens of a rank, R ranks, H, I, E, K as everywhere, n matrices of an expert, S shared experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._native import check
from ..errors import InvalidArgumentError
from ..words import ExpertKind

MATRICES: dict[str, int] = {"linear": 1, "mlp": 2, "gated": 3}


@dataclass(frozen=True)
class LayerWork:
    """A layer, and how many tokens each rank has of a step's; arguments are called as those of ``Layer``.

    Parameters
    ----------
    hidden_size, intermediate_size, n_experts, top_k : int
        H, I, E, K.
    tokens : int
        T, of one rank.
    expert_kind : {"linear", "mlp", "gated"}
        n is 1, 2 or 3.
    n_shared_experts : int
        S.
    weight_bytes : int
        Of one weight: 4, or 2 with bfloat16, which rows of x then travel in, too.
    moments : int
        Of an optimiser, for each weight: 2 of AdamW, 1 of SGD with momentum, 0 in inference.
    imbalance : float
        Rows of the busiest rank over the mean of all: 1 is balanced.

    Raises
    ------
    InvalidArgumentError
        A number is out of range.
    """

    hidden_size: int
    intermediate_size: int
    n_experts: int
    top_k: int
    tokens: int
    expert_kind: ExpertKind = "mlp"
    n_shared_experts: int = 0
    weight_bytes: int = 4
    moments: int = 2
    imbalance: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no layer has."""
        for name in ("hidden_size", "intermediate_size", "n_experts", "top_k", "tokens"):
            if check.count(name, getattr(self, name)) < 1:
                raise InvalidArgumentError(f"{name} = {getattr(self, name)}, but it is at least 1")
        check.choice("expert_kind", self.expert_kind, MATRICES)
        if self.top_k > self.n_experts:
            raise InvalidArgumentError(f"top_k = {self.top_k}, but there are {self.n_experts} experts")
        if self.weight_bytes not in (2, 4):
            raise InvalidArgumentError(f"weight_bytes = {self.weight_bytes}: expected 4 or 2")
        check.count("n_shared_experts", self.n_shared_experts)
        check.count("moments", self.moments)
        if not 1 <= check.number("imbalance", self.imbalance) < math.inf:
            raise InvalidArgumentError(
                f"imbalance = {self.imbalance}, but the busiest rank has at least the mean"
            )

    # ---- weights -------------------------------------------------------------------------------------------

    @property
    def expert_weights(self) -> int:
        """Weights of one expert: n H I."""
        return MATRICES[self.expert_kind] * self.hidden_size * self.intermediate_size

    @property
    def shared_weights(self) -> int:
        """Weights of all shared experts: S n H I."""
        return self.n_shared_experts * self.expert_weights

    @property
    def gate_weights(self) -> int:
        """Weights of the router: E H."""
        return self.n_experts * self.hidden_size

    # ---- operations of a forward and a backward
    # --------------------------------------------------------------

    @property
    def operations(self) -> float:
        """The mean of the ranks: 6 T (K n H I + S n H I + E H), a product forwards and two backwards."""
        return (
            6.0 * self.tokens * (self.top_k * self.expert_weights + self.shared_weights + self.gate_weights)
        )

    @property
    def most_operations(self) -> float:
        """Those of the busiest rank, whose experts have more rows."""
        return self.operations + 6.0 * self.tokens * self.top_k * self.expert_weights * (self.imbalance - 1)

    @property
    def chained_operations(self) -> float:
        """Those of one rank that wait for the rank before: 2 T (S n H I + E H).

        They are the gradients of weights that all ranks have.
        """
        return 2.0 * self.tokens * (self.shared_weights + self.gate_weights)

    # ---- bytes ---------------------------------------------------------------------------------------------

    @property
    def row_bytes(self) -> list[int]:
        """Bytes of a row in each of the exchanges of a step.

        x goes there, outputs come back, dy and a weight go there, dx and the weight's gradient come back.
        """
        row = 4 * self.hidden_size
        return [self.weight_bytes * self.hidden_size, row, row + 4, row + 4]

    @property
    def chained_bytes(self) -> int:
        """Gradients that go on from rank to rank: 4 (S n H I + E H)."""
        return 4 * (self.shared_weights + self.gate_weights)

    def parameter_bytes(self, experts: float) -> float:
        """Return those of a rank with so many experts.

        They are weights, gradients, moments, and float32 copies of weights of 2 bytes.
        """
        of_one = (
            self.weight_bytes + 4 + 4 * self.moments + (4 if self.weight_bytes == 2 and self.moments else 0)
        )
        return of_one * (experts * self.expert_weights + self.shared_weights + self.gate_weights)

    def activation_bytes(self, rows: float) -> float:
        """Return what a step keeps and works with on a rank whose experts compute so many rows.

        A row has 4 (6 H + (2 n - 1) I): x and the inputs of activations on the tape, messages there and back,
        what experts make and get, and gradients within them.  A token has 20 H: x, y, dy and dx of the
        caller, and its own gradient under way.
        """
        inner = (2 * MATRICES[self.expert_kind] - 1) * self.intermediate_size
        return 4.0 * rows * (6 * self.hidden_size + inner) + 20.0 * self.tokens * self.hidden_size
