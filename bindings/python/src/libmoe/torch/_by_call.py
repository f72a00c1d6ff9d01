"""The library's experts by call, on tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._native import abi
from .._native.library import lib
from ..experts import _config
from ._form import Form, form_of, pieces
from ._threads import context

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
INDICES = {torch.int32: "i32", torch.int64: "i64"}

_NUMBERS = {dtype: abi.DTYPE[word] for dtype, word in DTYPES.items()}
_PARTS = abi.EXPERT_PART


class Experts(NamedTuple):
    """What a call's experts are, apart from their weights."""

    form: Form
    n_experts: int
    intermediate_size: int
    glu: tuple[float, float, float]  # limit, alpha, offset

    @classmethod
    def of(cls, word: str, sizes: Sequence[int], glu: Sequence[float]) -> Experts:
        """Return what :meth:`told` told."""
        return cls(form_of(word), sizes[0], sizes[1], (glu[0], glu[1], glu[2]))

    def told(self) -> tuple[str, list[int], list[float]]:
        """Return them as the operators are given them."""
        return self.form.word(), [self.n_experts, self.intermediate_size], list(self.glu)

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
        return _slots(self.form, self.n_experts, tensors)

    def parts(self, tensors: Sequence[Tensor]) -> Parts:
        """Return where the library finds each part of the weights; looked up where they were there before."""
        return _parts_there(self.form, self.n_experts, tuple(map(_place, tensors)))

    def gradient_parts(self, tensors: Sequence[Tensor | None]) -> Parts:
        """Return where it writes their gradients, elsewhere each time; slots of None are left out."""
        return _parts(self.form, self.n_experts, [None if t is None else _place(t) for t in tensors])


Place = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""Where a tensor is: address, shape, strides, type."""


def _place(tensor: Tensor) -> Place:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _slots(form: Form, n_experts: int, given: Sequence[Any]) -> Iterator[tuple[str, bool, Sequence[Any]]]:
    begin = 0
    for slot, spread, count in zip(form.slots, form.spread, form.counts(n_experts)):
        yield slot, spread, given[begin : begin + count]
        begin += count


def _parts(form: Form, n_experts: int, places: Sequence[Place | None]) -> Parts:
    found: list[Any] = []
    held: list[Any] = []
    for slot, spread, given in _slots(form, n_experts, places):
        if given[0] is None:
            continue
        address, shape, strides, dtype = given[0]
        stride = 0 if spread else strides[0]
        if not spread:
            shape, strides = shape[1:], strides[1:]
        for piece in pieces(slot, form.transposed, form.fused, shape, strides):
            part = abi.moe_expert_tensor(part=_PARTS[piece.part], dtype=_NUMBERS[dtype])
            begin = piece.offset * dtype.itemsize
            if spread:
                where = (ctypes.c_void_p * len(given))(*(place[0] + begin for place in given))
                held.append(where)
                part.experts = ctypes.addressof(where)
            else:
                part.data = address + begin
            part.strides[:] = (stride, piece.output, piece.input)
            found.append(part)
    return Parts((abi.moe_expert_tensor * len(found))(*found), len(found), held)


_parts_there = functools.lru_cache(maxsize=1024)(_parts)


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
) -> tuple[Tensor, Tensor | None]:
    """Return y [T, H], and the bytes that backward wants; None where nothing is saved."""
    handle, config, call = context()._handle, experts.config(x.shape[1], x.dtype), _call(x, ids, weights)
    parts = experts.parts(tensors)
    y, saved = torch.empty_like(x), None
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
        None if saved is None else saved.data_ptr(),
        0 if saved is None else saved.numel(),
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
    written = experts.gradient_parts(gradients)
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
