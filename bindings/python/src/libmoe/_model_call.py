"""One call of a model: what goes in, what comes out, and how much memory it takes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _abi, _abi_model, _check
from ._check import FloatArray
from ._library import Handle, Native, lib
from ._repr import Briefly
from .errors import ArgumentTypeError
from .report import Blank, Report

Integers = NDArray[np.int32]
Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]


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


class Call:
    """The arguments of a forward as the library reads them, kept for backward."""

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        tokens: Integers | None = None,
        hidden: FloatArray | None = None,
        targets: Integers | None = None,
        training: bool = False,
        step: int = 0,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        valid_mask: Mask | None = None,
        mask: Mask | None = None,
        added_mask: FloatArray | None = None,
        positions: Positions | None = None,
        memory_limit: int | str | None = None,
        loss_mask: Mask | None = None,
        chunk_tokens: int = 0,
    ) -> None:
        self.shape = shape  # B, S
        length = shape[1]
        # whose memory is used
        self._arrays = (tokens, hidden, targets, valid_mask, mask, added_mask, positions, loss_mask)
        self.c_input = _abi_model.moe_model_input(
            n_sequences=shape[0],
            sequence_length=length,
            tokens=_check.address("tokens", tokens, shape, dtype="i32"),
            hidden=None if hidden is None else hidden.ctypes.data,
            targets=_check.address("targets", targets, shape, dtype="i32"),
            ignore_index=_check.integer("ignore_index", ignore_index, ctypes.c_int32),
            training=_check.flag("training", training),
            label_smoothing=_check.number("label_smoothing", label_smoothing),
            step=_check.integer("step", step, ctypes.c_uint64),
            mask=_check.address("mask", mask, (length, length), dtype="mask"),
            added_mask=_check.address("added_mask", added_mask, (length, length)),
            valid_mask=_check.address("valid_mask", valid_mask, shape, dtype="mask"),
            positions=_check.address("positions", positions, shape, dtype="i64"),
            memory_limit=0 if memory_limit is None else _check.byte_count("memory_limit", memory_limit),
            loss_mask=_check.address("loss_mask", loss_mask, shape, dtype="mask"),
            chunk_tokens=_check.integer("chunk_tokens", chunk_tokens, ctypes.c_int64),
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

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: what backward needs is of this process."""
        raise ArgumentTypeError(
            "a libmoe.ModelOutput cannot be pickled or copied, since backward needs its tape; take "
            "what you need of it: output.loss, output.logits, output.hidden, output.layers"
        )


class Reports:
    """Room for the reports of all layers, and the call's own.

    Parameters
    ----------
    experts
        Of each layer: how many experts, and how many choices a token has; None where it is not MoE.
    """

    def __init__(self, experts: list[tuple[int, int, list[str]] | None], n_tokens: int) -> None:
        self._listed = (_abi.moe_report * len(experts))()
        self._names = [None if known is None else known[2] for known in experts]
        self._blanks: list[Blank | None] = []
        for n, known in enumerate(experts):
            blank = None
            if known is None:
                self._listed[n] = _abi.moe_report()
            else:
                n_experts, choices, losses = known
                blank = Blank(
                    n_experts,
                    losses=np.empty(len(losses), np.float32),
                    expert_indices=np.empty((n_tokens, choices), np.int32),
                    expert_weights=np.empty((n_tokens, choices), np.float32),
                )
                self._listed[n] = blank.c_report
            self._blanks.append(blank)
        self.c_report = _abi_model.moe_model_report(layers=self._listed)

    def filled(self) -> list[Report | None]:
        """Return what the library has written, by layer."""
        reports: list[Report | None] = []
        for blank, c_report, names in zip(self._blanks, self._listed, self._names):
            if blank is None or names is None:
                reports.append(None)
                continue
            blank.c_report = c_report
            filled = blank.filled()
            filled["losses"] = dict(zip(names, filled["losses"].tolist()))
            reports.append(Report(**filled))
        return reports


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

    def __str__(self) -> str:
        """One line for people."""
        kept = ", ".join(
            f"{self.keep.count(word)} keep {word}" for word in _abi_model.KEEP if word in self.keep
        )
        return f"{self.total_bytes / 2**20:.1f} MiB; of {len(self.keep)} layers {kept}"


def planned(model: Handle, n_layers: int, call: Call, taped: bool) -> ModelPlan:
    """Ask the library, see :meth:`Model.plan`."""
    keep = np.empty(n_layers, np.int32)
    plan = _abi_model.moe_model_plan(keep=keep.ctypes.data)
    lib.moe_model_plan_memory(model, call.c_input, int(_check.flag("training", taped)), plan)
    words = {number: word for word, number in _abi_model.KEEP.items()}
    return ModelPlan(
        forward_bytes=plan.forward_bytes,
        backward_bytes=plan.backward_bytes,
        tape_bytes=plan.tape_bytes,
        total_bytes=plan.total_bytes,
        keep=[words[number] for number in keep.tolist()],
    )
