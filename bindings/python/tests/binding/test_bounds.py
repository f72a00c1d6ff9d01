"""Whatever a header's comment excludes is refused, by the name of the field."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_calls import all_functions

from headers import reader
from libmoe._native import abi
from libmoe._native.library import lib
from libmoe._native.struct import Sized

HEADERS = reader.read()
OFTEN = {"moe_layer_config": "moe_layer_create", "moe_model_config": "moe_model_create"}
"""Of structs that several functions take, the one that is called."""
WRITTEN = (
    "moe_report",
    "moe_plan",
    "moe_pretrained_info",
    "moe_tensor",
    "moe_stored_tensor",
    "moe_calibrated",
)
"""Structs that the library fills, or whose numbers are looked at in lists."""


def whole(text: str) -> int:
    """Return the number that ``2^31 - 1`` is."""
    power = re.fullmatch(r"2\^(\d+)( - 1)?", text)
    return 2 ** int(power[1]) - bool(power[2]) if power else int(text)


def outside(field: reader.Field, text: str) -> list[Any]:
    """Return numbers that the comment excludes, as a reader of the header takes it."""
    word = re.match(r"a (moe_\w+)", text)
    if word:
        return [-1, max(HEADERS.enums[word[1]].words.values()) + 1]
    if re.match(r"1( =|:) ", text):
        return [-1, 2]
    if field.name.startswith("reserved"):
        return [1, -1]
    if "[0, 1)" in text:
        return [-0.5, 1.0, math.nan, math.inf]
    if "[0, 1]" in text:
        return [-0.5, 1.5, math.nan, math.inf]
    if field.type.name in ("double", "float"):
        if re.search(r"(>=|at least) [01]\b|> [01]\b", text):
            return [-1.0, math.nan, math.inf]
        return [math.nan, math.inf, -math.inf] if "finite" in text else []
    bits = re.search(r"below 2\^(\d+)", text)
    if bits:
        return [2 ** int(bits[1]), 2**64 - 1]
    limits = re.search(r"(?<![\w^])(\d+) to (2\^\d+(?: - 1)?|\d+)\b", text)
    if limits and field.type.name == "int64_t":
        return [-1, whole(limits[2]) + 1]
    return []


def cases() -> Iterator[tuple[str, str]]:
    for struct in HEADERS.structs.values():
        if struct.name not in WRITTEN and issubclass(getattr(abi, struct.name), Sized):
            for field in struct.fields:
                if outside(field, field.comment) and not field.type.stars:
                    yield struct.name, field.name


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By the struct that they take: a function, and which of its arguments that is."""
    found: dict[str, Any] = {}
    for function in all_functions(Path(tmp_path_factory.mktemp("files"))):
        for place, argument in enumerate(function.good()):
            name = type(argument).__name__
            if isinstance(argument, ctypes.Structure) and OFTEN.get(name, function.name) == function.name:
                found.setdefault(name, (function, place))
    return found


@pytest.mark.parametrize(("struct", "name"), cases())
def test_what_a_comment_excludes_is_refused(struct: str, name: str, functions: dict[str, Any]) -> None:
    function, place = functions[struct]
    assert function.attempt(function.good(), "good") == 0
    (field,) = (f for f in HEADERS.structs[struct].fields if f.name == name)
    for wrong in outside(field, field.comment):
        arguments = function.good()
        arguments[place] = type(arguments[place]).from_buffer_copy(arguments[place])  # some are used again
        setattr(arguments[place], name, wrong)
        assert function.attempt(arguments, f"{name} = {wrong}") == 1
        message = lib.moe_last_error_message().decode()
        assert re.search(rf"\b{name}\b", message), (wrong, message)


def test_many_fields_say_what_they_may_be() -> None:
    assert len(list(cases())) > 150
