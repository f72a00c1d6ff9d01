"""A run's folder, and the model in it.

config.json         the settings
log.jsonl           what happened, see log.py
last.safetensors    training state of the last checkpoint, from which a run goes on with the same bits
best.safetensors    that of the best evaluation
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libmoe

from .config import Settings, UserError
from .data import Tokenizer

LAST, BEST = "last.safetensors", "best.safetensors"
UNLIMITED = 1 << 62  # bytes


def make_context(settings: Settings) -> libmoe.Context:
    """Return a context with the run's threads."""
    return libmoe.Context(settings.threads or libmoe.ALL_THREADS)


def make_model(settings: Settings, vocabulary_size: int, context: libmoe.Context) -> libmoe.Model:
    """Return a new model as the settings describe it."""
    try:
        return libmoe.Model(**settings.model_arguments(vocabulary_size), context=context)
    except (TypeError, libmoe.InvalidArgumentError) as error:
        raise UserError(f"the model: {error}") from None


def memory_limit(settings: Settings) -> int | None:
    """Return bytes of scratch and tape that a call may take, or None."""
    return settings.memory_limit << 20 or None


def saved_parts(model: libmoe.Model) -> dict[str, Any]:
    """Return a model's parts as save_training takes them: its ffn with their buffers, and the rest."""
    others = [parameter for name, parameter in model.parameters.items() if ".ffn." not in name]
    return {"layers": list(model.layers), "parameters": others}


def read_weights(model: libmoe.Model, path: Path) -> None:
    """Fill a model from a training state, without the optimiser's part of it.

    Raises
    ------
    UserError
        There is no such file, or it is another model's.
    """
    if not path.exists():
        raise UserError(f"no such file: {str(path)!r}; the run has not come to its first checkpoint")
    parts = saved_parts(model)
    with libmoe.Checkpoint(path) as checkpoint:
        try:
            for n, layer in enumerate(parts["layers"]):
                names = (*layer.parameters, *layer.buffers)
                layer.load_state_dict({name: checkpoint.raw(f"layers.{n}.{name}") for name in names})
            for n, parameter in enumerate(parts["parameters"]):
                parameter.data[...] = checkpoint.raw(f"tensors.{n}")
        except (KeyError, ValueError) as error:
            raise UserError(f"{str(path)!r} is of another model: {error}") from None


@dataclass(frozen=True)
class Trained:
    """What a run has learnt."""

    settings: Settings
    model: libmoe.Model
    tokenizer: Tokenizer
    context: libmoe.Context


def open_run(folder: Path, weights: str = "best") -> Trained:
    """Load the model of a run.

    Parameters
    ----------
    folder : path
        Of the run.
    weights : {"best", "last"}
        Which checkpoint.

    Raises
    ------
    UserError
        There is no run, or it has no checkpoint yet.
    """
    settings = Settings.load(folder)
    tokenizer = Tokenizer(settings.tokenizer)
    context = make_context(settings)
    model = make_model(settings, tokenizer.vocabulary_size, context)
    read_weights(model, folder / {"best": BEST, "last": LAST}[weights])
    return Trained(settings, model, tokenizer, context)
