"""The weights of experts where the caller has them, in whatever layout."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Union

from . import words
from ._keywords import keywords
from ._native import abi
from ._native.memory import Memory, memory
from .errors import InvalidArgumentError

_PARTS = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias", "constant")
_DTYPES = ("f32", "bf16", "f16")


class _Place:
    """One part of all experts: [E, outputs, inputs], or of vectors [E, outputs, 1]."""

    def __init__(
        self, memories: list[Memory], shape: tuple[int, int, int], steps: tuple[int, int, int]
    ) -> None:
        self.addresses = [each.address for each in memories]
        self.dtype = memories[0].dtype
        self.itemsize = memories[0].itemsize
        self.is_listed = len(memories) > 1 or steps[0] == 0 and shape[0] == 1
        self.shape, self.steps = shape, steps

    def part(self, first: int, count: int, every: int = 1) -> _Place:
        """Return ``count`` of the outputs, from ``first`` on, every so many."""
        own = _Place.__new__(_Place)
        own.__dict__.update(self.__dict__)
        offset = first * self.steps[1] * self.itemsize
        own.addresses = [address + offset for address in self.addresses]
        own.shape = (self.shape[0], count, self.shape[2])
        own.steps = (self.steps[0], self.steps[1] * every, self.steps[2])
        return own


@keywords
class ExpertWeights:
    """Experts' weights, or their gradients, in the caller's memory: a description, which copies nothing.

    Each argument is an array of all experts, or a list of E arrays, one for each.  An array is numpy's
    (float32, float16, and bfloat16 as uint16), a tensor with ``data_ptr()``, ``stride()``, ``shape`` and
    ``dtype`` as torch's, or a :class:`Memory`.  Strides are any, but not negative.

    Parameters
    ----------
    gate_up : array, [E, 2I, H], optional
        Gate and up in one: the gate's outputs, then those of up.
    gate, up : array, [E, I, H], optional
        Both of gated experts where they are apart; ``up`` alone of MLPs.
    down : array, [E, H, I], optional
        Of linear experts their one matrix.
    gate_up_bias : array, [E, 2I], optional
    gate_bias, up_bias : array, [E, I], optional
    down_bias : array, [E, H], optional
    constant : array, [E, H], optional
        What constant experts put out.
    transposed : bool
        Matrices are [E, inputs, outputs]: ``gate_up`` [E, H, 2I], ``down`` [E, I, H].
    interleaved : bool
        The outputs of ``gate_up`` and its bias are gate and up in turn.
    kind : {"gated", "mlp", "linear", "constant", "identity", "zero"}, optional
        By default what follows from the parts that are there.
    n_experts, hidden_size : int, optional
        Of identity and zero experts, which have no parts.

    Attributes
    ----------
    n_experts, hidden_size, intermediate_size : int
        E, H and I; I is 0 for experts without inner features.
    kind : str
        What the experts are.
    dtype : str
        Of the matrices: ``"f32"``, ``"bf16"`` or ``"f16"``.

    Raises
    ------
    InvalidArgumentError
        Shapes do not belong together.

    Examples
    --------
    >>> import libmoe, numpy
    >>> gate_up, down = numpy.ones((4, 64, 16), numpy.float32), numpy.ones((4, 16, 32), numpy.float32)
    >>> libmoe.ExpertWeights(gate_up=gate_up, down=down)
    ExpertWeights(4 gated experts, hidden_size=16, intermediate_size=32, f32)
    """

    def __init__(
        self,
        *,
        gate_up: Part | None = None,
        gate: Part | None = None,
        up: Part | None = None,
        down: Part | None = None,
        gate_up_bias: Part | None = None,
        gate_bias: Part | None = None,
        up_bias: Part | None = None,
        down_bias: Part | None = None,
        constant: Part | None = None,
        transposed: bool = False,
        interleaved: bool = False,
        kind: words.ExpertKind | None = None,
        n_experts: int | None = None,
        hidden_size: int | None = None,
    ) -> None:
        given = {
            "gate": gate,
            "up": up,
            "down": down,
            "gate_bias": gate_bias,
            "up_bias": up_bias,
            "down_bias": down_bias,
            "constant": constant,
        }
        self._keep: Any = (gate_up, gate_up_bias, given)
        places = {
            name: _place(name, value, 2 if name.endswith("bias") or name == "constant" else 3, transposed)
            for name, value in given.items()
            if value is not None
        }
        for name, value in (("gate_up", gate_up), ("gate_up_bias", gate_up_bias)):
            if value is not None:
                places.update(
                    _halves(name, _place(name, value, 3 if name == "gate_up" else 2, transposed), interleaved)
                )
        self._places = places
        self._measure(kind, n_experts, hidden_size)
        self._list()

    def _measure(self, kind: str | None, n_experts: int | None, hidden_size: int | None) -> None:
        sizes: dict[str, dict[int, str]] = {"E": {}, "H": {}, "I": {}}
        for name, place in self._places.items():
            experts, outputs, inputs = place.shape
            letters = (
                "HI" if name == "down" else "IH" if name in ("gate", "up") else "I" if "_" in name else "H"
            )
            letters = "H" if name == "down_bias" else letters
            sizes["E"].setdefault(experts, name)
            sizes[letters[0]].setdefault(outputs, name)
            if len(letters) == 2:
                sizes[letters[1]].setdefault(inputs, name)
        for letter, found in sizes.items():
            if len(found) > 1:
                (one, first), (other, second) = list(found.items())[:2]
                raise InvalidArgumentError(
                    f"{second}: its {letter} is {other}, but that of {first} is {one}; "
                    "matrices are [E, outputs, inputs], with transposed=True [E, inputs, outputs]"
                )
        self.n_experts = next(iter(sizes["E"]), n_experts or 0)
        self.hidden_size = next(iter(sizes["H"]), hidden_size or 0)
        self.intermediate_size = next(iter(sizes["I"]), 0)
        parts = self._places
        self.kind = kind or (
            "gated"
            if "gate" in parts
            else "mlp"
            if "up" in parts
            else "linear"
            if "down" in parts
            else "constant"
        )
        if self.kind in ("linear", "identity", "zero", "constant"):
            self.intermediate_size = 0
        matrices = [parts[name].dtype for name in ("down", "up", "gate") if name in parts]
        self.dtype = matrices[0] if matrices else "f32"

    def _list(self) -> None:
        """Write the list that the library reads."""
        count = len(self._places)
        self.tensors = (abi.moe_expert_tensor * max(count, 1))()
        self.count = count
        self._pointers = []
        for tensor, (name, place) in zip(self.tensors, self._places.items()):
            tensor.part = abi.EXPERT_PART[name]
            tensor.dtype = abi.DTYPE[place.dtype]
            tensor.strides = place.steps
            if place.is_listed:
                pointers = (ctypes.c_void_p * len(place.addresses))(*place.addresses)
                self._pointers.append(pointers)
                tensor.experts = ctypes.addressof(pointers)
            else:
                tensor.data = place.addresses[0]

    def without_matrices(self) -> ExpertWeights:
        """Return the same without its matrices, which packed weights then stand for: their memory may go."""
        own = ExpertWeights.__new__(ExpertWeights)
        own.__dict__.update(self.__dict__)
        own._places = {name: place for name, place in self._places.items() if "bias" in name}
        gate_up, gate_up_bias, given = self._keep
        own._keep = (None, gate_up_bias, {name: each for name, each in given.items() if "bias" in name})
        own._list()
        return own

    def __repr__(self) -> str:
        """One line: how many experts of what kind, and their sizes."""
        sizes = f"hidden_size={self.hidden_size}"
        if self.intermediate_size:
            sizes += f", intermediate_size={self.intermediate_size}"
        return f"ExpertWeights({self.n_experts} {self.kind} experts, {sizes}, {self.dtype})"


Part = Union[Any, Sequence[Any]]
"""An array of all experts, or one for each."""


def _place(name: str, value: Part, rank: int, transposed: bool) -> _Place:
    listed = isinstance(value, (list, tuple)) and not isinstance(value, Memory)
    memories = (
        [memory(f"{name}[{e}]", each) for e, each in enumerate(value)] if listed else [memory(name, value)]
    )
    if not memories:
        raise InvalidArgumentError(f"{name}: expected an array for each expert, got an empty list")
    first, own = memories[0], rank - 1 if listed else rank
    if len(first.shape) != own:
        whose = " of each expert" if listed else ""
        raise InvalidArgumentError(f"{name}: expected {own} axes{whose}, got shape {first.shape}")
    if first.dtype not in _DTYPES:
        raise InvalidArgumentError(f"{name}: expected weights of {', '.join(_DTYPES)}, got {first.dtype}")
    for e, each in enumerate(memories):
        if (each.shape, each.dtype, each.steps) != (first.shape, first.dtype, first.steps):
            raise InvalidArgumentError(
                f"{name}[{e}]: has shape {each.shape}, type {each.dtype} and strides {each.steps}, but "
                f"{name}[0] {first.shape}, {first.dtype} and {first.steps}; make all alike"
            )
    shape, steps = first.shape, first.steps
    if listed:
        shape, steps = (len(memories), *shape), (0, *steps)
    if rank == 2:
        shape, steps = (*shape, 1), (*steps, 0)
    elif transposed:
        shape, steps = (shape[0], shape[2], shape[1]), (steps[0], steps[2], steps[1])
    return _Place(memories, shape, steps)  # type: ignore[arg-type]


def _halves(name: str, place: _Place, interleaved: bool) -> dict[str, _Place]:
    outputs, odd = divmod(place.shape[1], 2)
    if odd:
        raise InvalidArgumentError(f"{name}: has {place.shape[1]} outputs, which are not gate and up alike")
    ending = name[len("gate_up") :]
    if interleaved:
        return {"gate" + ending: place.part(0, outputs, 2), "up" + ending: place.part(1, outputs, 2)}
    return {"gate" + ending: place.part(0, outputs), "up" + ending: place.part(outputs, outputs)}
