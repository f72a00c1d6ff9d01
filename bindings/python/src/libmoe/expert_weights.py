"""The weights of experts where the caller has them, in whatever layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Union

from . import words
from ._by_call import Options, Part, Parts, Sizes, config, pieces
from ._keywords import keywords
from ._native import abi, check
from ._native.memory import Memory, memory, shown
from .errors import InvalidArgumentError

Array = Union[Any, Sequence[Any]]
"""An array of all experts, or one for each."""

_DTYPES = ("f32", "bf16", "f16")
_LETTERS = {"gate": "IH", "up": "IH", "down": "HI", "gate_bias": "I", "up_bias": "I"}  # else H
_PARTS = {
    "gated": ("gate", "up", "down"),
    "mlp": ("up", "down"),
    "linear": ("down",),
    "constant": ("constant",),
}
_TELLING = {
    "gated": ("gate", "gate_bias"),
    "mlp": ("up", "up_bias"),
    "linear": ("down",),
    "constant": ("constant",),
}


class _Place(NamedTuple):
    """One part of all experts, with what it measures: [E, outputs, inputs], or of vectors [E, outputs, 1]."""

    part: Part
    given: str  # the argument that it is in
    shape: tuple[int, int, int]


class ExpertTensors:
    """Parts of experts in the caller's memory."""

    _places: dict[str, _Place]
    _may_be_written = False  # whether it is known that all arrays may

    def _describe(
        self, given: Mapping[str, Any], *, transposed: bool, interleaved: bool, write: bool = False
    ) -> None:
        """Take note of where each part is, and of whose memory that is."""
        # Lists of the caller's may lose their arrays, which the library reads until these go.
        self._keep = {name: list(value) if _is_listed(value) else value for name, value in given.items()}
        turned, in_turn = check.flag("transposed", transposed), check.flag("interleaved", interleaved)
        found = [
            place
            for name, value in self._keep.items()
            if value is not None
            for place in _places(name, value, bool(turned), bool(in_turn), write)
        ]
        self._may_be_written = write
        self._places = {}
        for place in found:
            other = self._places.setdefault(place.part.name, place)
            if other is not place:
                raise InvalidArgumentError(
                    f"{other.given}, {place.given}: both have the experts' {place.part.name}; give one"
                )
        self._sizes = _measured(self._places)
        self._list()

    def _list(self) -> None:
        self._described = Parts([place.part for place in self._places.values()])

    @property
    def _parts(self) -> Parts:
        """Return where gradients go: weights may stand for them, but not in arrays that are only read."""
        if not self._may_be_written:
            for name, value in self._keep.items():
                if value is not None:
                    _memories(name, value, write=True)
            self._may_be_written = True
        return self._described


@keywords
class ExpertGradients(ExpertTensors):
    """Where gradients of experts' weights go, in the caller's memory: a description, which copies nothing.

    Parts that are left out are not wanted, and not computed.  Types and strides are their own, whatever those
    of the weights are; no two elements are in one place.

    Parameters
    ----------
    gate_up, gate, up, down, gate_up_bias, gate_bias, up_bias, down_bias, constant, transposed, interleaved
        As of :class:`ExpertWeights`.

    Raises
    ------
    InvalidArgumentError
        Shapes do not belong together, or an array may not be written to.

    Examples
    --------
    >>> import libmoe, numpy
    >>> libmoe.ExpertGradients(down=numpy.empty((4, 16, 32), numpy.float32))  # of the others none
    ExpertGradients(down)
    """

    def __init__(
        self,
        *,
        gate_up: Array | None = None,
        gate: Array | None = None,
        up: Array | None = None,
        down: Array | None = None,
        gate_up_bias: Array | None = None,
        gate_bias: Array | None = None,
        up_bias: Array | None = None,
        down_bias: Array | None = None,
        constant: Array | None = None,
        transposed: bool = False,
        interleaved: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _ARGUMENTS}
        self._describe(given, transposed=transposed, interleaved=interleaved, write=True)

    def __repr__(self) -> str:
        """Name the parts that are wanted."""
        return f"ExpertGradients({', '.join(self._places)})"


