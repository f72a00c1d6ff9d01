"""Parameters: a named array with its gradient, of a layer or of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Union

import numpy as np

from ._keywords import keywords
from ._native import abi, check
from ._native.check import Array, FloatArray
from ._native.foreign import TYPES
from ._repr import described
from .errors import ArgumentTypeError, BadStateError, InvalidArgumentError


class Source(Protocol):
    """Where a layer's parameter is: other memory after each ``bind``."""

    @property
    def binds(self) -> int:
        """How often memory has been bound so far."""

    def read(self) -> tuple[str, Array | None, FloatArray | None, bool]:
        """Return name, values and gradient as they are now, and whether it is frozen."""


@keywords
class Parameter:
    """An array and its gradient, as the optimisers take them.

    Parameters
    ----------
    data : ndarray of float32, or of another type of weights; bfloat16 as uint16
        The values, of 1 to 4 dimensions; used without a copy.  Of other types than float32 the optimisers
        keep a float32 copy, so that steps smaller than the type resolves add up.
    grad : ndarray of float32, optional
        Their gradient, of the same shape; used without a copy.  Zeros where it is not given.
    name : str
        For messages.

    Raises
    ------
    TypeError, ValueError
        An array has the wrong type, shape or layout.

    Examples
    --------
    >>> import libmoe, numpy
    >>> layer = libmoe.Layer(64, 256, n_experts=8, top_k=2)
    >>> embedding = libmoe.Parameter(numpy.zeros((256, 64), numpy.float32), name="embedding")
    >>> optimizer = libmoe.AdamW([*layer.parameters.values(), embedding])
    """

    _is_spread = False  # whether it is of experts that several ranks have

    def __init__(self, data: Array, grad: FloatArray | None = None, name: str = "") -> None:
        self._data: Array | None = check.array("data", data, write=True, dtype=check.dtype_of(data))
        if not 1 <= data.ndim <= 4:
            shape = check.of_rank(data.shape, 4 if data.ndim else 1)
            raise InvalidArgumentError(
                f"data: expected 1 to 4 dimensions, got {data.ndim}; use data.reshape{shape}"
            )
        if grad is None:
            grad = np.zeros(data.shape, np.float32)
        self._grad: FloatArray | None = check.array("grad", grad, data.shape, write=True)
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name: expected a str, got {type(name).__name__}")
        self._name = name
        self._trainable = True
        self._frozen = False
        self._source: Source | None = None
        self._binds = 0

    @classmethod
    def _of_layer(cls, source: Source, *, trainable: bool) -> Parameter:
        """Parameter of a layer, which may have no gradient, or no memory for it or for the values."""
        parameter = cls.__new__(cls)
        parameter._source, parameter._trainable = source, trainable
        parameter._read(source)
        return parameter

    def _read(self, source: Source) -> None:
        self._binds = source.binds
        self._name, self._data, self._grad, self._frozen = source.read()

    @property
    def binds(self) -> int:
        """How often memory had been bound in the layer when this parameter's was read last: now."""
        self._now()
        return self._binds

    def __repr__(self) -> str:
        """Name, type and shape."""
        data, _ = self._now()
        kind = "no memory"
        if data is not None:
            kind = f"{TYPES[check.dtype_of(data)].name} {list(data.shape)}"
        return described(self, f"{self._name!r}, {kind}")

    def _now(self) -> tuple[Array | None, FloatArray | None]:
        """Return values and gradient where they are now."""
        if self._source is not None and self._source.binds != self._binds:
            self._read(self._source)
        return self._data, self._grad

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: a copy would be another memory than the one that a layer and an optimiser use."""
        raise ArgumentTypeError(
            f"the libmoe.Parameter {self._name!r} cannot be pickled or copied: its memory is shared with "
            "what uses it; pickle parameter.data, or the layer, or layer.state_dict()"
        )

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def data(self) -> Array:
        """The values themselves: what is written here, the layer uses.

        Raises
        ------
        BadStateError
            It is offloaded, was kept packed alone, or was not allocated and is not bound.
        """
        data, _ = self._now()
        if data is None:
            raise BadStateError(
                f"{self._name}: has no memory; it is offloaded, packed alone, or to be bound with Layer.bind"
            )
        return data

    @property
    def frozen(self) -> bool:
        """Whether nothing trains it, and optimisers leave it out.

        :meth:`Model.freeze` has given up its gradient, or it is packed in few bits, as long as it is.
        """
        self._now()
        return self._frozen

    @property
    def grad(self) -> FloatArray:
        """The gradient itself, to which backward adds.

        Raises
        ------
        BadStateError
            It is a parameter of an inference_only layer, which has none, or is frozen, or has no memory, see
            the layer's ``unallocated``, and has not been bound.
        """
        if not self._trainable:
            raise BadStateError(
                f"{self._name}: an inference_only layer has no gradients; make it, or the model, without that"
            )
        _, grad = self._now()
        if self._frozen:
            raise BadStateError(
                f"{self._name}: is frozen, and has no gradient; to train it, give it one with Model.bind, "
                "or, where it is packed in few bits, prepare('none')"
            )
        if grad is None:
            raise BadStateError(
                f"{self._name}: its gradient has no memory (unallocated); give backward the optimizer, which "
                "steps it, or bind some memory with bind"
            )
        return grad


Parameters = Union[Iterable[Parameter], Mapping[str, Parameter]]
"""A list of parameters, or ``layer.parameters`` as it is."""


def members(parameters: Parameters, called: str = "parameters") -> list[Parameter]:
    """Return the parameters as a list, which keeps their memory alive."""
    if not isinstance(parameters, Mapping) and hasattr(parameters, "parameters"):
        raise ArgumentTypeError(
            f"{called}: expected a list of libmoe.Parameter, got a {type(parameters).__name__}; "
            "use its .parameters"
        )
    named: Any = parameters
    if not isinstance(parameters, Mapping):
        named = dict(enumerate(check.listed(called, parameters, "a list: [parameter]")))
    for name, parameter in named.items():
        if not isinstance(parameter, Parameter):
            # Values by name, or names alone, are of a layer that has the parameters.
            has_array = isinstance(name, int) and not isinstance(parameter, str)
            raise ArgumentTypeError(
                f"{called}[{name!r}]: expected a libmoe.Parameter, got {type(parameter).__name__}; use "
                + ("libmoe.Parameter(array)" if has_array else "layer.parameters, or model.parameters")
            )
    return list(named.values())


def trained(parameters: Parameters, called: str = "parameters") -> list[Parameter]:
    """Return those of the parameters that are not frozen."""
    return [parameter for parameter in members(parameters, called) if not parameter.frozen]


def tensors(parameters: Parameters, *, gradients: bool = True) -> tuple[list[Parameter], Any]:
    """Return the parameters as a list, which keeps their memory alive, and as an array of ``moe_tensor``.

    Without ``gradients`` these may have no memory, and are NULL then.
    """
    listed = members(parameters)
    described = (abi.moe_tensor * len(listed))()
    for index, parameter in enumerate(listed):
        described[index] = tensor(parameter, gradients=gradients)
    return listed, described


def tensor(parameter: Parameter, *, gradients: bool = True) -> abi.moe_tensor:
    """Return one parameter as the library reads it."""
    return abi.moe_tensor(
        name=parameter.name.encode(),
        dtype=abi.DTYPE[check.dtype_of(parameter.data)],
        rank=parameter.data.ndim,
        shape=parameter.data.shape,
        data=parameter.data.ctypes.data,
        grad=_gradient(parameter, needed=gradients),
        frozen=parameter.frozen,
    )


def require_apart(parameters: list[Parameter], *, values: bool) -> None:
    """Refuse memory that is given twice: it would be stepped, or counted, twice.

    Parameters
    ----------
    parameters : list of Parameter
    values : bool
        Whether the values count too, or the gradients alone.
    """
    parts = [
        (array.ctypes.data, array.nbytes, f"parameters[{index}], {parameter.name!r}", part)
        for index, parameter in enumerate(parameters)
        for part, array in zip(("data", "grad"), parameter._now())
        if array is not None and array.nbytes and (values or part == "grad")
    ]
    parts.sort()
    end, before = 0, ("", "")
    for start, size, name, part in parts:
        if start < end:
            both = f"{before[0]}: {before[1]}", f"{name}: {part}"
            raise InvalidArgumentError(
                f"{both[0]}, and {both[1]}, are the same memory in whole or in part, which would count "
                "twice; give each array once"
            )
        end, before = start + size, (name, part)


def _gradient(parameter: Parameter, *, needed: bool) -> int | None:
    if not needed and parameter._trainable and parameter._now()[1] is None:
        return None
    return parameter.grad.ctypes.data
