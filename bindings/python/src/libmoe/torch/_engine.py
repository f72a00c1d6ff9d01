"""A layer of the library whose parameters and buffers are the memory of torch's tensors."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .. import words
from .._native.check import Array, word_of
from ..communicator import Communicator
from ..context import Context
from ..errors import BadStateError, InvalidArgumentError
from ..layer import Layer
from ..tape import Tape
from ._arrays import array_of, require_tensor
from ._memory import Gradient
from ._threads import context as of_torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
Tensors = Sequence[torch.Tensor]


class Place(NamedTuple):
    """One parameter or buffer of the layer."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_buffer: bool

    @property
    def is_expert(self) -> bool:
        """Whether it is a matrix of experts, or the bias of one."""
        return _OF_EXPERTS.fullmatch(self.name) is not None

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix of experts, which is packed where the layer is prepared."""
        return self.is_expert and self.name.endswith("weight")


# Of groups they are numbered, and linear experts have one; "shared.router.weight" is a gate.
_OF_EXPERTS = re.compile(r"(experts|shared)\.(\d+\.)?((gate|up|down)\.)?(weight|bias)")


class Engine:
    """The layer, and what memory it computes with.

    Calls take turns: a call may find that torch has put a parameter elsewhere, and binds it anew, for which
    the layer must not be in use.

    Parameters
    ----------
    options
        Arguments of :class:`libmoe.Layer` by name, without ``unallocated`` and ``context``.
    context
        Of the layer; None: of torch's threads.
    communicator
        Of the ranks that its experts are spread over; None: all are here.
    """

    def __init__(
        self, options: dict[str, Any], context: Context | None, communicator: Communicator | None
    ) -> None:
        self.is_spread = communicator is not None
        self.trainable = not options.get("inference_only", False)
        unallocated: list[words.Unallocated] = ["expert_weights"]
        if self.trainable:
            unallocated.append("expert_gradients")
        there: dict[str, Any] = {"context": context or of_torch(), "communicator": communicator}
        self.layer = Layer(**options, unallocated=unallocated, **there)
        self.places = [_place(tensor) for tensor in _described(self.layer)]
        self._gradients = [Gradient.of(torch.empty(place.shape, device="meta")) for place in self.places]
        self._bound: list[tuple[int, int]] = [(-1, -1)] * len(self.places)  # addresses of values and gradient
        self._prepared: list[tuple[int, int]] | None = None
        self._form: Any = "none"
        self._lock, self._process = threading.RLock(), os.getpid()

    @property
    def turn(self) -> threading.RLock:
        """The lock of a call; another one in a forked child, which has not the thread that may hold it."""
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        return self._lock

    def hold(self, tensors: Tensors) -> None:
        """Have the layer compute with the memory of these tensors, in the order of ``places``."""
        for index, tensor in enumerate(tensors):
            if tensor.data_ptr() != self._bound[index][0]:
                self._bind(index, tensor, None)

    def _bind(self, index: int, tensor: torch.Tensor, gradient: Array | None) -> None:
        place = self.places[index]
        data = array_of(_usable(place, tensor))
        self.layer.bind(place.name, data, gradient)
        there = self._bound[index][1] if gradient is None else gradient.ctypes.data
        self._bound[index] = (tensor.data_ptr(), there)

    def initialize(self, tensors: Tensors) -> None:
        """Give them the values of a new layer."""
        with self.turn:
            self.hold(tensors)
            self.layer.initialize()

    def prepare(self, form: Any, tensors: Tensors) -> None:
        """Pack the experts' weights, and note which values they have."""
        with self.turn:
            self._prepared = None
            self.hold(tensors)
            self.layer.prepare(form)
            if form != "none":
                self._prepared = self._versions(tensors)
            self._form = form

    @property
    def is_prepared(self) -> bool:
        """Whether there is a packed copy of the weights."""
        return self._prepared is not None

    def trains_over(self, tensors: Tensors) -> bool:
        """Whether the packed weights are of few bits, and no matrix of these wants a gradient."""
        if self._form in ("none", "f32", "bf16"):
            return False
        return not any(p.is_matrix and t.requires_grad for p, t in zip(self.places, tensors))

    def _versions(self, tensors: Tensors) -> list[tuple[int, int]]:
        """Return which values the matrices have that are packed."""
        packed = (tensor for place, tensor in zip(self.places, tensors) if place.is_matrix)
        return [(t.data_ptr(), -1 if t.is_inference() else t._version) for t in packed]

    def require_current(self, tensors: Tensors) -> None:
        """Refuse to compute with packed weights when the weights themselves have changed since."""
        if self._prepared is not None and self._versions(tensors) != self._prepared:
            raise BadStateError(
                "MoE: a parameter has changed since prepare; call prepare again, or prepare('none') to "
                "compute with the parameters themselves"
            )

    def backward(
        self, tensors: Tensors, wanted: Sequence[bool], tape: Tape, x: Array, dy: Array, **options: Any
    ) -> tuple[Array | None, list[torch.Tensor | None]]:
        """Return dx, and the gradients of those tensors whose gradient is wanted."""
        with self.turn:
            self.hold(tensors)
            for place, asked in zip(self.places, wanted):
                if asked and place.is_matrix and self._form not in ("none", "f32", "bf16"):
                    raise BadStateError(
                        f"MoE: {place.name} wants a gradient, but is prepared as {self._form!r}, which is "
                        "frozen: use requires_grad_(False) on the experts' matrices, or prepare('none')"
                    )
            frozen = not any(asked for place, asked in zip(self.places, wanted) if place.is_expert)
            lent = [
                None if place.is_buffer or frozen and place.is_expert else gradient.lend()
                for place, gradient in zip(self.places, self._gradients)
            ]
            for index, gradient in enumerate(lent):
                if gradient is not None:
                    self._lend(index, tensors[index], gradient.zero_())
            tape._x = x
            try:
                dx = self.layer.backward(tape, dy, frozen_experts=frozen, **options)
            finally:
                tape._x = None
                for index, gradient in enumerate(lent):
                    if gradient is not None:
                        self._lend(index, tensors[index], self._gradients[index].home)
            return dx, [gradient if asked else None for gradient, asked in zip(lent, wanted)]

    def _lend(self, index: int, tensor: torch.Tensor, gradient: torch.Tensor) -> None:
        """Have the layer add to this gradient; of its own memory it holds nothing that torch was lent."""
        home = self._gradients[index].home
        if gradient.data_ptr() == home.data_ptr():
            gradient = home
        if gradient.data_ptr() != self._bound[index][1]:
            self._bind(index, tensor, array_of(gradient))


