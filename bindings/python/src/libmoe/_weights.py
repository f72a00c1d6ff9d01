"""The parameters of a layer or a model: read, written, bound, saved and loaded in place."""

from __future__ import annotations

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
from .checkpoint import Checkpoint, Path, encoded
from .context import Context, default_context
from .errors import ArgumentTypeError, BadStateError, InvalidArgumentError
from .memory import OffloadStatistics
from .parameter import Parameter
from .words import LayerSaveDType, Layout, Prepared

# Parameters without a gradient: of a layer, or of a model's ffn, whose name has them at its end.
_BUFFERS = (
    "router.selection_bias",
    "router.norm.running_mean",
    "router.norm.running_var",
    "router.active_experts",
)


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

    def read(self) -> tuple[str, Array | None, FloatArray | None]:
        tensor = abi.moe_tensor()
        self._function(self._handle, self._index, ctypes.byref(tensor))
        shape = tuple(tensor.shape[: tensor.rank])
        data = self._array(tensor.data, shape, TYPES[check.word_of(tensor.dtype)].types[0])
        grad = self._array(tensor.grad, shape, np.float32)
        return tensor.name.decode(), data, grad

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
    _made_with: dict[str, Any]  # keyword arguments, all but the context
    _context: Context

    def __init__(self, handle: Handle, *, trainable: bool = True) -> None:
        self._open_handle = handle
        self._trainable = trainable

    def _remember(self, kind: type, made_with: dict[str, Any], context: Context | None) -> None:
        """Keep what pickle and repr need: the arguments of the class's ``__init__`` by name."""
        names = inspect.signature(kind).parameters
        self._made_with = {name: made_with[name] for name in names if name != "context"}
        self._context = context or default_context()

    def _told(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        return named({k: v for k, v in self._made_with.items() if not _same(v, defaults.get(k))})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle what it was made with and the values; gradients and prepared copies are not kept."""
        return _made_again, (type(self), self._made_with, self._own_values(), None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return another one with the same values, in the same context; without gradients, as pickle."""
        return _made_again(type(self), self._made_with, self._own_values(), self._context)

    def _own_values(self) -> dict[str, Array]:
        if self._open_handle is None:
            raise ArgumentTypeError(f"this {type(self).__name__} is closed, and cannot be pickled or copied")
        try:
            return self.state_dict()
        except BadStateError as error:
            raise ArgumentTypeError(
                f"this libmoe.{type(self).__name__} cannot be pickled or copied: its weights are in files or "
                f"memory of their own ({error}); make one anew, and bind or offload it there"
            ) from None

    def _function(self, name: str) -> Any:
        return getattr(lib, f"{self._prefix}_{name}")

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by name, their arrays being the owner's memory itself."""
        found = self._tensors().items()
        return _Named((name, tensor) for name, tensor in found if not name.endswith(_BUFFERS))

    @property
    def buffers(self) -> dict[str, NDArray[Any]]:
        """What belongs to the state and is not trained by gradients, by name, likewise."""
        return {name: tensor.data for name, tensor in self._tensors().items() if name.endswith(_BUFFERS)}

    def _tensors(self) -> dict[str, Parameter]:
        count = ctypes.c_int64()
        self._function("parameter_count")(self._handle, ctypes.byref(count))
        read = self._function("parameter")
        places = (_Place(self._handle, read, index) for index in range(count.value))
        listed = (Parameter._of_layer(place, trainable=self._trainable) for place in places)
        return {parameter.name: parameter for parameter in listed}

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
            Its gradient from now on; where it is not given, the gradient stays where it is.

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
    kind: Any, made_with: dict[str, Any], values: dict[str, Array], context: Context | None
) -> Any:
    """Make what was pickled or is copied."""
    if "expert_weights" in made_with.get("unallocated", ()):
        raise ArgumentTypeError(
            "a layer without memory for its experts cannot be copied; bind another to copies"
        )
    made = kind(**made_with, context=context)
    made.load_state_dict(values)
    return made


