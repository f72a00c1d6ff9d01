"""The tensors of a call of experts: which there are, and whether they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Union

import torch
from torch import Tensor

from .._native import abi, check
from .._native.memory import shown
from ..errors import ArgumentTypeError, InvalidArgumentError
from ._arrays import require_tensor
from ._by_call import DTYPES, INDICES, Experts
from ._form import MATRICES, Form
from .prepared import Prepared

Weight = Union[Tensor, Sequence[Tensor]]
"""One tensor for all experts, or a list with one for each."""
Pair = Union[Weight, tuple[Weight, Weight]]
"""The gate and the up projection in one, or as a tuple of two."""
Slots = list[tuple[str, Any]]


class LaidOut(NamedTuple):
    """The experts of a call."""

    form: Form
    tensors: list[Tensor]
    n_experts: int
    intermediate_size: int  # 0 of linear experts
    hidden_size: int

    def fits(self, x: Tensor, ids: Tensor, weights: Tensor) -> bool:
        """Whether it is plain tensors of two dimensions, and all right."""
        if type(x) not in _PLAIN or type(ids) not in _PLAIN or type(weights) not in _PLAIN:
            return False
        shape = ids.shape
        return (
            x.dtype in _TOKENS
            and ids.dtype in INDICES
            and weights.dtype in DTYPES
            and x.ndim == len(shape) == 2
            and x.shape == (shape[0], self.hidden_size)
            and weights.shape == shape
            and shape[1] > 0
            and x.is_cpu
            and ids.is_cpu
            and weights.is_cpu
            and x.layout is ids.layout is weights.layout is torch.strided
        )

    def require_tokens(self, x: Tensor, ids: Tensor, weights: Tensor) -> None:
        """Refuse tokens and routing that fit neither each other nor the experts."""
        if self.fits(x, ids, weights):  # as nearly always, and calls are short
            return
        for name, value in (("x", x), ("ids", ids), ("weights", weights)):
            require_tensor(name, value)
        if x.dtype not in _TOKENS:
            raise ArgumentTypeError(f"x: expected torch.float32 or bfloat16, got {x.dtype}; use x.float()")
        if ids.dtype not in INDICES:
            raise ArgumentTypeError(f"ids: expected torch.int64 or int32, got {ids.dtype}; use ids.long()")
        if weights.dtype not in DTYPES:
            raise ArgumentTypeError(
                f"weights: expected torch.float32, bfloat16 or float16, got {weights.dtype}; use .float()"
            )
        if x.ndim < 1 or x.shape[-1] != self.hidden_size:
            raise InvalidArgumentError(
                f"x: expected shape [..., {self.hidden_size}], got {list(x.shape)}; its last axis must "
                "be the features that the experts' weights have"
            )
        if ids.ndim < 1 or ids.shape != weights.shape or ids.shape[:-1] != x.shape[:-1] or ids.shape[-1] < 1:
            raise InvalidArgumentError(
                f"ids, weights: expected shape {shown((*x.shape[:-1], 'K'))} of both, with one K of 1 or "
                f"more, got {shown(ids.shape)} and {shown(weights.shape)}"
            )


_PLAIN = (Tensor, torch.nn.Parameter)
_TOKENS = (torch.float32, torch.bfloat16)


def laid_out(
    gate_up: Pair | None,
    down: Weight | None,
    gate_up_bias: Pair | None,
    down_bias: Weight | None,
    *,
    expert_kind: str,
    activation: str,
    transposed: bool,
    interleaved: bool,
    weight_on_input: bool,
    prepared: Prepared | None,
) -> LaidOut:
    """Return the tensors in order, with what they are, after a look at their types and shapes."""
    check.choice("activation", activation, abi.ACTIVATION)
    if expert_kind not in ("gated", "mlp", "linear"):
        raise InvalidArgumentError(f"expert_kind: expected gated, mlp or linear, got {expert_kind!r}")
    apart = expert_kind != "gated" or isinstance(gate_up, tuple) or isinstance(gate_up_bias, tuple)
    fused = "apart" if apart else "interleaved" if interleaved else "concatenated"
    slots = _slots(expert_kind, gate_up, down, gate_up_bias, down_bias)
    has_matrices = any(name in MATRICES for name, _ in slots)
    spread = tuple(not isinstance(value, Tensor) for _, value in slots)
    names = tuple(name for name, _ in slots)
    form = Form(expert_kind, activation, fused, transposed, weight_on_input, names, spread)
    if has_matrices:
        n_experts, inner, hidden = _sizes(form, slots)
    elif prepared is not None:
        n_experts, inner = prepared.experts.n_experts, prepared.experts.intermediate_size
        hidden = prepared.hidden_size
    else:
        raise InvalidArgumentError("gate_up, down: expected tensors; only packed weights do without them")
    tensors = [
        tensor
        for name, value in slots
        for tensor in _fitting(name, value, _shape(form, name, n_experts, inner, hidden))
    ]
    _require_one_type(names, spread, tensors, n_experts)
    return LaidOut(form, tensors, n_experts, inner, hidden)


def _slots(kind: str, gate_up: Any, down: Any, gate_up_bias: Any, down_bias: Any) -> Slots:
    """Return what is given by the names of the form's slots."""
    first = {"gated": "gate_up", "mlp": "up"}.get(kind)
    found: Slots = []
    for tail, value, last in (("", gate_up, down), ("_bias", gate_up_bias, down_bias)):
        if value is not None and first is None:
            raise InvalidArgumentError(f"gate_up{tail}: linear experts have none; give down{tail} alone")
        if isinstance(value, tuple):
            if kind != "gated" or len(value) != 2:
                raise InvalidArgumentError(
                    f"gate_up{tail}: a tuple is (gate, up) of gated experts; a list has a tensor per expert"
                )
            found += [("gate" + tail, value[0]), ("up" + tail, value[1])]
        elif value is not None:
            found.append((f"{first}{tail}", value))
        if last is not None:
            found.append(("down" + tail, last))
    return found


