"""Experts by call over addresses: what the functions over numpy's arrays and over torch's tensors share."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

from ._native import abi, fields
from ._native.library import Handle, lib

_DEFAULT = {"gated": "silu"}  # activations; others begin with "gelu"


class Piece(NamedTuple):
    """One part within an array that may hold two: of one expert, in elements."""

    part: str  # of words.ExpertPart
    offset: int  # from the array's beginning
    output: int  # from one output to the next
    outputs: int


def pieces(name: str, outputs: int, step: int, *, interleaved: bool) -> list[Piece]:
    """Return the parts that lie in the array of this name, whose outputs are ``step`` elements apart.

    ``gate_up`` and its bias have the gate's outputs and then those of up, or both in turn.
    """
    if not name.startswith("gate_up"):
        return [Piece(name, 0, step, outputs)]
    tail, each = name[len("gate_up") :], outputs // 2
    offset, output = (step, 2 * step) if interleaved else (each * step, step)
    return [Piece("gate" + tail, 0, output, each), Piece("up" + tail, offset, output, each)]


class Part(NamedTuple):
    """One part of all experts: element (e, o, i) lies at address + (e, o, i) * strides."""

    name: str  # of words.ExpertPart
    dtype: str
    addresses: Sequence[int]  # one, or where they are listed one for each expert
    is_listed: bool
    strides: tuple[int, int, int]  # of experts, outputs and inputs, in elements


class Parts:
    """Parts of weights, or of their gradients, as the library reads them."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.array: Any = (abi.moe_expert_tensor * max(len(parts), 1))()
        self.length = len(parts)
        self._lists = []
        for tensor, part in zip(self.array, parts):
            tensor.part, tensor.dtype = abi.EXPERT_PART[part.name], abi.DTYPE[part.dtype]
            tensor.strides = part.strides
            if part.is_listed:
                addresses = (ctypes.c_void_p * len(part.addresses))(*part.addresses)
                self._lists.append(addresses)
                tensor.experts = ctypes.addressof(addresses)
            else:
                tensor.data = part.addresses[0]


class Sizes(NamedTuple):
    """E, H and I; I is 0 of experts without inner features."""

    n_experts: int
    hidden_size: int
    intermediate_size: int


class Options(NamedTuple):
    """What experts compute, beside their kind."""

    activation: Any = None
    glu_limit: Any = 0
    glu_alpha: Any = 0
    glu_offset: Any = 0
    weight_on_input: Any = False
    io_dtype: Any = "f32"


def config(kind: str, sizes: Sizes, options: Options, parts: Parts) -> abi.moe_experts_config:
    """Return the struct of experts whose weights are these parts, which it keeps."""
    given = options._asdict()
    given["activation"] = options.activation or _DEFAULT.get(kind, "gelu")
    made = fields.filled(
        abi.moe_experts_config,
        expert_kind=kind,
        weights=parts.array,
        n_weights=parts.length,
        **sizes._asdict(),
        **given,
    )
    made.keep = parts  # whose lists of addresses the array points at
    return made


_Call = abi.moe_experts_call
_CALL_SIZE = ctypes.sizeof(_Call)


def call(
    n_tokens: int,
    top_k: int,
    indices: int | None,
    weights: int | None,
    index_dtype: int,
    routing_dtype: int,
    prepared: Handle | None = None,
    ranks: Handle | None = None,
) -> abi.moe_experts_call:
    """Return the struct of one call's tokens, whose fields are given in its order: calls are short."""
    made = _Call.__new__(_Call)
    ctypes.Structure.__init__(made, _CALL_SIZE, n_tokens, top_k, indices, weights, index_dtype, routing_dtype)
    if prepared is not None:
        made.prepared, made.keep = prepared._as_parameter_, prepared
    if ranks is not None:
        made.ranks, made.handles = ranks._as_parameter_, (ranks,)
    return made


def gradients(
    dx: int | None, d_expert_weights: int | None, parts: Parts | None, *, overwrite: bool
) -> abi.moe_experts_gradients:
    """Return the struct of what a backward writes; None is not wanted."""
    made = abi.moe_experts_gradients(dx=dx, d_expert_weights=d_expert_weights, overwrite=int(overwrite))
    if parts is not None:
        made.tensors, made.n_tensors = parts.array, parts.length
        made.keep = parts
    return made


def planned(context: Any, experts: Any, call: Any, gradients: Any, *, saves: bool) -> abi.moe_plan:
    """Return the plan of a call, and of the backward that writes these gradients."""
    plan = abi.moe_plan()
    lib.moe_experts_plan(context, experts, call, gradients, int(saves), plan)
    return plan


def packed(context: Handle, experts: Any, form: int) -> Handle:
    """Return packed weights of a form of abi.PREPARED."""
    return Handle(
        lib.moe_experts_prepare,
        lib.moe_experts_prepared_free,
        context,
        experts,
        form,
        keep={"context": context},
    )
