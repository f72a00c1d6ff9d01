"""The model of a run: made, and filled from its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe

from .._gguf import is_gguf
from .config import Settings
from .errors import UserError
from .folder import BEST, LAST, MODEL, TOKENIZER, is_run
from .ranks import Ranks
from .tokenizer import Tokenizer

ALONE = Ranks()


def used_threads(settings: Settings, ranks: Ranks = ALONE) -> int:
    """Return how many threads compute: no more than there are processors, which would only take memory."""
    return min(settings.threads or ranks.processors, libmoe.processors())


def make_context(settings: Settings, ranks: Ranks = ALONE) -> libmoe.Context:
    """Return a context with the run's threads."""
    return libmoe.Context(used_threads(settings, ranks))


def count_weights(model: libmoe.Model, parameters: Mapping[str, libmoe.Parameter] | None = None) -> int:
    """Return how many weights there are, all or in some parameters, on all ranks together."""
    experts = (model._moe or {}).get("n_experts", 1)
    return sum(
        p.data.size // len(p.data) * experts if p._is_spread else p.data.size
        for p in (model.parameters if parameters is None else parameters).values()
    )


def threads_note(settings: Settings) -> str:
    """Say that there are more threads than processors, or nothing."""
    if settings.threads <= libmoe.processors():
        return ""
    count = libmoe.processors()
    return (
        f"threads {settings.threads}: this process may use {count} processors, and so many threads "
        "compute; more would take memory and time, and give the same bits"
    )


def make_model(
    settings: Settings, vocabulary_size: int, context: libmoe.Context, ranks: Ranks = ALONE
) -> libmoe.Model:
    """Return a new model as the settings describe it, or that of the folder they begin with."""
    if ranks.communicator is not None:
        _refuse_over_ranks(settings, ranks)
    if settings.init:
        return _of_folder(settings, vocabulary_size, context, ranks)
    arguments = settings.model_arguments(vocabulary_size)
    try:
        return libmoe.Model(**arguments, context=context, communicator=ranks.communicator)
    except (TypeError, libmoe.InvalidArgumentError) as error:
        raise UserError(f"the model: {error}") from None


def _refuse_over_ranks(settings: Settings, ranks: Ranks) -> None:
    """Refuse what one process alone can do."""
    if not settings.init and settings.n_experts < ranks.size:
        raise UserError(
            f"n_experts = {settings.n_experts}: {ranks.size} ranks need as many experts at least, one each"
        )


def _of_folder(
    settings: Settings, vocabulary_size: int, context: libmoe.Context, ranks: Ranks
) -> libmoe.Model:
    dtype: Any = settings.weight_dtype
    model = libmoe.Model.from_pretrained(
        settings.init, weight_dtype=dtype, context=context, communicator=ranks.communicator
    )
    if any(parameter.frozen for parameter in model.parameters.values()):
        raise UserError(
            f"init = {settings.init!r}: its weights are packed, and a run keeps whole weights: begin with "
            "the folder that they were packed from, or train over them with libmoe.Model.from_pretrained"
        )
    if model.vocabulary_size < vocabulary_size:
        raise UserError(
            f"the tokenizer has tokens up to {vocabulary_size - 1:,}, but the model of {settings.init!r} "
            f"has a vocabulary of {model.vocabulary_size:,}: give the tokenizer that belongs to it"
        )
    return model


def begun_with(settings: Settings, folder: Path) -> Settings:
    """Return settings with the tokenizer of the folder that a run begins with, where they have none.

    Of a run whose folder is gone, the one that the run has written.

    Raises
    ------
    UserError
        There is no tokenizer, or no such folder.
    """
    if not settings.init:
        return settings
    init = os.path.abspath(settings.init)
    if not os.path.isdir(init) and (folder / MODEL).is_dir():
        init = str((folder / MODEL).absolute())
    if is_gguf(init):
        raise UserError(
            f"init = {settings.init!r} is a GGUF file: make a folder of it first (python -m libmoe convert "
            "FILE FOLDER --dtype f32), and begin with that"
        )
    if not os.path.isdir(init):
        raise UserError(f"init = {settings.init!r}: there is no such folder")
    if is_run(Path(init)):
        raise UserError(
            f"init = {settings.init!r} is a run, not a model's folder: go on with it (--resume), or, where "
            f"it began with --init, name its {MODEL!r} folder"
        )
    tokenizer = settings.tokenizer or os.path.join(init, TOKENIZER)
    if not settings.tokenizer and not os.path.isfile(tokenizer):
        raise UserError(f"init = {settings.init!r}: has no {TOKENIZER}; name the model's own with tokenizer")
    return replace(settings, init=init, tokenizer=tokenizer)