def _sizes(form: Form, slots: Slots) -> tuple[int, int, int]:
    """Return E, I and H, as the last matrix has them."""
    given = dict(slots)
    missing = {"gated": ["gate_up"], "mlp": ["up"], "linear": []}[form.kind] + ["down"]
    if form.fused == "apart" and form.kind == "gated":
        missing = ["gate", "up", "down"]
    for name in missing:
        if name not in given:
            told = "gate_up" if name in ("gate", "up") else name
            raise InvalidArgumentError(f"{told}: expected a tensor, as of {form.kind} experts, got None")
    down = given["down"]
    one = down[0] if not isinstance(down, Tensor) and len(down) else down
    shape = list(one.shape) if isinstance(one, Tensor) else []
    if isinstance(down, Tensor):
        n_experts, shape = (shape[0] if shape else 0), shape[1:]
    else:
        n_experts = len(down)
    if len(shape) != 2 or n_experts < 1:
        raise InvalidArgumentError(
            "down: expected a tensor [E, H, I] or a list of E tensors [H, I], got "
            f"{list(down.shape) if isinstance(down, Tensor) else down!r:.60}"
        )
    hidden, inner = (shape[1], shape[0]) if form.transposed else (shape[0], shape[1])
    return n_experts, 0 if form.kind == "linear" else inner, hidden


def _shape(form: Form, slot: str, n_experts: int, inner: int, hidden: int) -> list[int]:
    """Return the shape of all experts' tensor."""
    part = slot.removesuffix("_bias")
    outputs = {"gate_up": 2 * inner, "down": hidden}.get(part, inner)
    if slot not in MATRICES:
        return [n_experts, outputs]
    inputs = (inner or hidden) if part == "down" else hidden
    return [n_experts, inputs, outputs] if form.transposed else [n_experts, outputs, inputs]


def _fitting(name: str, value: Any, shape: list[int]) -> list[Tensor]:
    """Return a slot's tensors, after a look at their shapes."""
    together = isinstance(value, Tensor)
    tensors = [value] if together else list(value)
    wanted = shape if together else shape[1:]
    if not together and len(tensors) != shape[0]:
        raise InvalidArgumentError(
            f"{name}: expected a list of {shape[0]} tensors, one an expert, got {len(tensors)}"
        )
    for e, tensor in enumerate(tensors):
        own = name if together else f"{name}[{e}]"
        require_shape(own, require_tensor(own, tensor), tuple(wanted))
        if tensor.dtype not in DTYPES:
            raise ArgumentTypeError(
                f"{own}: expected torch.float32, bfloat16 or float16, got {tensor.dtype}; use .float()"
            )
        if tensor.dtype != tensors[0].dtype:
            raise InvalidArgumentError(
                f"{own}: is {tensor.dtype}, but {name}[0] is {tensors[0].dtype}; use "
                f"{own}.to({tensors[0].dtype}), all experts have one type"
            )
        if tensor.stride() != tensors[0].stride():
            raise InvalidArgumentError(
                f"{own}: has strides {shown(tensor.stride())}, but {name}[0] {shown(tensors[0].stride())}; "
                "use .contiguous() of both"
            )
    return tensors


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a part of the weights that does not fit the last matrix."""
    if tensor.shape != shape:
        raise InvalidArgumentError(
            f"{name}: expected shape {list(shape)}, as the last matrix says, got {list(tensor.shape)}"
        )


def require_fitting(experts: Experts, x: Tensor, ids: Tensor, weights: Tensor, tensors: list[Tensor]) -> None:
    """Refuse what the operators, called by themselves, are given and does not fit together."""
    form, n_experts, inner = experts.form, experts.n_experts, experts.intermediate_size
    if x.ndim != 2 or n_experts < 1 or len(tensors) != sum(form.counts(n_experts)):
        raise InvalidArgumentError(
            f"x, tensors: expected [T, H] and {sum(form.counts(n_experts))} tensors, got {list(x.shape)} and "
            f"{len(tensors)}; call libmoe.torch.experts, which lays them out"
        )
    LaidOut(form, tensors, n_experts, inner, x.shape[1]).require_tokens(x, ids, weights)
    for slot, spread, given in experts.slots(tensors):
        _fitting(slot, given if spread else given[0], _shape(form, slot, n_experts, inner, x.shape[1]))
    _require_one_type(form.slots, form.spread, tensors, n_experts)


def _require_one_type(
    names: Sequence[str], spread: Sequence[bool], tensors: Sequence[Tensor], n_experts: int
) -> None:
    """Refuse matrices of different types."""
    first, begin = None, 0
    for name, apart in zip(names, spread):
        dtype = tensors[begin].dtype
        begin += n_experts if apart else 1
        if name in MATRICES:
            first = first or dtype
            if dtype != first:
                raise InvalidArgumentError(
                    f"{name}: is {dtype}, and the matrix before it {first}; give both one type"
                )
