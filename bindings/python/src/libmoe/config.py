"""Options of a layer, between Python's words and the C struct ``moe_layer_config``, in both directions."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from . import _abi, _check
from ._keywords import renamed, unknown
from .errors import ArgumentTypeError, InvalidArgumentError
from .words import Activation, ExpertKind


class _ExpertCount(TypedDict):
    n_experts: int


class ExpertGroup(_ExpertCount, total=False):
    """Experts of one kind and width, as a dict; all but ``n_experts`` may be left out.

    The names mean what they mean as arguments of :class:`Layer`, for this group alone.  ``"identity"``,
    ``"zero"`` and ``"constant"`` experts have no width, no activation and no dropout.

    Examples
    --------
    >>> import libmoe
    >>> wide = libmoe.ExpertGroup(n_experts=6, intermediate_size=256, activation="silu")
    >>> layer = libmoe.Layer(64, 0, 8, 2, expert_groups=[wide, dict(n_experts=2, expert_kind="zero")])
    >>> layer.parameters["experts.0.up.weight"].data.shape
    (6, 256, 64)
    """

    intermediate_size: int
    expert_kind: ExpertKind
    activation: Activation
    expert_bias: bool | None
    dropout: float
    glu_limit: float
    glu_alpha: float
    glu_offset: float


# Fields that are words, and those that are yes or no; all others are numbers, arrays or lists.
_WORDS = {
    "router": _abi.ROUTER,
    "router_weights": _abi.ROUTER_WEIGHTS,
    "router_normalize": _abi.NORMALIZE,
    "score": _abi.SCORE,
    "group_mask": _abi.GROUP_MASK,
    "epsilon_form": _abi.EPSILON,
    "expert_kind": _abi.EXPERT,
    "activation": _abi.ACTIVATION,
    "shared_gate": _abi.SHARED,
    "noise": _abi.NOISE,
    "router_dropout_on": _abi.ROUTER_DROPOUT,
    "router_norm": _abi.ROUTER_NORM,
    "dynamic_k": _abi.DYNAMIC_K,
    "capacity_formula": _abi.CAPACITY,
    "drop": _abi.DROP,
    "overflow": _abi.OVERFLOW,
    "renormalize": _abi.RENORMALIZE,
    "weight_dtype": _abi.LAYER_DTYPE,
    "io_dtype": _abi.LAYER_DTYPE,
}
_FLAGS = {
    "inference_only",
    "selection_bias",
    "expert_scale",
    "output_bias",
    "weight_on_input",
    "random_second",
    "jitter_experts",
    "router_batch_norm",
    "capacity_per_sequence",
    "adaptive_capacity",
}
_BIASES = {"router_bias", "expert_bias"}
_BIAS = {None: _abi.BIAS["default"], False: _abi.BIAS["off"], True: _abi.BIAS["on"]}
# Fields that say how long a list is, which Python's lists know themselves.
_UNNAMED = {"struct_size", "reserved", "reserved2", "n_expert_groups", "n_losses"}


def to_c(options: Mapping[str, Any]) -> _abi.moe_layer_config:
    """Return the options of a layer as the library reads them.

    Parameters
    ----------
    options : mapping
        Every keyword argument of :class:`Layer` but ``context``.

    Returns
    -------
    moe_layer_config
        Its ``hash_table`` points at the caller's array.

    Raises
    ------
    TypeError, ValueError
        A value has the wrong type, a word is unknown, a number does not fit; the text names it.
    """
    config = _abi.moe_layer_config()
    options = renamed(options, dict(_fields(config)))
    for field, ctype in _fields(config):
        setattr(config, field, _field(field, ctype, options[field]))
    config.n_expert_groups = len(options["expert_groups"] or ())
    config.n_losses = len(options["losses"] or ())
    if options["hash_table"] is not None:
        config.vocabulary_size = _vocabulary(config, options["hash_table"])
    return config


def from_c(config: _abi.moe_layer_config) -> dict[str, Any]:
    """Return what :func:`to_c` would make this struct of; a hash table is left out."""
    return {name: _word(config, name, kind) for name, kind in _fields(config) if name != "hash_table"}


def _fields(struct: ctypes.Structure) -> list[tuple[str, Any]]:
    """Names and types of the fields that options have names for."""
    return [(field[0], field[1]) for field in struct._fields_ if field[0] not in _UNNAMED]


def _field(field: str, ctype: Any, value: Any, owner: str = "") -> Any:
    """Return the value as the field holds it."""
    name = owner + field
    if field == "router_normalize" and not isinstance(value, str):
        value = "sum" if _check.flag(name, value) else "none"
    if field in _WORDS:
        return _check.choice(name, value, _WORDS[field])
    if field in _BIASES:
        return _BIAS[None if value is None else _check.flag(name, value)]
    if field in _FLAGS:
        return _check.flag(name, value)
    if field == "unallocated":
        listed = [value] if isinstance(value, str) else _check.listed(name, value, "a tuple of words")
        return sum({_check.choice(name, word, _abi.UNALLOCATED) for word in listed})
    if field == "expert_groups":
        return _expert_groups(value)
    if field == "losses":
        return _losses(value)
    if field == "hash_table":
        return None if value is None else _check.array(name, value, dtype="i32").ctypes.data
    if ctype in (ctypes.c_float, ctypes.c_double):
        return _check.number(name, value)
    return _check.integer(name, value, ctype)


def _expert_groups(groups: Sequence[ExpertGroup] | None) -> Any:
    """Return the groups as an array of ``moe_expert_group``; NULL for none."""
    if groups is None:
        return None
    groups = _check.listed("expert_groups", groups, "a list: [libmoe.ExpertGroup(n_experts=8, ...)]")
    if not groups:
        return None
    listed = (_abi.moe_expert_group * len(groups))()
    for index, (c_group, group) in enumerate(zip(listed, groups)):
        owner = f"expert_groups[{index}]"
        if not isinstance(group, Mapping):
            raise ArgumentTypeError(
                f"{owner}: expected a dict, got {type(group).__name__}; use libmoe.ExpertGroup"
            )
        known = {field: ctype for field, ctype in _fields(c_group)}
        for name in group.keys() - known.keys():
            raise InvalidArgumentError(unknown(owner, name, known))
        if "n_experts" not in group:
            raise InvalidArgumentError(f"{owner}: n_experts is missing")
        for field, value in group.items():
            setattr(c_group, field, _field(field, known[field], value, f"{owner}."))
    return listed


def _losses(losses: Mapping[str, float] | None) -> Any:
    """Return the losses as an array of ``moe_loss_term``; NULL for none."""
    if losses is None:
        return None
    if not isinstance(losses, Mapping):
        raise ArgumentTypeError(
            f"losses: expected a dict of coefficients, got {type(losses).__name__}; use {{'switch': 0.01}}"
        )
    if not losses:
        return None
    terms = [
        _abi.moe_loss_term(
            _check.choice("losses", name, _abi.LOSS), _check.number(f"losses[{name!r}]", value)
        )
        for name, value in losses.items()
    ]
    return (_abi.moe_loss_term * len(terms))(*terms)


def _vocabulary(config: _abi.moe_layer_config, table: NDArray[np.int32]) -> int:
    """Return how many token ids the table is for."""
    if table.ndim != 2 or table.shape[1] != config.top_k:
        raise InvalidArgumentError(
            f"hash_table: expected shape [vocabulary_size, top_k = {config.top_k}], got {table.shape}"
        )
    if config.vocabulary_size not in (0, len(table)):
        raise InvalidArgumentError(
            f"vocabulary_size = {config.vocabulary_size}, but hash_table has {len(table)} rows"
        )
    return len(table)


def _word(struct: ctypes.Structure, field: str, ctype: Any) -> Any:
    """Return the field as the keyword argument it comes from."""
    value = getattr(struct, field)
    if field in _WORDS:
        return next(word for word, number in _WORDS[field].items() if number == value)
    if field in _BIASES:
        return next(wanted for wanted, number in _BIAS.items() if number == value)
    if field in _FLAGS:
        return bool(value)
    if field == "unallocated":
        return tuple(word for word, flag in _abi.UNALLOCATED.items() if value & flag)
    if field == "expert_groups":
        config = cast(_abi.moe_layer_config, struct)
        return [_group(config.expert_groups[index]) for index in range(config.n_expert_groups)] or None
    if field == "losses":
        config = cast(_abi.moe_layer_config, struct)
        words = {number: word for word, number in _abi.LOSS.items()}
        terms = [config.losses[index] for index in range(config.n_losses)]
        return {words[term.kind]: _shortest(term.coefficient) for term in terms} or None
    return _shortest(value) if ctype is ctypes.c_float else value


def _group(c_group: _abi.moe_expert_group) -> ExpertGroup:
    """Return what is not the default."""
    default, own = _abi.moe_expert_group(), {}
    for field, ctype in _fields(c_group):
        word = _word(c_group, field, ctype)
        if word != _word(default, field, ctype):
            own[field] = word
    return cast(ExpertGroup, own)


def _shortest(value: float) -> float:
    """Return the shortest decimal number that is this float32: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(value)))
