"""What Python's reports hold: libmoe/_native/reports.py, from the fields of moe_report."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from .reader import Field, Headers, joined

_WIDTH = 110
_NUMBERS = {"float": "float", "int64_t": "int"}
_ARRAYS = {"float": "float32", "int32_t": "int32", "int64_t": "int64"}
_SHAPE = re.compile(r"\[([A-Za-z](?:,[A-Za-z])*)\], nullable: *")
_LOSSES = "losses"  # [n_losses] in C, and by name in Python
_HEAD = '''\
"""What forward tells about a call: its losses, and where the tokens went.

{note}
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .._repr import Loads
'''
_SUMMARY = """\
Losses and loads of one forward call, or of several together.

    T tokens, E experts, K choices a token.
"""
_REPORT = """\
A :class:`Summary` of one forward call, with the choices.

    C = K, or E of ``"expert_choice"``; B sequences, whose arrays are empty without a ``sequence_length``.
"""


def reports(headers: Headers, note: str) -> str:
    """Return the module: numbers and arrays [E] in Summary, the other arrays in Report."""
    fields = [f for f in headers.structs["moe_report"].fields if f.name not in ("struct_size", "reserved")]
    summary = [f for f in fields if not f.type.stars or _shape(f) == "E"]
    report = [f for f in fields if f not in summary]
    summary.sort(key=lambda f: f.type.stars)
    report.sort(key=lambda f: (_shape(f).startswith("B"), f.name != _LOSSES))  # what has a default comes last
    return "\n".join(
        [
            _HEAD.format(note=note),
            *_class(headers, "Summary", "Loads", _SUMMARY, summary),
            *_class(headers, "Report", "Summary", _REPORT, report),
        ]
    )


def _class(headers: Headers, name: str, base: str, about: str, fields: list[Field]) -> Iterator[str]:
    yield f'\n@dataclass(frozen=True, repr=False)\nclass {name}({base}):\n    """{about}'
    yield "    Attributes\n    ----------"
    for f in fields:
        kind = f"ndarray of {_ARRAYS[f.type.name]}, [{', '.join(_shape(f))}]" if _shape(f) else _type(f)
        said = _in_python(headers, _SHAPE.sub("", joined(f.comment)).replace("[n_losses], nullable: ", ""))
        yield f"    {f.name} : {kind}"
        yield textwrap.fill(said, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    yield '    """\n'
    for f in fields:
        empty = "0" if len(_shape(f)) == 1 else "(0, 0)"
        factory = f" = field(default_factory=lambda: np.empty({empty}, np.{_ARRAYS[f.type.name]}))"
        yield f"    {f.name}: {_type(f)}{factory if _shape(f).startswith('B') else ''}"
    yield ""


def _shape(f: Field) -> str:
    found = _SHAPE.match(f.comment)
    return found[1].replace(",", "") if found else ""


def _type(f: Field) -> str:
    if f.name == _LOSSES:
        return "dict[str, float]"
    return f"NDArray[np.{_ARRAYS[f.type.name]}]" if f.type.stars else _NUMBERS[f.type.name]


def _in_python(headers: Headers, text: str) -> str:
    """Return a comment with the words that Python has for the constants and names of C."""
    for enum in headers.enums.values():
        for word in enum.words:
            text = re.sub(rf"\b{enum.prefix}{word.upper()}\b", f'``"{word}"``', text)
    text = re.sub(r"\b(?:moe_\w+\.|moe_)(\w+)", r"``\1``", text)
    sentence = text.rstrip(".") + "."
    return sentence if "_" in sentence.split()[0] else sentence[0].upper() + sentence[1:]