def memory_limit(settings: Settings) -> int | None:
    """Return bytes of scratch and tape that a call may take, or None."""
    return settings.memory_limit << 20 or None


def latest(folder: Path) -> Path:
    """Return the checkpoint that a run goes on from: where it ended before the first was whole, its best.

    Raises
    ------
    UserError
        There is none.
    """
    for name in (LAST, BEST):
        if (folder / name).exists():
            return folder / name
    raise UserError(f"nothing to resume: no such file: {str(folder / LAST)!r}")


def saved_parts(model: libmoe.Model) -> dict[str, Any]:
    """Return a model's parts as save_training takes them: its ffn with their buffers, and the rest."""
    others = [parameter for name, parameter in model.parameters.items() if ".ffn." not in name]
    return {"layers": list(model.layers), "parameters": others}


def saved_numbers(checkpoint: libmoe.Checkpoint) -> NDArray[np.float64]:
    """Return a run's own numbers in a checkpoint: best bits per byte, evaluations since, seconds of training.

    They are the last of the tensors, as 16-bit parts, since training states have no type for doubles.
    """
    last = max((name for name in checkpoint if name.startswith("tensors.")), key=lambda name: int(name[8:]))
    return np.asarray(checkpoint.raw(last)).view(np.float64)


def read_weights(model: libmoe.Model, path: Path) -> None:
    """Fill a model from a training state, without the optimiser's part of it.

    Raises
    ------
    UserError
        There is no such file, or it is another model's.
    """
    if not path.exists():
        why = "the run has not come to its first checkpoint"
        if path.name == BEST and path.with_name(LAST).exists():
            why = "it ended before its first evaluation; --weights last (weights='last') is what it learnt"
        raise UserError(f"no such file: {str(path)!r}; {why}")
    parts = saved_parts(model)
    with libmoe.Checkpoint(path) as checkpoint:
        try:
            for n, layer in enumerate(parts["layers"]):
                state = {name: checkpoint.raw(f"layers.{n}.{name}") for name in layer.buffers}
                for name, parameter in layer.parameters.items():
                    state[name] = _own(model, parameter, checkpoint.raw(f"layers.{n}.{name}"))
                layer.load_state_dict(state)
            for n, parameter in enumerate(parts["parameters"]):
                parameter.data[...] = checkpoint.raw(f"tensors.{n}")
        except (KeyError, ValueError) as error:
            raise UserError(f"{str(path)!r} is of another model: {error}") from None


def _own(model: libmoe.Model, parameter: libmoe.Parameter, values: Any) -> Any:
    """Return what of a file's tensor is this rank's."""
    if model.communicator is None or not parameter._is_spread:
        return values
    even, more = divmod(len(values), model.communicator.size)
    rank = model.communicator.rank
    first = rank * even + min(rank, more)
    return np.ascontiguousarray(values[first : first + even + (rank < more)])


@dataclass(frozen=True)
class Trained:
    """What a run has learnt."""

    settings: Settings
    model: libmoe.Model
    tokenizer: Tokenizer
    context: libmoe.Context


def open_run(folder: Path, weights: str = "best", ranks: Ranks = ALONE) -> Trained:
    """Load the model of a run.

    Parameters
    ----------
    folder : path
        Of the run.
    weights : {"best", "last"}
        Which checkpoint.
    ranks : Ranks
        Over which the experts are spread.

    Raises
    ------
    UserError
        There is no run, or it has no checkpoint yet.
    """
    folder = Path(folder)
    settings = begun_with(Settings.load(folder), folder)
    tokenizer = Tokenizer(settings.tokenizer)
    context = make_context(settings, ranks)
    model = make_model(settings, tokenizer.vocabulary_size, context, ranks)
    read_weights(model, folder / {"best": BEST, "last": LAST}[weights])
    return Trained(settings, model, tokenizer, context)
