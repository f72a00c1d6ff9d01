"""Memory of a call: how much it takes, known before anything is allocated."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from . import _abi
from ._library import Handle, lib


@dataclass(frozen=True)
class Plan:
    """What :meth:`Layer.plan` says a call will take, in bytes: exactly what the library will ask for.

    Attributes
    ----------
    forward_bytes, backward_bytes : int
        Scratch of forward, and of backward with dx (0 without a tape).
    tape_bytes : int
        What the tape holds from forward to backward.
    total_bytes : int
        The tape and the larger of both scratches: what a memory limit bounds.
    chunk_tokens : int
        Tokens that experts compute at once.
    tape_policy : {"full", "lean"}
        Whether pre-activations are kept, or computed again in backward.
    n_tokens : int
        T.
    """

    forward_bytes: int
    backward_bytes: int
    tape_bytes: int
    total_bytes: int
    chunk_tokens: int
    tape_policy: str
    n_tokens: int

    def __str__(self) -> str:
        """One line for people, as ``moe_plan_describe`` has it."""
        plan = _abi.moe_plan()
        for name in _SAME:
            setattr(plan, name, getattr(self, name))
        plan.tape_policy = _abi.TAPE[self.tape_policy]
        text = ctypes.create_string_buffer(256)
        lib.moe_plan_describe(plan, text, len(text), None)
        return text.value.decode()


_SAME = ("forward_bytes", "backward_bytes", "tape_bytes", "total_bytes", "chunk_tokens", "n_tokens")


def planned(layer: Handle, n_tokens: int, taped: bool, options: _abi.moe_forward_options) -> Plan:
    """Ask the library, see :meth:`Layer.plan`."""
    plan = _abi.moe_plan()
    lib.moe_layer_plan(layer, n_tokens, options, int(bool(taped)), plan)
    words = {number: word for word, number in _abi.TAPE.items()}
    return Plan(tape_policy=words[plan.tape_policy], **{name: getattr(plan, name) for name in _SAME})