def _described(layer: Layer) -> list[Any]:
    return [layer._tensor(index) for index in range(len(layer._tensors()))]


def _place(tensor: Any) -> Place:
    shape = tuple(tensor.shape[: tensor.rank])
    return Place(tensor.name.decode(), shape, DTYPES[word_of(tensor.dtype)], bool(tensor.buffer))


def _usable(place: Place, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, whose memory the library can use as it is."""
    if tensor.is_meta:
        raise BadStateError(
            f"{place.name}: is on the meta device, without memory; use load_state_dict(..., assign=True), or "
            "to_empty(device='cpu') and reset_parameters()"
        )
    require_tensor(place.name, tensor)
    if tensor.dtype != place.dtype or tensor.shape != place.shape:
        raise InvalidArgumentError(
            f"{place.name}: expected {place.dtype} {list(place.shape)}, got {tensor.dtype} "
            f"{list(tensor.shape)}; give the parameter the type and shape that the module was made with"
        )
    if not tensor.is_contiguous():
        raise InvalidArgumentError(f"{place.name}: expected contiguous memory; use .contiguous()")
    return tensor


def empty(place: Place) -> torch.Tensor:
    """Return memory for one of the layer's tensors on torch's default device."""
    made = torch.empty(place.shape, dtype=place.dtype)
    if made.device.type not in ("cpu", "meta"):
        raise InvalidArgumentError(
            f"MoE: torch's default device is {str(made.device)!r}, and libmoe computes on the CPU; make the "
            "module within `with torch.device('cpu'):`"
        )
    return made
