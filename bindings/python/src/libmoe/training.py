"""Training states: all that a run goes on from, in one safetensors file."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ._keywords import keywords
from ._native import abi, check
from ._native.library import Native, lib
from ._ranks import structure
from .checkpoint import Checkpoint, Path, encoded
from .communicator import Communicator
from .context import Context, handle_of
from .layer import Layer
from .optim import Optimizer
from .parameter import Parameters, tensors
from .statistics import Statistics


@keywords
def save_training(
    path: Path,
    *,
    step: int,
    layers: Sequence[Layer] = (),
    optimizers: Sequence[Optimizer] = (),
    statistics: Sequence[Statistics] = (),
    parameters: Parameters = (),
    without_unallocated: bool = False,
    context: Context | None = None,
    communicator: Communicator | None = None,
) -> None:
    """Write a training state to a safetensors file, whole or not at all.

    Parameters
    ----------
    path : path
        Replaced if it is there.
    step : int
        Number of the next step, 0 to 2^64 - 1.
    layers : sequence of Layer
        Parameters and buffers: warm-up, running statistics, selection biases; and the seeds.
    optimizers : sequence of Optimizer
        Moments, float32 copies of other types, their numbers and the step count.
    statistics : sequence of Statistics
        Their sums.
    parameters : iterable of Parameter
        The user's own.
    without_unallocated : bool
        Whether parameters of layers with ``unallocated="expert_weights"`` and states of optimisers with
        ``unallocated_state=True`` are left out: a :class:`MappedFile` keeps them.
    context : Context, optional
        By default the shared one.
    communicator : Communicator, optional
        Of the ranks over which experts are spread, all of which call this: rank 0 writes the file, which is
        that of one process, and any number of ranks reads it.

    Raises
    ------
    FileError
        The file cannot be written; ``path`` is as it was.
    """
    parts = _Parts(layers, optimizers, statistics, parameters, without_unallocated)
    parts.c.step = check.integer("step", step, ctypes.c_uint64)
    of = (handle_of(context), ctypes.byref(parts.c))
    if communicator is None:
        lib.moe_training_save(*of, encoded(path))
    else:
        lib.moe_training_save_distributed(*of, structure(communicator), parts.spread, encoded(path))


@keywords
def load_training(
    path: Path,
    *,
    layers: Sequence[Layer] = (),
    optimizers: Sequence[Optimizer] = (),
    statistics: Sequence[Statistics] = (),
    parameters: Parameters = (),
    without_unallocated: bool = False,
    context: Context | None = None,
    communicator: Communicator | None = None,
) -> int:
    """Read a training state into objects made as those that were saved, in the same order.

    A run that goes on from there gives the bits of one that was never stopped.

    Parameters
    ----------
    path : path
        Of :func:`save_training`.
    layers, optimizers, statistics, parameters, without_unallocated, context, communicator
        As there; the layers with the same seeds.  Every rank reads the file, and of experts its own.

    Returns
    -------
    int
        The step that was saved.

    Raises
    ------
    InvalidArgumentError
        The file has other tensors, sizes, types or seeds; nothing has changed.
    FileError
        The file cannot be opened.
    """
    parts = _Parts(layers, optimizers, statistics, parameters, without_unallocated)
    of = (handle_of(context), ctypes.byref(parts.c))
    if communicator is None:
        lib.moe_training_load(*of, encoded(path))
    else:
        lib.moe_training_load_distributed(*of, structure(communicator), parts.spread, encoded(path))
    with Checkpoint(path, context=context) as checkpoint:
        for number, optimizer in enumerate(parts.optimizers):
            numbers = checkpoint[f"optimizers.{number}.{optimizer._rule}"]
            optimizer._learning_rate, optimizer._momentum = float(numbers[0]), float(numbers[1])
    return int(parts.c.step)


class _Parts:
    """The struct, and what must stay alive while it is used."""

    def __init__(
        self,
        layers: Sequence[Layer],
        optimizers: Sequence[Optimizer],
        statistics: Sequence[Statistics],
        parameters: Parameters,
        without_unallocated: bool,
    ) -> None:
        layers = _members("layers", layers, Layer)
        # An iterator gives its members once, and load_training asks for them again.
        self.optimizers: list[Optimizer] = _members("optimizers", optimizers, Optimizer)
        statistics = _members("statistics", statistics, Statistics)
        self._handles = [item._handle for item in (*layers, *self.optimizers, *statistics)]
        self._spread = np.array(
            [p._is_spread for each in self.optimizers for p in each._parameters], np.uint8
        )
        self._listed, described = tensors(parameters, gradients=False)
        self.c = abi.moe_training(
            layers=_array(abi.moe_layer, layers),
            n_layers=len(layers),
            optimizers=_array(abi.moe_optimizer, self.optimizers),
            n_optimizers=len(self.optimizers),
            statistics=_array(abi.moe_statistics, statistics),
            n_statistics=len(statistics),
            tensors=described,
            n_tensors=len(described),
            without_unallocated=check.flag("without_unallocated", without_unallocated),
        )

    @property
    def spread(self) -> int:
        """Where it says which of the optimisers' tensors are of experts that are spread over ranks."""
        return int(self._spread.ctypes.data)


def _members(name: str, items: Any, kind: type) -> list[Any]:
    """Return the members of a list of layers, optimisers or statistics."""
    given = check.listed(name, items, f"a list: {name}=[...]")
    for index, item in enumerate(given):
        check.instance(f"{name}[{index}]", item, kind, f"a list of {kind.__name__}")
    return given


def _array(kind: Any, items: Iterable[Native]) -> Any:
    pointers = [item._handle._as_parameter_ for item in items]
    return (ctypes.POINTER(kind) * len(pointers))(*pointers)
