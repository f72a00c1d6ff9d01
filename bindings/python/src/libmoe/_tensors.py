"""The parameters of a layer or a model: read, written and bound in place."""

from __future__ import annotations

import copy
import ctypes
import inspect
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ._keywords import keywords
from ._native import abi, check
from ._native.check import Array, FloatArray
from ._native.foreign import TYPES
from ._native.library import Handle, Native, lib
from ._repr import named
from .context import Context, default_context
from .errors import ArgumentTypeError, BadStateError, InvalidArgumentError
from .parameter import Parameter

Coefficients = dict[int, dict[int, float]]  # number of a layer to number of a loss to its coefficient


class _View:
    """The library's memory as numpy takes it: arrays made from it keep it, and it keeps the handle."""

    def __init__(self, handle: Handle, address: int, shape: tuple[int, ...], dtype: type) -> None:
        self._handle = handle
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(dtype).str,
            "shape": shape,
            "data": (address, False),
        }


class _Memory:
    """Where the parameters of a layer or a model are; a model's layers share that of the model.

    Attributes
    ----------
    binds : int
        How often memory has been bound.
    views : mapping
        By address: views of the library's own memory that are in use.
    bound : mapping
        By address: arrays of the caller's.
    """

    def __init__(self) -> None:
        self.binds = 0
        self.views: weakref.WeakValueDictionary[int, _View] = weakref.WeakValueDictionary()
        self.bound: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()


def _memory(handle: Handle) -> _Memory:
    memory: _Memory = handle.owner.keep.setdefault("memory", _Memory())
    return memory


class _Place:
    """A parameter by its number; see :class:`libmoe.parameter.Source`."""

    def __init__(self, handle: Handle, function: Any, index: int) -> None:
        self._handle, self._function, self._index = handle, function, index

    @property
    def binds(self) -> int:
        return _memory(self._handle).binds

    def is_buffer(self) -> bool:
        return bool(self._tensor().buffer)

    def _tensor(self) -> abi.moe_tensor:
        tensor = abi.moe_tensor()
        self._function(self._handle, self._index, ctypes.byref(tensor))
        return tensor

    def read(self) -> tuple[str, Array | None, FloatArray | None, bool]:
        tensor = self._tensor()
        shape = tuple(tensor.shape[: tensor.rank])
        data = self._array(tensor.data, shape, TYPES[check.word_of(tensor.dtype)].types[0])
        grad = self._array(tensor.grad, shape, np.float32)
        return tensor.name.decode(), data, grad, bool(tensor.frozen)

    def _array(self, address: int | None, shape: tuple[int, ...], kind: Any) -> Array | None:
        """Return what the caller bound, else an array over the library's memory; None where there is none."""
        if not address:
            return None
        memory = _memory(self._handle)
        bound = memory.bound.get(address)
        if bound is not None and bound.shape == shape and bound.itemsize == np.dtype(kind).itemsize:
            return bound
        view = memory.views.get(address)
        if view is None:
            view = memory.views[address] = _View(self._handle, address, shape, kind)
        return np.asarray(view)


class _Named(dict[str, Parameter]):
    """Parameters by name: a list of what is there, in which an array would replace nothing."""

    def __setitem__(self, name: str, value: Parameter) -> None:
        if not isinstance(value, Parameter):
            raise ArgumentTypeError(
                f"parameters[{name!r}]: an array put here would not reach the library; "
                f"use parameters[{name!r}].data[...] = values, or bind({name!r}, values)"
            )
        super().__setitem__(name, value)


