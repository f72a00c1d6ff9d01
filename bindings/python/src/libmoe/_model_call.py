"""One call of a model: what goes in, and room for what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._native import abi, check, fields
from ._native.library import Handle, lib
from ._native.reports import Report
from .model_output import ModelPlan
from .report import Blank

Integers = NDArray[np.int32]
Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Call:
    """The arguments of a forward as the library reads them, kept for backward.

    Parameters
    ----------
    shape
        B, S and, of an encoder, H.
    options
        Fields of ``moe_model_input``, by name.
    """

    def __init__(self, shape: tuple[int, ...], options: dict[str, Any]) -> None:
        self.shape = shape[:2]
        self._arrays = [value for value in options.values() if isinstance(value, np.ndarray)]  # kept alive
        if options.get("memory_limit") is None:
            options = {**options, "memory_limit": 0}
        self.c_input = fields.filled(
            abi.moe_model_input,
            {"B": shape[:1], "S": shape[1:2], "H": shape[2:]},
            n_sequences=shape[0],
            sequence_length=shape[1],
            **options,
        )


class Reports:
    """Room for the reports of all layers, and the call's own.

    Parameters
    ----------
    experts
        Of each layer: how many experts, and how many choices a token has; None where it is not MoE.
    """

    def __init__(self, experts: list[tuple[int, int, list[str]] | None], n_tokens: int) -> None:
        self._listed = (abi.moe_report * len(experts))()
        self._blanks: list[Blank | None] = []
        for n, known in enumerate(experts):
            blank = None
            if known is not None:
                n_experts, choices, losses = known
                blank = Blank(losses, n_experts=n_experts, n_tokens=n_tokens, choices=choices)
            self._listed[n] = abi.moe_report() if blank is None else blank.c_report
            self._blanks.append(blank)
        self.c_report = abi.moe_model_report(layers=self._listed)

    def filled(self) -> list[Report | None]:
        """Return what the library has written, by layer."""
        for blank, c_report in zip(self._blanks, self._listed):
            if blank is not None:
                blank.c_report = c_report
        return [None if blank is None else Report(**blank.filled()) for blank in self._blanks]


def planned(model: Handle, n_layers: int, call: Call, taped: bool) -> ModelPlan:
    """Ask the library, see :meth:`Model.plan`."""
    keep = np.empty(n_layers, np.int32)
    plan = abi.moe_model_plan(keep=keep.ctypes.data)
    lib.moe_model_plan_memory(model, call.c_input, int(check.flag("training", taped)), plan)
    words = {number: word for word, number in abi.KEEP.items()}
    return ModelPlan(
        forward_bytes=plan.forward_bytes,
        backward_bytes=plan.backward_bytes,
        tape_bytes=plan.tape_bytes,
        total_bytes=plan.total_bytes,
        keep=[words[number] for number in keep.tolist()],
    )
