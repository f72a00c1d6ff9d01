"""What the library says in C's words, said in Python's.

Its messages name constants (``MOE_ROUTER_HASH``), numbers of enums (``router = 3``), flags
(``training = 0``), NULL, fields of structs (``options.noise``) that are arguments here,
and functions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from . import abi
from .struct import Struct

_CONSTANT = re.compile(r"(?<![/\w])MOE_[A-Z0-9_]+\b")
_FIELD = re.compile(r"(?<![/\w])([a-z_0-9]+) = (-?\d+)(?![\w.])")
_OWNER = re.compile(r"(?<![/\w.\"'])(?:options|config|call|input)\.([a-z_]+)(?![\w.])")
_PART = re.compile(r"\boptions\.prepared_parts\[\d+\]\.(?:prepared\b|(?P<pattern>pattern) =)")
_LEAVE = re.compile(r"\bleave it (NONE|OWN)\b")
_NULL = re.compile(r"(?<![/\w])NULL\b")
# What else Python has another name for.
_OTHERS = {
    "moe_layer_prepare": "Layer.prepare",
    "moe_model_parameter": "Model.parameters",
    "moe_layer_plan": "Layer.plan",
    "moe_layer_bind_parameter": "Layer.bind",
    "moe_optimizer_bind_state": "bind_state",
    "moe_context_config": "Context",
    "moe_pretrained_family": "libmoe.pretrained_families",
    "moe_pretrained_config": "Model.from_pretrained",
    "moe_pretrained_options": "Model.from_pretrained",
    "moe_model_load": "Model.from_pretrained",
    "moe_prepared": "form",
    "MOE_PREPARED_..._A8 or _A16": "form, _a8 or _a16",
    "the text of a config.json": "what a config.json has, as a dict",
}
_OTHER = re.compile(rf"(?<![/\w])(?:{'|'.join(map(re.escape, _OTHERS))}|moe_experts_[a-z]+)\b")
_SWITCHES = {0: None, 1: False, 2: True}  # of a bias


def in_python(text: str) -> str:
    """Return a message with the words that an argument has in Python."""
    text = _CONSTANT.sub(lambda found: _constants().get(found[0], found[0]), text)
    text = _PART.sub(lambda found: "prepared: the pattern" if found["pattern"] else "prepared", text)
    text = _FIELD.sub(_word, text)
    text = _OWNER.sub(lambda found: found[1] if found[1] in _fields() else found[0], text)
    text = _OTHER.sub(lambda f: _OTHERS.get(f[0], f[0].replace("moe_", "libmoe.", 1)), text)
    text = _LEAVE.sub(lambda found: f"leave it {found[1].lower()!r}", text)
    return _NULL.sub("None", text)


def _word(found: re.Match[str]) -> str:
    field, number = found[1], int(found[2])
    words = _numbers().get(field, {}).get(number, set())
    return f"{field} = {next(iter(words))}" if len(words) == 1 else found[0]


@functools.cache
def _constants() -> Mapping[str, str]:
    """Return Python's word for each constant of an enum."""
    found: dict[str, str] = {}
    for name, table in vars(abi).items():
        if not name.isupper() or not isinstance(table, dict) or table is abi.FUNCTIONS:
            continue
        # Some prefixes leave out the last part of the enum's name: MOE_EXPERT_GATED is of EXPERT_KIND.
        for prefix in (name, name.rpartition("_")[0]):
            for word, number in table.items():
                told: Any = _SWITCHES[number] if table is abi.BIAS else word
                found.setdefault(f"MOE_{prefix}_{word.upper()}", repr(told))
    return found


@functools.cache
def _numbers() -> Mapping[str, Mapping[int, set[str]]]:
    """Return what each number of a field is in Python; more than one word where structs do not agree."""
    found: dict[str, dict[int, set[str]]] = {}
    for struct in _structs():
        for field, table in struct._words_.items():
            for word, number in table.items():
                told: Any = _SWITCHES[number] if table is abi.BIAS else word
                found.setdefault(field, {}).setdefault(number, set()).add(repr(told))
        for field in struct._flags_:
            for number in (0, 1):
                found.setdefault(field, {}).setdefault(number, set()).add(repr(bool(number)))
    return found


@functools.cache
def _fields() -> frozenset[str]:
    """Return the names of all fields."""
    return frozenset(field[0] for struct in _structs() for field in struct._fields_)


def _structs() -> list[type[Struct]]:
    made = [value for value in vars(abi).values() if isinstance(value, type)]
    return [each for each in made if issubclass(each, Struct) and "_fields_" in vars(each)]
