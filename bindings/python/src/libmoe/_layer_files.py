"""A layer's weights from files and to files: loaded, left there, saved, made of a dense network's."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from ._keywords import keywords
from ._native import abi, check
from ._native.check import Array
from ._native.library import lib
from ._tensors import Tensors
from .checkpoint import Checkpoint, Path, encoded
from .errors import ArgumentTypeError, InvalidArgumentError
from .memory import OffloadStatistics
from .words import LayerSaveDType, Layout


@keywords
class LayerFiles(Tensors):
    """What a layer has to do with files."""

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