def _same(value: Any, default: Any) -> bool:
    return value is default or (
        type(value) is type(default) and not isinstance(value, np.ndarray) and value == default
    )


@keywords
class Weights(Tensors):
    """What :class:`Layer` has of parameters; it has a layer's handle."""

    _prefix = "moe_layer"

    def __init__(self, handle: Handle, config: abi.moe_layer_config) -> None:
        super().__init__(handle, trainable=not config.inference_only)
        self._config = config

    # Read-only: the memory that a call reads and writes follows from them.
    @property
    def hidden_size(self) -> int:
        """H, the features of a token."""
        return int(self._config.hidden_size)

    @property
    def intermediate_size(self) -> int:
        """I, the experts' width; of linear experts what was given."""
        return int(self._config.intermediate_size)

    @property
    def n_experts(self) -> int:
        """E, the experts there are."""
        return int(self._config.n_experts)

    @property
    def top_k(self) -> int:
        """K, the experts that each token uses."""
        return int(self._config.top_k)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by name, their arrays being the layer's memory itself.

        Those that the configuration has of::

            router.weight [E, H]           router.bias [E]
            experts.gate.weight [E, I, H]  experts.gate.bias [E, I]    (gated experts)
            experts.up.weight [E, I, H]    experts.up.bias [E, I]
            experts.down.weight [E, H, I]  experts.down.bias [E, H]
            experts.weight [E, H, H]       experts.bias [E, H]         (linear experts, in place of the above)
            experts.0.gate.weight ...      experts.1.constant [n, H]   (by group, with expert_groups)
            shared.gate.weight [S, I, H] ...                           (shared experts, named likewise)
            router.expert_scale [E]
            router.coarse.weight [G, H]    router.coarse.bias [G]      (hierarchical)
            router.noise.weight [E, H]                                 (learned noise)
            router.norm.weight [H]         router.norm.bias [H]        (router_batch_norm)
            shared.router.weight [S, H]                                (shared_gate "sigmoid")
            shared.router.weight [2, H]    shared.router.bias [2]      (shared_gate "residual")
            output.bias [H]

        The layer owns that memory; the arrays keep it alive, also after the layer is closed.
        """
        return super().parameters

    @property
    def buffers(self) -> dict[str, NDArray[Any]]:
        """What belongs to the layer's state and is not trained by gradients, by name.

        Those that the configuration has of::

            router.selection_bias [E]      moved by update_selection_bias
            router.norm.running_mean [H]   router.norm.running_var [H], moved by forward in training
            router.active_experts [1]      the warm-up's, likewise

        The arrays are the layer's memory itself.
        """
        return super().buffers

    def initialize(self) -> None:
        """Give all parameters that have memory a new layer's values, gradients 0: after :meth:`bind`."""
        lib.moe_layer_initialize(self._handle)

    def prepare(self, prepared: Prepared = "f32") -> None:
        """Pack the experts' weights once for the forward calls to come, or let go of the packed copy.

        Few tokens gain most: their time is that of reading the weights.  The copy takes 4 or 2 bytes for each
        weight and does not follow them: after a change prepare again.

        Parameters
        ----------
        prepared : {"none", "f32", "bf16"}
            ``"f32"``: forward gives the same bits.  ``"bf16"``: forward computes as a layer with
            ``weight_dtype="bf16"`` does, with half the memory to read; the only form for such a layer, for
            the others without a tape only.  ``"none"``: no copy.

        Raises
        ------
        InvalidArgumentError
            ``"f32"`` for weights that are bfloat16.
        OutOfMemoryError
            There is no memory for the copy; the layer is as it was.
        BadStateError
            The layer is closed.  :meth:`forward` raises it too, when weights that it uses have changed since:
            it compares 16 values of each matrix.
        """
        lib.moe_layer_prepare(self._handle, check.choice("prepared", prepared, abi.PREPARED))

    def update_selection_bias(
        self, tokens_per_expert: NDArray[np.int64], rate: float = 1e-3, *, zero_sum: bool = False
    ) -> None:
        """Balance without a loss: favour experts with fewer tokens than the mean in the choices to come.

        ``bias += d`` with ``d = rate * sign(mean(n) - n)`` (arXiv:2412.19437), or ``d - mean(d)``.

        Parameters
        ----------
        tokens_per_expert : ndarray of int64, [E]
            n, the reports' counts since the last update added up; once per optimiser step.
        rate : float
            At least 0.
        zero_sum : bool
            Whether the biases' mean stays as it is.

        Raises
        ------
        BadStateError
            The layer has no selection_bias, or is closed.
        InvalidArgumentError
            A count or the rate is negative.
        """
        counts = check.integers("tokens_per_expert", tokens_per_expert, np.int64)
        if counts.shape != (self.n_experts,):
            raise InvalidArgumentError(
                f"tokens_per_expert: expected shape ({self.n_experts},), got {counts.shape}"
            )
        rate = check.number("rate", rate)
        lib.moe_layer_update_selection_bias(
            self._handle, counts.ctypes.data, rate, check.flag("zero_sum", zero_sum)
        )

    def load(
        self,
        source: Path | Checkpoint,
        *,
        layout: Layout = "libmoe",
        layer: int | None = None,
        prefix: str | None = None,
    ) -> None:
        """Overwrite the parameters with a checkpoint's.

        Parameters
        ----------
        source : path or Checkpoint
            A safetensors file or an index file; to load several layers, open it once.
        layout : str
            Whose names and forms the tensors have, :data:`libmoe.words.Layout`; docs/checkpoints.md lists
            them.
        layer : int, optional
            Number of the layer in the model.  Only ``"libmoe"`` does without: names are then the
            parameters' own.
        prefix : str, optional
            In place of ``layer``: what the layer's names begin with, where that is not as the layout has it,
            with the last dot: ``"model.language_model.layers.3.mlp."``.

        Raises
        ------
        InvalidArgumentError
            A tensor is missing, has other dimensions or a type that cannot be loaded, or the checkpoint has
            more for this layer than the layer holds; the text names it and says what would use it, or which
            layout the checkpoint looks like.  The layer is as it was.
        FileError
            The file cannot be opened.

        Float16, bfloat16 and float32 become the parameters' type; what :meth:`prepare` packed does not
        follow.
        """
        checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
        number = check.choice("layout", layout, abi.LAYOUT)
        arguments = (self._handle, checkpoint._handle, number)
        if prefix is None:
            lib.moe_layer_load(*arguments, _layer_number(layer, layout))
        else:
            lib.moe_layer_load_prefix(*arguments, _prefix(prefix, layer))

    def offload(
        self,
        source: Path | Checkpoint,
        *,
        resident_limit: int | str,
        layout: Layout = "libmoe",
        layer: int | None = None,
        prefix: str | None = None,
    ) -> None:
        """Leave the routed experts' matrices in a checkpoint's files, and load all other parameters.

        Forward computes first with the experts that are in memory, while a thread reads the missing ones in
        place of those that were used least.  The bits are those of the layer in memory.  For inference: a
        tape is refused.

        Parameters
        ----------
        source, layout, layer, prefix
            As of :meth:`load`; a checkpoint may be closed afterwards.
        resident_limit : int or str
            Bytes, also as ``"2GiB"``, of memory for experts, at least for two.  :meth:`prepare` afterwards,
            if at all: packed matrices then take the same room.

        Raises
        ------
        InvalidArgumentError
            As :meth:`load`, or the limit is too small; the text says what would do.
        BadStateError
            The layer was made without ``unallocated="expert_weights"``, or its matrices are bound or
            offloaded already.
        FileError, OutOfMemoryError
            The file cannot be opened; there is no memory.  The layer is as it was.
        """
        checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
        number = check.choice("layout", layout, abi.LAYOUT)
        limit = check.byte_count("resident_limit", resident_limit)
        arguments = (self._handle, checkpoint._handle, number)
        if prefix is None:
            lib.moe_layer_offload(*arguments, _layer_number(layer, layout), limit)
        else:
            lib.moe_layer_offload_prefix(*arguments, _prefix(prefix, layer), limit)
        self._handle.owner.keep["offloaded"] = True

    @property
    def offload_statistics(self) -> OffloadStatistics:
        """What the calls since :meth:`offload` have found, and read.

        Raises
        ------
        BadStateError
            The layer is not offloaded.
        """
        found = abi.moe_offload_statistics()
        lib.moe_layer_offload_statistics(self._handle, found)
        return OffloadStatistics(found.hits, found.misses, found.bytes_read, found.n_slots)

    def save(
        self,
        path: Path,
        *,
        layout: Layout = "libmoe",
        layer: int | None = None,
        prefix: str | None = None,
        dtype: LayerSaveDType = "f32",
        max_shard_size: int | str = 0,
    ) -> None:
        """Write the parameters to a safetensors file, or to several with an index; whole or not at all.

        Parameters
        ----------
        path : path
            Replaced if it is there.  With a ``max_shard_size`` the index, ``NAME.safetensors.index.json``.
        layout, layer, prefix
            As of :meth:`load`; ``"gpt_oss_mxfp4"`` is for loading only.
        dtype : str
            A type of weights, as of :class:`Layer`: of all tensors but those of ``buffers``, which stay
            float32.
        max_shard_size : int or str
            As of :func:`save`: bytes of one file at most; 0 writes one file.

        Raises
        ------
        InvalidArgumentError
            The layout has no tensor for a parameter of this layer.
        FileError
            The file cannot be written; ``path`` is as it was.
        """
        size = check.byte_count("max_shard_size", max_shard_size, ctypes.c_int64)
        head = (self._handle, encoded(path), check.choice("layout", layout, abi.LAYOUT))
        number = check.choice("dtype", dtype, abi.ARGUMENTS["moe_layer_save"]["dtype"])
        if prefix is not None:
            lib.moe_layer_save_prefix(*head, _prefix(prefix, layer), number, size)
        elif size == 0:
            lib.moe_layer_save(*head, _layer_number(layer, layout), number)
        else:
            lib.moe_layer_save_sharded(*head, _layer_number(layer, layout), number, size)

    def upcycle(self, dense: Mapping[str, Array]) -> None:
        """Make every expert a copy of one dense network (arXiv:2212.05055).

        Where the weights of a token add up to 1, y is then what the dense network gives.  Router and shared
        experts stay as they are.

        Parameters
        ----------
        dense : mapping of str to ndarray
            For each parameter ``experts.X``, called X, an array with the dimensions of one expert:
            ``up.weight`` [I, H] and so on; of any type of weights.

        Raises
        ------
        TypeError, ValueError
            A name is missing or unknown, or an array has the wrong type, shape or layout.
        """
        check.mapping("dense", dense, "a dict of arrays by name")
        described = (abi.moe_tensor * len(dense))()
        for index, (name, array) in enumerate(dense.items()):
            dtype = check.dtype_of(array)
            check.array(f"dense[{name!r}]", array, dtype=dtype)
            described[index] = abi.moe_tensor(
                name=name.encode(),
                dtype=abi.DTYPE[dtype],
                rank=array.ndim,
                shape=array.shape,
                data=array.ctypes.data,
            )
        lib.moe_layer_upcycle(self._handle, described, len(described))


def _layer_number(layer: int | None, layout: str) -> int:
    if layer is None and layout != "libmoe":
        raise InvalidArgumentError(f"layer: layout {layout!r} has numbered layers; give layer= or prefix=")
    return abi.NO_LAYER_NUMBER if layer is None else check.integer("layer", layer, ctypes.c_int64)


def _prefix(prefix: str, layer: int | None) -> bytes:
    if not isinstance(prefix, str):
        raise ArgumentTypeError(f"prefix: expected a str, got {type(prefix).__name__}")
    if layer is not None:
        raise InvalidArgumentError(
            "layer, prefix: a prefix has the layer's number in it; give one of the two"
        )
    if "\0" in prefix:
        raise InvalidArgumentError(f"prefix: {prefix!r} contains the character 0")
    return prefix.encode()
