"""Options of a layer, between Python's words and the C struct ``moe_layer_config``, in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from ._keywords import renamed, require_known
from ._native import abi, check, fields
from ._native.struct import Struct
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


# Fields that say how long a list is, which Python's lists know themselves.
_LENGTHS = {"n_expert_groups", "n_losses"}


def to_c(options: Mapping[str, Any]) -> abi.moe_layer_config:
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
    config = abi.moe_layer_config()
    options = renamed(options, _fields(config))
    for field in _fields(config):
        setattr(config, field, _field(config, field, options[field]))
    config.n_expert_groups = len(options["expert_groups"] or ())
    config.n_losses = len(options["losses"] or ())
    if options["hash_table"] is not None:
        config.vocabulary_size = _vocabulary(config, options["hash_table"])
    return config


def from_c(config: abi.moe_layer_config) -> dict[str, Any]:
    """Return what :func:`to_c` would make this struct of; a hash table is left out."""
    return {name: _option(config, name) for name in _fields(config) if name != "hash_table"}


def _fields(struct: Struct) -> list[str]:
    """Names of the fields that options have names for."""
    return [name for name in fields.types(type(struct)) if name not in _LENGTHS]


def _field(struct: Struct, field: str, value: Any, owner: str = "") -> Any:
    """Return the value as the field holds it."""
    if field == "router_normalize" and not isinstance(value, str):
        value = "sum" if check.flag(owner + field, value) else "none"
    if field == "expert_groups":
        return _expert_groups(value)
    if field == "losses":
        return _losses(value)
    if field == "hash_table":
        return None if value is None else check.array(owner + field, value, dtype="i32").ctypes.data
    return fields.to_c(type(struct), field, value, owner)


def _expert_groups(groups: Sequence[ExpertGroup] | None) -> Any:
    """Return the groups as an array of ``moe_expert_group``; NULL for none."""
    if groups is None:
        return None
    groups = check.listed("expert_groups", groups, "a list: [libmoe.ExpertGroup(n_experts=8, ...)]")
    if not groups:
        return None
    listed = (abi.moe_expert_group * len(groups))()
    for index, (c_group, group) in enumerate(zip(listed, groups)):
        owner = f"expert_groups[{index}]"
        if not isinstance(group, Mapping):
            raise ArgumentTypeError(
                f"{owner}: expected a dict, got {type(group).__name__}; use libmoe.ExpertGroup"
            )
        known = _fields(c_group)
        require_known(owner, group, known, InvalidArgumentError)
        if "n_experts" not in group:
            raise InvalidArgumentError(f"{owner}: n_experts is missing")
        for field, value in group.items():
            setattr(c_group, field, _field(c_group, field, value, f"{owner}."))
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
        abi.moe_loss_term(check.choice("losses", name, abi.LOSS), check.number(f"losses[{name!r}]", value))
        for name, value in losses.items()
    ]
    return (abi.moe_loss_term * len(terms))(*terms)


def _vocabulary(config: abi.moe_layer_config, table: NDArray[np.int32]) -> int:
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


def _option(struct: Struct, field: str) -> Any:
    """Return the field as the keyword argument it comes from."""
    if field == "expert_groups":
        config = cast(abi.moe_layer_config, struct)
        return [_group(config.expert_groups[index]) for index in range(config.n_expert_groups)] or None
    if field == "losses":
        config = cast(abi.moe_layer_config, struct)
        terms = [config.losses[index] for index in range(config.n_losses)]
        return {fields.from_c(term, "kind"): fields.from_c(term, "coefficient") for term in terms} or None
    return fields.from_c(struct, field)


def _group(c_group: abi.moe_expert_group) -> ExpertGroup:
    """Return what is not the default."""
    default, own = abi.moe_expert_group(), {}
    for field in _fields(c_group):
        value = fields.from_c(c_group, field)
        if value != fields.from_c(default, field):
            own[field] = value
    return cast(ExpertGroup, own)