@keywords
class Tensors(Native):
    """What :class:`Layer` and :class:`Model` have of parameters."""

    _prefix: ClassVar[str]  # of the library's functions
    _kind: type  # of the package; a class that a user derived may be made with other arguments
    _made_with: dict[str, Any]  # keyword arguments of _kind, all but the context
    _context: Context
    _own: ClassVar[frozenset[str]] = frozenset(
        (
            "_open_handle _trainable _config _kind _made_with _context _io_dtype _losses _moe _layer_kinds "
            "_own_tape"
        ).split()
    )  # all that objects of the package have; a user's may have more, which goes along

    def __init__(self, handle: Handle, *, trainable: bool = True) -> None:
        self._open_handle = handle
        self._trainable = trainable

    def _remember(self, kind: type, made_with: dict[str, Any], context: Context | None) -> None:
        """Keep what pickle and repr need: the arguments of the class's ``__init__`` by name."""
        names = inspect.signature(kind).parameters
        self._kind = kind
        self._made_with = {name: _kept(made_with[name]) for name in names if name != "context"}
        self._context = context or default_context()

    def _told(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(self._kind).parameters.items()}
        made = {name: _shortened(name, value) for name, value in self._made_with.items()}
        return named({k: v for k, v in made.items() if not _same(v, defaults.get(k))})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle what it was made with and the values; gradients and prepared copies are not kept."""
        return _made_again, self._to_make_again(None), self._users() or None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return another one with the same values, in the same context; without gradients, as pickle."""
        made = _made_again(*self._to_make_again(self._context))
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(self._users(), memo))
        return made

    def _users(self) -> dict[str, Any]:
        """Return the attributes that a class has which a user derived."""
        return {name: value for name, value in vars(self).items() if name not in self._own}

    def _to_make_again(
        self, context: Context | None
    ) -> tuple[type, type, dict[str, Any], dict[str, Array], Coefficients, Context | None]:
        values = self._own_values()
        return type(self), self._kind, self._made_with, values, self._coefficients(), context

    def _coefficients(self) -> Coefficients:
        """Return those of losses that were set since it was made, by layer and term."""
        raise NotImplementedError

    def _set_coefficients(self, coefficients: Coefficients) -> None:
        raise NotImplementedError

    def _own_values(self) -> dict[str, Array]:
        if self._open_handle is None:
            raise ArgumentTypeError(f"this {type(self).__name__} is closed, and cannot be pickled or copied")
        elsewhere = "unallocated='expert_weights'"
        try:
            of_model = self._made_with.get("moe") or {}
            unallocated = self._made_with.get("unallocated") or of_model.get("unallocated") or ()
            if "expert_weights" not in unallocated:
                return self.state_dict()
        except BadStateError as error:
            elsewhere = str(error)
        raise ArgumentTypeError(
            f"this libmoe.{self._kind.__name__} cannot be pickled or copied: its weights are in files or "
            f"memory of their own ({elsewhere}); make one anew, and bind or offload it there"
        )

    def _function(self, name: str) -> Any:
        return getattr(lib, f"{self._prefix}_{name}")

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by name, their arrays being the owner's memory itself."""
        return _Named(self._tensors(buffers=False))

    @property
    def buffers(self) -> dict[str, NDArray[Any]]:
        """What belongs to the state and is not trained by gradients, by name, likewise."""
        return {name: tensor.data for name, tensor in self._tensors(buffers=True).items()}

    def _tensors(self, *, buffers: bool | None = None) -> dict[str, Parameter]:
        """Return the buffers, or what is none, or both, in the library's order."""
        count = ctypes.c_int64()
        self._function("parameter_count")(self._handle, ctypes.byref(count))
        read = self._function("parameter")
        found = (_Place(self._handle, read, index) for index in range(count.value))
        wanted = (place for place in found if buffers in (None, place.is_buffer()))
        listed = [Parameter._of_layer(place, trainable=self._trainable) for place in wanted]
        for parameter in listed:
            parameter._is_spread = self._spreads(parameter.name)
        return {parameter.name: parameter for parameter in listed}

    def _spreads(self, name: str) -> bool:
        """Return whether a parameter is of experts that several ranks have."""
        return self._has_spread_experts and name.startswith("experts.")

    @property
    def _has_spread_experts(self) -> bool:
        """Whether each rank has experts of its own, or slices of them."""
        return self._handle.keep.get("communicator") is not None and self._handle.keep.get("is_spread", True)

    def _tensor(self, index: int) -> abi.moe_tensor:
        tensor = abi.moe_tensor()
        self._function("parameter")(self._handle, index, ctypes.byref(tensor))
        return tensor

    def bind(self, name: str, data: Array, grad: FloatArray | None = None) -> None:
        """Use the caller's arrays as a parameter, without a copy, with the values they have.

        Arrays that were taken from ``parameters`` before must be gone, and optimisers made from them too: the
        memory behind them is freed.  Where memory of the caller's is replaced, nothing is freed, and
        optimisers go along: each step looks where the parameter is.

        Parameters
        ----------
        name : str
            One of ``parameters`` or ``buffers``.
        data : ndarray of the parameter's type and shape
            Its values from now on; its owner holds the array.
        grad : ndarray of float32, of the parameter's shape, optional
            Its gradient from now on; where it is not given, the gradient stays where it is.  A parameter that
            was frozen is trained again.

        Raises
        ------
        TypeError, ValueError
            There is no such parameter, or an array has the wrong type, shape or layout.
        BadStateError
            Arrays that were taken from ``parameters`` are still in use, or the parameter is offloaded.
        """
        if not isinstance(name, str):
            raise ArgumentTypeError(f"name: expected a str, got {type(name).__name__}; use one of parameters")
        index = ctypes.c_int64()
        self._function("find_parameter")(self._handle, name.encode(), ctypes.byref(index))
        tensor = self._tensor(index.value)
        name = tensor.name.decode()  # C compared up to the first NUL only
        shape = tuple(tensor.shape[: tensor.rank])
        dtype = check.word_of(tensor.dtype)
        arrays = {(name, "data"): check.array("data", data, shape, write=True, dtype=dtype)}
        if grad is not None:
            arrays[name, "grad"] = check.array("grad", grad, shape, write=True)
        memory = _memory(self._handle)
        # What is there already stays: the values, where a frozen parameter is given a gradient.
        arrays = {key: a for key, a in arrays.items() if a.ctypes.data != getattr(tensor, key[1])}
        for _, part in arrays:
            if getattr(tensor, part) in memory.views:
                raise BadStateError(
                    f"{name}: its {part} is still in use by an array or an optimiser; delete it before bind, "
                    "and make the optimiser afterwards"
                )
        self._function("bind_parameter")(
            self._handle, index, data.ctypes.data, None if grad is None else grad.ctypes.data
        )
        self._handle.keep.update(arrays)
        memory.bound.update({array.ctypes.data: array for array in arrays.values()})
        memory.binds += 1

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scale the gradients so that their norm, over all together, is max_norm at most; return it.

        The same as :func:`libmoe.clip_grad_norm` of all parameters; over ranks, where every rank calls it,
        the norm is that of the whole layer or model.

        Parameters
        ----------
        max_norm : float
            Above 0; infinity only measures.

        Raises
        ------
        InvalidArgumentError
            max_norm is not above 0.
        NotFiniteError
            A gradient is not finite; nothing is scaled.
        BadStateError
            There are no gradients, or it is closed.
        """
        norm = ctypes.c_double()
        most = check.number("max_norm", max_norm)
        self._function("clip_grad_norm")(self._handle, most, ctypes.byref(norm))
        return norm.value

    def zero_grad(self) -> None:
        """Set every gradient to 0.

        Raises
        ------
        BadStateError
            It is inference_only, or closed.
        """
        self._function("zero_grad")(self._handle)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters by name, for ``numpy.savez`` for instance."""
        return {name: parameter.data.copy() for name, parameter in self._tensors().items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy values into the parameters; all names and shapes must agree, else nothing changes.

        Parameters
        ----------
        state : mapping of str to ndarray
            As :meth:`state_dict` gives it.

        Raises
        ------
        TypeError, ValueError
            A name is missing or unknown, or an array has the wrong type, shape or layout.
        """
        check.mapping("state", state, "what state_dict gave")
        parameters = self._tensors()
        if parameters.keys() != state.keys():
            missing = sorted(parameters.keys() - state.keys())
            unknown = sorted(state.keys() - parameters.keys())
            raise InvalidArgumentError(f"state: missing names {missing}, unknown names {unknown}")
        for name, parameter in parameters.items():
            dtype = check.dtype_of(parameter.data)
            check.array(f"state[{name!r}]", state[name], parameter.data.shape, dtype=dtype)
        for name, parameter in parameters.items():
            parameter.data[...] = state[name].view(parameter.data.dtype)


def _made_again(
    kind: Any,
    base: Any,
    made_with: dict[str, Any],
    values: dict[str, Array],
    coefficients: Coefficients,
    context: Context | None,
) -> Any:
    """Make what was pickled or is copied: an object of ``kind``, by the arguments of its ``base``."""
    made = kind.__new__(kind)
    base.__init__(made, **made_with, context=context)
    Tensors.load_state_dict(made, values)
    made._set_coefficients(coefficients)
    return made


def _kept(value: Any) -> Any:
    """Return a copy of what the caller may change afterwards."""
    if isinstance(value, Mapping):
        return {name: _kept(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_kept(each) for each in value])
    return value.copy() if isinstance(value, np.ndarray) else value


def _shortened(name: str, value: Any) -> Any:
    """Return an argument without what goes without saying: defaults of the ffn, what is 0 in a list."""
    if name == "moe" and isinstance(value, dict):
        from .layer import Layer  # which needs this module

        known = inspect.signature(Layer).parameters
        defaults = {each: known[each].default for each in value if each in known}
        return {k: v for k, v in value.items() if not _same(v, defaults.get(k))}
    if name in ("layers", "rotary_tables") and isinstance(value, list):
        return [{k: v for k, v in each.items() if isinstance(v, np.ndarray) or v} for each in value]
    return value


def _same(value: Any, default: Any) -> bool:
    return value is default or (
        type(value) is type(default) and not isinstance(value, np.ndarray) and value == default
    )