@keywords
class ExpertWeights(ExpertTensors):
    """Experts' weights in the caller's memory: a description, which copies nothing.

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
        Shapes or types do not belong together, or a part is missing that such experts have.

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
        gate_up: Array | None = None,
        gate: Array | None = None,
        up: Array | None = None,
        down: Array | None = None,
        gate_up_bias: Array | None = None,
        gate_bias: Array | None = None,
        up_bias: Array | None = None,
        down_bias: Array | None = None,
        constant: Array | None = None,
        transposed: bool = False,
        interleaved: bool = False,
        kind: words.ExpertKind | None = None,
        n_experts: int | None = None,
        hidden_size: int | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _ARGUMENTS}
        self._describe(given, transposed=transposed, interleaved=interleaved)
        if kind is not None:
            check.choice("kind", kind, abi.EXPERT_KIND)
        if kind is None and not self._places:
            raise InvalidArgumentError(
                "gate_up, down: expected the experts' weights; give the parts they have"
            )
        self.kind = kind or self._told_kind()
        sizes, empty = self._sizes, self.kind in ("identity", "zero")
        if empty and (n_experts is None or hidden_size is None):
            raise InvalidArgumentError(
                f"n_experts, hidden_size: {self.kind} experts have no weights that say them; give both"
            )
        # Of several ranks one may have no experts.
        self.n_experts = sizes.n_experts if self._places else check.count("n_experts", n_experts or 0)
        self.hidden_size = sizes.hidden_size or check.count("hidden_size", hidden_size or 0)
        self.intermediate_size = sizes.intermediate_size if self.kind in ("gated", "mlp") else 0
        self._require_whole()
        matrices = self._matrices()
        self.dtype = matrices[0].part.dtype if matrices else "f32"
        self._configs: dict[Options, Any] = {}

    def _told_kind(self) -> str:
        """Return what experts with such parts are."""
        return next(
            (kind for kind, telling in _TELLING.items() if any(map(self._places.__contains__, telling))),
            "constant",
        )

    def _matrices(self) -> list[_Place]:
        return [place for name, place in self._places.items() if _LETTERS.get(name, "H")[1:]]

    def _require_whole(self) -> None:
        """Refuse what such experts lack, or have not, and matrices of several types."""
        wanted = _PARTS.get(self.kind, ())
        for name in wanted:
            if name not in self._places:
                parts = f"{', '.join(wanted[:-1])} and {wanted[-1]}" if wanted[1:] else wanted[0]
                fused = (
                    ", or gate_up= for gate and up in one array"
                    if self.kind == "gated" and name != "down"
                    else ""
                )
                raise InvalidArgumentError(
                    f"{name}: is missing, {self.kind} experts have {parts}; give {name}={fused}"
                )
        known = {*wanted, *(f"{name}_bias" for name in wanted if name != "constant")}
        for name, place in self._places.items():
            if name not in known:
                raise InvalidArgumentError(
                    f"{place.given}: {self.kind} experts have no {name}; leave it out, or give another kind"
                )
        matrices = self._matrices()
        if self.kind == "linear" and matrices[0].shape[1] != matrices[0].shape[2]:
            raise InvalidArgumentError(
                f"down: expected [E, H, H] of linear experts, got {shown(matrices[0].shape)}; "
                "experts with inner features have up too"
            )
        for place in matrices[1:]:
            first = matrices[0]
            if place.part.dtype != first.part.dtype:
                raise InvalidArgumentError(
                    f"{place.given}: is {place.part.dtype}, but {first.given} is {first.part.dtype}; convert "
                    "one of them, all matrices of the experts have one type"
                )

    def _config(self, options: Options) -> Any:
        """Return the struct that the library reads."""
        try:
            return self._configs[options]
        except (KeyError, TypeError):  # a list is no number, as the check of it says
            sizes = Sizes(self.n_experts, self.hidden_size, self.intermediate_size)
            found = config(self.kind, sizes, options, self._described)
        self._configs[options] = found
        return found

    def without_matrices(self) -> ExpertWeights:
        """Return the same without its matrices, which packed weights then stand for: their memory may go."""
        own = ExpertWeights.__new__(ExpertWeights)
        own.__dict__.update(self.__dict__)
        own._places = {name: place for name, place in self._places.items() if "bias" in name}
        own._keep = {name: value for name, value in self._keep.items() if "bias" in name}
        own._configs = {}
        own._list()
        return own

    def __repr__(self) -> str:
        """One line: how many experts of what kind, and their sizes."""
        sizes = f"hidden_size={self.hidden_size}"
        if self.intermediate_size:
            sizes += f", intermediate_size={self.intermediate_size}"
        return f"ExpertWeights({self.n_experts} {self.kind} experts, {sizes}, {self.dtype})"


_ARGUMENTS = (
    "gate_up", "gate", "up", "down", "gate_up_bias", "gate_bias", "up_bias", "down_bias", "constant",
)  # fmt: skip


def _is_listed(value: Array) -> bool:
    return isinstance(value, (list, tuple)) and not isinstance(value, Memory)


def _places(name: str, value: Array, transposed: bool, interleaved: bool, write: bool) -> list[_Place]:
    """Return the parts in one argument."""
    is_listed = _is_listed(value)
    memories = _memories(name, value, write=write)
    shape, steps = memories[0].shape, memories[0].steps
    if is_listed:
        shape, steps = (len(memories), *shape), (0, *steps)
    rank = 2 if name.endswith("bias") or name == "constant" else 3
    if len(shape) != rank:
        expected = rank - 1 if is_listed else rank
        raise InvalidArgumentError(
            f"{name}: expected {expected} axes{' of each expert' if is_listed else ''}, got shape "
            f"{shown(memories[0].shape)}"
        )
    out, into = (2, 1) if transposed else (1, 2)
    outputs, output = (shape[1], steps[1]) if rank == 2 else (shape[out], steps[out])
    inputs, step = (1, 0) if rank == 2 else (shape[into], steps[into])
    if name.startswith("gate_up") and outputs % 2:
        raise InvalidArgumentError(f"{name}: has {outputs} outputs, which are not gate and up alike")
    made = []
    for piece in pieces(name, outputs, output, interleaved=interleaved):
        begin = piece.offset * memories[0].itemsize
        addresses = [each.address + begin for each in memories]
        part = Part(piece.part, memories[0].dtype, addresses, is_listed, (steps[0], piece.output, step))
        made.append(_Place(part, name, (shape[0], piece.outputs, inputs)))
    return made


def _memories(name: str, value: Array, *, write: bool) -> list[Memory]:
    """Return where the arrays of one argument are, which are alike."""
    if not _is_listed(value):
        return [memory(name, value, write=write, dtypes=_DTYPES)]
    found = [memory(f"{name}[{e}]", each, write=write, dtypes=_DTYPES) for e, each in enumerate(value)]
    if not found:
        raise InvalidArgumentError(f"{name}: expected an array for each expert, got an empty list")
    first = found[0]
    for e, each in enumerate(found):
        for what, has, wanted, cure in (
            ("type", each.dtype, first.dtype, "convert one of them"),
            ("shape", shown(each.shape), shown(first.shape), "give every expert's array that shape"),
            ("strides", shown(each.steps), shown(first.steps), "make all contiguous, or none"),
        ):
            if has != wanted:
                raise InvalidArgumentError(f"{name}[{e}]: has {what} {has}, but {name}[0] {wanted}; {cure}")
    return found


def _measured(places: Mapping[str, _Place]) -> Sizes:
    """Return E, H and I, which all parts agree on; 0 of what none of them says."""
    sizes: dict[str, dict[int, str]] = {"E": {}, "H": {}, "I": {}}
    for name, place in places.items():
        for letter, size in zip("E" + _LETTERS.get(name, "H"), place.shape):
            sizes[letter].setdefault(size, name)
    for letter, found in sizes.items():
        if len(found) > 1:
            (one, first), (other, second) = list(found.items())[:2]
            raise InvalidArgumentError(
                f"{second}: its {letter} is {other}, but that of {first} is {one}; "
                "matrices are [E, outputs, inputs], with transposed=True [E, inputs, outputs]"
            )
    return Sizes(*(next(iter(sizes[letter]), 0) for letter in "EHI"))
