"""What a model's call gives: the output, what backward needs, and how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._native import abi
from ._native.check import FloatArray
from ._native.library import Handle, Native, lib
from ._native.reports import Report
from ._repr import Briefly, named, rounded
from .errors import ArgumentTypeError

if TYPE_CHECKING:
    from ._model_call import Call


class ModelTape(Native):
    """What a model's forward leaves for backward.  Made by :meth:`Model.tape`, filled again at every forward.

    It keeps its memory, that of the largest call so far, until it is closed or dropped.
    """

    def __init__(self, model: Handle) -> None:
        context = model.keep["context"]
        self._open_handle = Handle(
            lib.moe_model_tape_create, lib.moe_model_tape_free, model, keep={"context": context}
        )
        self._call: Call | None = None  # that filled it

    _instead = "make one with model.tape() and run forward again"

    def _told(self) -> str:
        return (
            "empty" if self._call is None else f"of {self._call.shape[0]} sequences of {self._call.shape[1]}"
        )


@dataclass(frozen=True, repr=False)
class ModelOutput(Briefly):
    """What a model's forward gives.  B sequences of S tokens, T = B S.

    Attributes
    ----------
    loss : float
        Mean cross-entropy of the targets that count, in nats; 0 without targets.
    objective : float
        loss + aux_loss + pooled_balance_coef * pooled_balance_loss.
    aux_loss : float
        Of all MoE layers together.
    pooled_balance_loss : float
        0 where its coefficient is 0.
    n_targets : int
        Targets that counted.
    logits : ndarray of float32, [B, S, V], or None
    hidden : ndarray of float32, [B, S, H], or None
        After the last layer and the final norm.
    layers : list of Report or None
        Of each layer; None where its ffn is dense, or there is none.
    tape : ModelTape or None
        For :meth:`Model.backward`.
    """

    loss: float
    objective: float
    aux_loss: float
    pooled_balance_loss: float
    n_targets: int
    logits: FloatArray | None
    hidden: FloatArray | None
    layers: list[Report | None]
    tape: ModelTape | None
    _call: Call

    def _told(self) -> str:
        numbers = rounded(loss=self.loss, objective=self.objective, aux_loss=self.aux_loss)
        arrays = {"logits": self.logits, "hidden": self.hidden, "tape": self.tape}
        there = named({name: value for name, value in arrays.items() if value is not None})
        reports = sum(report is not None for report in self.layers)
        told = [
            f"{numbers}, n_targets={self.n_targets}",
            f"{reports} of {len(self.layers)} layers with a report",
        ]
        return "; ".join([*told, there] if there else told)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: what backward needs is of this process."""
        raise ArgumentTypeError(
            "a libmoe.ModelOutput cannot be pickled or copied, since backward needs its tape; take "
            "what you need of it: output.loss, output.logits, output.hidden, output.layers"
        )


@dataclass(frozen=True, repr=False)
class ModelPlan(Briefly):
    """What :meth:`Model.plan` says a call will take, in bytes: exactly what the library will ask for.

    Attributes
    ----------
    forward_bytes, backward_bytes : int
        Scratch of forward, and of backward (0 without a tape).
    tape_bytes : int
        What the tape holds from forward to backward.
    total_bytes : int
        The tape and the larger of both scratches: what a memory limit bounds.
    keep : list of {"all", "lean", "input"}
        What each layer keeps for backward: everything; attention's arrays, and of the ffn its routing; or
        its input and the routing.
    """

    forward_bytes: int
    backward_bytes: int
    tape_bytes: int
    total_bytes: int
    keep: list[str]

    def _told(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """One line for people."""
        kept = ", ".join(f"{self.keep.count(word)} keep {word}" for word in abi.KEEP if word in self.keep)
        return f"{self.total_bytes / 2**20:.1f} MiB; of {len(self.keep)} layers {kept}"
