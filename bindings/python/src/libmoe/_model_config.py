"""Options of a model, between Python's words and the C struct ``moe_model_config``, in both directions."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import config
from ._ffn import moe_options
from ._keywords import require_known
from ._native import abi, check, fields
from .errors import ArgumentTypeError, InvalidArgumentError

# Fields that say how long a list is, and what the keywords of Model say in another way.
_OTHERS = {"n_rotary_tables", "dense_no_bias"}
_LISTS = {"rotary_tables", "layers", "moe"}
_THETA = 1e4  # by default, where there are no rotary tables
_FREQUENCIES = ("frequencies", "long_frequencies")


class ModelConfig:
    """What a model is made with, as the library reads it.

    Attributes
    ----------
    c_config : moe_model_config
    moe : dict or None
        All options of the MoE layers' ffn.
    is_moe : list of bool
        Whether each layer is MoE.
    dense_sizes : list of int
        The width of each layer's ffn, where it is dense.
    """

    def __init__(self, c_config: abi.moe_model_config, moe: dict[str, Any] | None) -> None:
        self.c_config, self.moe = c_config, moe
        self.arrays: Arrays = {}  # of the caller's, which c_config points at
        layers, every = c_config.layers, max(1, c_config.moe_every)
        numbers = range(c_config.n_layers)
        own = [layers[n].dense_intermediate_size if layers else 0 for n in numbers]
        self.dense_sizes = [size or c_config.dense_intermediate_size for size in own]
        self.is_moe = [
            moe is not None and (not layers[n].dense if layers else (n + 1) % every == 0) for n in numbers
        ]


def to_c(arguments: Mapping[str, Any]) -> ModelConfig:
    """Return the keyword arguments of :class:`Model` as the library reads them.

    Raises
    ------
    TypeError, ValueError
        A value has the wrong type, a word is unknown, a number does not fit; the text names it.
    """
    names = fields.types(abi.moe_model_config)
    options = {name: arguments[name] for name in names if name in arguments and name not in _LISTS}
    options["tied_output"] = (
        check.flag("tied_output", arguments["tied_output"]) and arguments["vocabulary_size"] != 0
    )
    dense_bias = arguments["dense_bias"]
    options["dense_no_bias"] = (
        arguments["dense_kind"] == "gated" if dense_bias is None else not check.flag("dense_bias", dense_bias)
    )
    if isinstance(options["qk_norm"], (bool, np.bool_)):
        options["qk_norm"] = "head" if options["qk_norm"] else "none"
    if arguments["rotary_tables"] is not None and options["rope_theta"] == _THETA:
        options["rope_theta"] = 0.0
    moe = arguments["moe"]
    if moe is not None:
        moe = moe_options(moe, arguments["hidden_size"])
        options["moe"] = ctypes.pointer(config.to_c(moe))
    layers = arguments["layers"]
    if (moe is None or layers is not None) and options["moe_every"] == 1:
        del options["moe_every"]
    n_layers = check.integer("n_layers", arguments["n_layers"], ctypes.c_int64)
    if layers is not None:
        listed, _ = _listed("layers", layers, abi.moe_model_layer_config)
        if len(listed) != n_layers:
            raise InvalidArgumentError(
                f"layers: has {len(listed)} entries, but n_layers = {n_layers}; give one for each layer"
            )
        options["layers"] = (abi.moe_model_layer_config * len(listed))(*listed)
        has_dense = moe is None or any(layer.dense for layer in listed)
    else:
        has_dense = moe is None or arguments["moe_every"] != 1
    if arguments["norm_place"] == "none" or not has_dense:
        options = {name: value for name, value in options.items() if not name.startswith("dense_")}
    c_config = fields.filled(abi.moe_model_config, **options)
    made = ModelConfig(c_config, moe)
    if arguments["rotary_tables"] is not None:
        made.arrays = _set_tables(c_config, arguments["rotary_tables"])
    return made


Arrays = dict[tuple[int, str], NDArray[np.float64]]
"""Frequencies that structs point at, by table and name."""


def _set_tables(c_config: abi.moe_model_config, tables: Sequence[Mapping[str, Any]]) -> Arrays:
    listed, arrays = _listed("rotary_tables", tables, abi.moe_rotary_table)
    head_size = c_config.head_size or c_config.hidden_size // max(c_config.n_heads, 1)
    for (number, name), given in arrays.items():
        pairs = (listed[number].rotary_size or head_size) // 2
        if given.shape != (pairs,):
            raise InvalidArgumentError(
                f"rotary_tables[{number}]: {name}: expected {pairs} numbers, one for each pair that turns, "
                f"got shape {given.shape}"
            )
    c_config.rotary_tables = (abi.moe_rotary_table * len(listed))(*listed)
    c_config.n_rotary_tables = len(listed)
    return arrays


def _listed(name: str, given: Sequence[Mapping[str, Any]], kind: Any) -> tuple[list[Any], Arrays]:
    """Return structs, each of a dict, and the arrays that they point at; what is left out is 0."""
    structs: list[Any] = []
    arrays: Arrays = {}
    for number, each in enumerate(check.listed(name, given, "a list of dicts")):
        owner = f"{name}[{number}]"
        if not isinstance(each, Mapping):
            raise ArgumentTypeError(f"{owner}: expected a dict, got {type(each).__name__}; use dict(...)")
        struct = kind()
        require_known(owner, each, fields.types(kind))
        for field, value in each.items():
            if field not in _FREQUENCIES:
                setattr(struct, field, fields.to_c(kind, field, value, f"{owner}: "))
            elif value is not None:
                arrays[number, field] = _numbers(f"{owner}: {field}", value)
                setattr(struct, field, arrays[number, field].ctypes.data)
        structs.append(struct)
    return structs, arrays


def _numbers(name: str, value: Any) -> NDArray[np.float64]:
    try:
        return np.ascontiguousarray(value, np.float64)
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"{name}: expected numbers, got {type(value).__name__}; use an array of float64"
        ) from None


def from_c(c_config: abi.moe_model_config, model: type) -> tuple[ModelConfig, dict[str, Any]]:
    """Return what :func:`to_c` would make of arguments, and the arguments.

    Parameters
    ----------
    c_config
        With pointers that lead somewhere; the arguments are copies.
    model : type
        :class:`Model`, whose arguments are wanted.
    """
    known = inspect.signature(model).parameters
    skipped = _OTHERS | _LISTS
    arguments = {
        name: fields.from_c(c_config, name)
        for name in fields.types(abi.moe_model_config)
        if name in known and name not in skipped
    }
    arguments["dense_bias"] = not c_config.dense_no_bias
    arguments["moe"] = moe = _moe_from_c(c_config)
    arguments["rotary_tables"] = [
        _table_from_c(c_config, number) for number in range(c_config.n_rotary_tables)
    ] or None
    if arguments["rotary_tables"]:
        arguments["rope_theta"] = _THETA
    arguments["layers"] = None
    if c_config.layers:
        names = fields.types(abi.moe_model_layer_config)
        arguments["layers"] = [
            {name: fields.from_c(c_config.layers[n], name) for name in names}
            for n in range(c_config.n_layers)
        ]
    arguments["moe_every"] = c_config.moe_every or 1
    arguments |= {"communicator": None, "experts_per_rank": None}  # of one process
    arguments |= {"choice_scope": "global", "strategy": "exclusive", "hot_experts": 0}
    all_of_moe = None if moe is None else moe_options(moe, c_config.hidden_size)
    return ModelConfig(c_config, all_of_moe), arguments


def _moe_from_c(c_config: abi.moe_model_config) -> dict[str, Any] | None:
    if not c_config.moe:
        return None
    c_moe = c_config.moe.contents
    moe = config.from_c(c_moe)
    for name in ("hidden_size", "seed", "io_dtype", "inference_only"):
        del moe[name]  # the model's
    if c_moe.hash_table:
        count = c_moe.vocabulary_size * c_moe.top_k
        table = np.ctypeslib.as_array((ctypes.c_int32 * count).from_address(c_moe.hash_table)).copy()
        moe["hash_table"] = table.reshape(c_moe.vocabulary_size, c_moe.top_k)
    return moe


def _table_from_c(c_config: abi.moe_model_config, number: int) -> dict[str, Any]:
    table = c_config.rotary_tables[number]
    own = {name: getattr(table, name) for name in fields.types(abi.moe_rotary_table)}
    pairs = (table.rotary_size or c_config.head_size or c_config.hidden_size // c_config.n_heads) // 2
    for name in _FREQUENCIES:
        address = own[name]
        if address:
            own[name] = np.ctypeslib.as_array((ctypes.c_double * pairs).from_address(address)).copy()
    return own
