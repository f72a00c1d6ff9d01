"""Parameters: a named array with its gradient, of a layer or of the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Union

import numpy as np

from . import _abi, _check
from ._check import Array, FloatArray
from .errors import BadStateError


class Parameter:
    """An array and its gradient, as the optimisers take them.

    Parameters
    ----------
    data : ndarray of float32, or of bfloat16 as uint16
        The values, of 1 to 4 dimensions; used without a copy.  Of bfloat16 the optimisers keep a float32
        copy, so that steps smaller than bfloat16 resolves add up.
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

    def __init__(self, data: Array, grad: FloatArray | None = None, name: str = "") -> None:
        dtype = "bf16" if isinstance(data, np.ndarray) and _check.dtype_of(data) == "bf16" else "f32"
        self._data: Array | None = _check.array("data", data, write=True, dtype=dtype)
        if not 1 <= data.ndim <= 4:
            raise ValueError(f"data: expected 1 to 4 dimensions, got {data.ndim}; use data.reshape")
        if grad is None:
            grad = np.zeros(data.shape, np.float32)
        self._grad: FloatArray | None = _check.array("grad", grad, data.shape, write=True)
        self._name = name
        self._trainable = True

    @classmethod
    def _of_layer(
        cls, name: str, data: Array | None, grad: FloatArray | None, *, trainable: bool
    ) -> Parameter:
        """Parameter of a layer, which may have no gradient, or no memory for it or for the values."""
        parameter = cls.__new__(cls)
        parameter._name, parameter._data, parameter._grad = name, data, grad
        parameter._trainable = trainable
        return parameter

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
            It is offloaded, or was not allocated and is not bound.
        """
        if self._data is None:
            raise BadStateError(
                f"{self._name}: has no memory; it is offloaded, or to be bound with Layer.bind"
            )
        return self._data

    @property
    def grad(self) -> FloatArray:
        """The gradient itself, to which backward adds.

        Raises
        ------
        BadStateError
            It is a parameter of an inference_only layer, which has none, or has no memory, see the layer's
            ``unallocated``, and has not been bound.
        """
        if not self._trainable:
            raise BadStateError(f"{self._name}: an inference_only layer has no gradients")
        if self._grad is None:
            raise BadStateError(
                f"{self._name}: its gradient has no memory (unallocated); bind some with Layer.bind"
            )
        return self._grad


Parameters = Union[Iterable[Parameter], Mapping[str, Parameter]]
"""A list of parameters, or ``layer.parameters`` as it is."""


def tensors(parameters: Parameters, *, gradients: bool = True) -> tuple[list[Parameter], Any]:
    """Return the parameters as a list, which keeps their memory alive, and as an array of ``moe_tensor``.

    Without ``gradients`` these may have no memory, and are NULL then.
    """
    listed = list(parameters.values() if isinstance(parameters, Mapping) else parameters)
    described = (_abi.moe_tensor * len(listed))()
    for index, parameter in enumerate(listed):
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"parameters[{index}]: expected a libmoe.Parameter, got {type(parameter).__name__}; "
                "use libmoe.Parameter(array)"
            )
        described[index] = _abi.moe_tensor(
            name=parameter.name.encode(),
            dtype=_abi.DTYPE[_check.dtype_of(parameter.data)],
            rank=parameter.data.ndim,
            shape=parameter.data.shape,
            data=parameter.data.ctypes.data,
            grad=_gradient(parameter, needed=gradients),
        )
    return listed, described


def _gradient(parameter: Parameter, *, needed: bool) -> int | None:
    if not needed and parameter._trainable and parameter._grad is None:
        return None
    return parameter.grad.ctypes.data
