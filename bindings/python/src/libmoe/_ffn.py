"""The ffn of a model's layers: what they are made with, and as layers of their own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from . import config
from ._keywords import renamed, require_known
from ._native import abi, fields
from ._native.library import Borrowed
from ._weights import Weights
from .context import Context
from .errors import ArgumentTypeError, InvalidArgumentError
from .layer import Layer


def layer_of(handle: Borrowed, options: Mapping[str, Any], context: Context) -> Layer:
    """Return a layer that belongs to a model."""
    layer = Layer.__new__(Layer)
    Weights.__init__(layer, handle, config.to_c(options))
    layer._kind = Layer
    layer._made_with = {name: value for name, value in options.items() if name != "context"}
    layer._context = context
    layer._io_dtype = "f32"
    layer._losses = list(options["losses"] or ())
    return layer


def moe_options(moe: Mapping[str, Any], hidden_size: int) -> dict[str, Any]:
    """Return all options of the MoE layers' ffn."""
    if not isinstance(moe, Mapping):
        raise ArgumentTypeError(
            f"moe: expected a dict, got {type(moe).__name__}; use dict(n_experts=8, top_k=2, ...)"
        )
    if moe.get("context") is not None:
        raise InvalidArgumentError("moe: context is the model's")
    for name in ("communicator", "experts_per_rank", "choice_scope", "strategy", "hot_experts"):
        if moe.get(name) not in (None, "global", "exclusive", 0):
            raise InvalidArgumentError(f"moe: {name} is the model's")
    return _options_of(Layer, {"hidden_size": hidden_size, **moe}, "moe")


def dense_options(c_config: abi.moe_model_config, intermediate_size: int) -> dict[str, Any]:
    """Return the options of a dense ffn."""
    dense = {
        "hidden_size": c_config.hidden_size,
        "intermediate_size": intermediate_size,
        "n_experts": 1,
        "top_k": 1,
        "router": "external",
        "expert_kind": fields.from_c(c_config, "dense_kind"),
        "activation": fields.from_c(c_config, "dense_activation"),
        "expert_bias": not c_config.dense_no_bias,
        "dropout": c_config.dense_dropout,
    }
    return _options_of(Layer, dense, "dense")


def _options_of(kind: type, given: dict[str, Any], owner: str) -> dict[str, Any]:
    """Return all keyword arguments of a class, the defaults where nothing is given."""
    known = inspect.signature(kind).parameters
    given = renamed(given, known)
    require_known(owner, given, known)
    missing = [name for name, p in known.items() if p.default is p.empty and name not in given]
    if missing:
        raise ArgumentTypeError(f"{owner}: {missing[0]} is missing")
    return {name: given.get(name, parameter.default) for name, parameter in known.items()}
