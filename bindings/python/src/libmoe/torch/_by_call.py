"""The library's experts by call, on tensors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import abi
from .._native.library import lib
from ..context import Context, processors
from ..experts import _config
from ._form import Form, form_of, pieces
from ._threads import calm

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
INDICES = {torch.int32: "i32", torch.int64: "i64"}

_NUMBERS = {dtype: abi.DTYPE[word] for dtype, word in DTYPES.items()}

_contexts: dict[tuple[int, int], Context] = {}


def context() -> Context:
    """Return the context of as many threads as torch may use now; one for each process."""
    key = os.getpid(), torch.get_num_threads()
    found = _contexts.get(key)
    if found is None:
        calm()
        found = _contexts[key] = Context(min(key[1], processors()))
    return found


class Experts(NamedTuple):
    """What a call's experts are, apart from their weights."""

    form: Form
    n_experts: int
    intermediate_size: int
    glu: tuple[float, float, float]  # limit, alpha, offset

    @classmethod
    def of(cls, word: str, sizes: Sequence[int], glu: Sequence[float]) -> Experts:
        """Return them as the operators are given them."""
        return cls(form_of(word), sizes[0], sizes[1], (glu[0], glu[1], glu[2]))

    def config(self, hidden_size: int, io_dtype: torch.dtype) -> Any:
        """Return them as the library reads them."""
        return _config(
            self.n_experts,
            hidden_size,
            self.intermediate_size,
            self.form.kind,
            None if self.form.kind == "linear" else self.form.activation,
            *self.glu,
            weight_on_input=self.form.weight_on_input,
            io=DTYPES[io_dtype],
        )

    def slots(self, tensors: Sequence[Any]) -> Iterator[tuple[str, bool, Sequence[Any]]]:
        """Yield each slot's name, whether its experts are apart, and its tensors."""
        begin = 0
        for slot, spread, count in zip(self.form.slots, self.form.spread, self.form.counts(self.n_experts)):
            yield slot, spread, tensors[begin : begin + count]
            begin += count

    def parts(self, tensors: Sequence[Tensor | None]) -> Parts:
        """Return where the library finds each part of the weights; slots of None are left out."""
        found: list[Any] = []
        held: list[Any] = []
        for slot, spread, given in self.slots(tensors):
            first = given[0]
            if first is None:
                continue
            shape, strides = (
                (first.shape, first.stride()) if spread else (first.shape[1:], first.stride()[1:])
            )
            dtype, size = _NUMBERS[first.dtype], first.element_size()
            for piece in pieces(slot, self.form.transposed, self.form.fused, shape, strides):
                part = abi.moe_expert_tensor(part=abi.EXPERT_PART[piece.part], dtype=dtype)
                begin = piece.offset * size
                if spread:
                    where = (ctypes.c_void_p * len(given))(*(t.data_ptr() + begin for t in given))
                    held.append(where)
                    part.experts = ctypes.addressof(where)
                else:
                    part.data = first.data_ptr() + begin
                part.strides[:] = (0 if spread else first.stride(0), piece.output, piece.input)
                found.append(part)
        return Parts((abi.moe_expert_tensor * len(found))(*found), len(found), held)


class Parts(NamedTuple):
    """Parts of the weights as the library reads them."""

    array: Any
    length: int
    held: list[Any]  # what the array points at


def _call(x: Tensor, ids: Tensor, weights: Tensor) -> Any:
    return abi.moe_experts_call(
        n_tokens=x.shape[0],
        top_k=ids.shape[1],
        expert_indices=ids.data_ptr(),
        expert_weights=weights.data_ptr(),
        index_dtype=abi.DTYPE[INDICES[ids.dtype]],
        routing_dtype=abi.DTYPE[DTYPES[weights.dtype]],
    )


def forward(
    experts: Experts,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    prepared: Any,
    *,
    saves: bool,
) -> tuple[Tensor, Tensor]:
    """Return y [T, H], and the bytes that backward wants; none where nothing is saved."""
    handle, config, call = context()._handle, experts.config(x.shape[1], x.dtype), _call(x, ids, weights)
    parts = experts.parts(tensors)
    y, saved = torch.empty_like(x), torch.empty(0, dtype=torch.uint8)
    if saves:
        plan = abi.moe_plan()
        lib.moe_experts_plan(handle, config, call, parts.array, parts.length, None, 0, 1, plan)
        saved = torch.empty(plan.tape_bytes, dtype=torch.uint8)
    lib.moe_experts_forward(
        handle,
        config,
        call,
        parts.array,
        parts.length,
        prepared,
        x.data_ptr(),
        y.data_ptr(),
        saved.data_ptr() if saves else None,
        saved.numel(),
        None,
    )
    return y, saved


def backward(
    experts: Experts,
    dy: Tensor,
    saved: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    need: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of x, weights and the tensors, those that are needed, in this order."""
    config, call, parts = experts.config(x.shape[1], x.dtype), _call(x, ids, weights), experts.parts(tensors)
    dx = torch.empty_like(x) if need[0] else None
    d_weights = torch.empty_like(weights) if need[1] else None
    gradients: list[Tensor | None] = []
    for _, _, given in experts.slots(tensors):
        # The library writes a part of all experts, or none: of some alone the others' are thrown away.
        wanted = any(need[2 + len(gradients) :][: len(given)])
        gradients += [torch.empty_like(t) if wanted else None for t in given]
    written = experts.parts(gradients)
    lib.moe_experts_backward(
        context()._handle,
        config,
        call,
        parts.array,
        parts.length,
        saved.data_ptr() if saved.numel() else None,
        saved.numel(),
        x.data_ptr(),
        dy.data_ptr(),
        None if dx is None else dx.data_ptr(),
        None if d_weights is None else d_weights.data_ptr(),
        written.array,
        written.length,
        1,
    )
    made = [dx, d_weights, *gradients]
    return [gradient for gradient, needed in zip(made, need) if needed and gradient is not None]
