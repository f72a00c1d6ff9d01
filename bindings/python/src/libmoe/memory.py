"""Memory of a call: how much it takes, known before anything is allocated."""

from __future__ import annotations

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
    """

    forward_bytes: int
    backward_bytes: int
    tape_bytes: int
    total_bytes: int
    chunk_tokens: int
    tape_policy: str

    def __str__(self) -> str:
        """One line for people."""
        mib = self.total_bytes / 2**20
        return f"{mib:.1f} MiB: chunks of {self.chunk_tokens} tokens, {self.tape_policy} tape"


def planned(layer: Handle, n_tokens: int, taped: bool, options: _abi.moe_forward_options) -> Plan:
    """Ask the library, see :meth:`Layer.plan`."""
    plan = _abi.moe_plan()
    lib.moe_layer_plan(layer, n_tokens, options, int(bool(taped)), plan)
    words = {number: word for word, number in _abi.TAPE.items()}
    return Plan(
        forward_bytes=plan.forward_bytes,
        backward_bytes=plan.backward_bytes,
        tape_bytes=plan.tape_bytes,
        total_bytes=plan.total_bytes,
        chunk_tokens=plan.chunk_tokens,
        tape_policy=words[plan.tape_policy],
    )
