"""What Python has of the headers: libmoe/_native/abi.py, the types of words and the functions of presets."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from . import initializers, meaning
from .meaning import Kind, Meaning
from .reader import Enum, Function, Headers, Struct, Type, plain, refuse

NOTE = "Written by scripts/abi from include/*.h; do not edit."
_WIDTH = 110
_NUMBERS = {
    "int32_t": "c_int32",
    "unsigned": "c_uint",
    "int64_t": "c_int64",
    "uint64_t": "c_uint64",
    "size_t": "c_size_t",
    "float": "c_float",
    "double": "c_double",
}
_PRESETS = '''\
They are the model's own, sizes included; what is passed takes their place, so
``libmoe.Layer(**libmoe.presets.mixtral(hidden_size=64, intermediate_size=256))`` is a small Mixtral layer.
``n_groups=None`` leaves out a model's groups.  ``docs/presets.md`` lists what each one sets and from where.

Every function takes keyword arguments of :class:`Layer`, whose values are not looked at until it gets them,
and returns a dict: what the model has that differs from the defaults of :class:`Layer`, and these.

Examples
--------
>>> import libmoe
>>> options = libmoe.presets.mixtral(hidden_size=64, intermediate_size=256)
>>> options["n_experts"], options["top_k"], options["expert_kind"], options["activation"]
(8, 2, 'gated', 'silu')
>>> layer = libmoe.Layer(**options)
"""

from __future__ import annotations

from typing import Any

from . import _preset
from .words import Layout

#: The layouts that files of each preset's model have, the published one first; ``"libmoe"`` holds all.
LAYOUTS: dict[str, tuple[Layout, ...]] = {'''
_ELEMENTS = {"float": "f32", "int32_t": "i32", "int64_t": "i64", "uint8_t": "mask"}


def camel(name: str) -> str:
    """``weight_dtype`` -> ``WeightDType``."""
    return "".join("DType" if word == "dtype" else word.capitalize() for word in name.split("_"))


def constant(enum: Enum) -> str:
    """``moe_shared_gate`` -> ``SHARED_GATE``."""
    return enum.name[4:].upper()


def abi(headers: Headers) -> str:
    """Return the module of ctypes declarations."""
    declared = meaning.of_arguments(headers)
    parts = [
        f'"""The C declarations of both headers for ctypes.  {NOTE}\n\n'
        "Arrays and places for numbers are passed by address (``c_void_p``); elements and shape of arrays\n"
        'are checked where a numpy array enters, in ``check.py``.\n"""\n',
        "from __future__ import annotations\n",
        "from ctypes import (",
        *(f"    {name}," for name in ("CFUNCTYPE", "POINTER", "Structure", "c_char_p")),
        *(f"    {name}," for name in sorted({*_NUMBERS.values(), "c_void_p"})),
        ")",
        "from typing import Any\n",
        "from .struct import Sized, Status, Struct\n",
        "# Constants.",
        *(f"{name[4:]} = {value}" for name, value in _constants(headers)),
        "\n# Enums: the constant in C is the prefix and the word, MOE_MATMUL_AUTO.",
        *(_table(f"{constant(enum)} = ", enum.words.items()) for enum in headers.enums.values()),
        "\n# Opaque handles: a type for each, so that ctypes refuses a tape where a layer belongs.",
        *(f"class {h.name}(Structure):\n{_docstring(h.comment)}\n\n" for h in headers.handles.values()),
        *(_struct(headers, struct) for struct in headers.structs.values()),
        "# Words of arguments, where only some of an enum's are taken.",
        "ARGUMENTS: dict[str, dict[str, dict[str, int]]] = {",
        *(line for name, known in declared.items() for line in _argument_words(name, known)),
        "}\n",
        "# What a function returns, and what it takes.",
        "FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {",
        *(_function(headers, function) for function in headers.functions.values()),
        "}\n",
    ]
    return "\n".join(parts)


def words(headers: Headers) -> str:
    """Return the module of ``Literal`` types."""
    parts = [
        f'"""The words that options take: those of the enums in C, without their prefix.\n\n{NOTE}\n"""\n',
        "from __future__ import annotations\n",
        "from typing import Literal\n",
    ]
    for name, listed in literals(headers).items():
        line = f"{name} = Literal[{', '.join(map(_quoted, listed))}]"
        if len(line) > _WIDTH:
            line = _wrapped(f"{name} = Literal[", map(_quoted, listed), "]")
        parts.append(line)
    return "\n".join(parts) + "\n"


def literals(headers: Headers) -> dict[str, tuple[str, ...]]:
    """Return the names of types and their words: of each enum, and of what takes some words of one alone."""
    found = {camel(enum.name[4:]): tuple(enum.words) for enum in headers.enums.values()}
    places = [(s.name, meaning.of_fields(headers, s)) for s in headers.structs.values()]
    for name, known in meaning.of_arguments(headers).items():
        said = meaning.arguments(headers.functions[name])
        places.append((name, {argument: known[argument] for argument in known if argument in said}))
    for owner, known in places:
        for field, meant in known.items():
            if not meant.words:
                continue
            for name in (camel(field), camel(re.sub("^moe_|_config$", "", owner)) + camel(field)):
                if found.setdefault(name, meant.words) == meant.words:
                    break
            else:
                refuse(f"{owner}.{field}", f"words.{name} is taken; give the field another name")
    return found


def presets(headers: Headers) -> str:
    """Return the module of presets: a function for each model."""
    parts = [
        f'"""Layers of known models: each function returns keyword arguments for a layer.\n\n{NOTE}\n\n'
        + _PRESETS,
        *(f'    "{name}": {_tuple(layouts(headers, f))},' for name, f in headers.presets.items()),
        "}",
    ]
    for name, function in headers.presets.items():
        title = re.split(r"[;.]? +(?:with n_groups|Its files)", meaning.behind(function))[0].rstrip(".;")
        parts.append(
            f'\n\ndef {name}(**overrides: Any) -> dict[str, Any]:\n    """Return the options of {title}."""\n'
            f'    return _preset.options("{name}", overrides)'
        )
    return "\n".join(parts) + "\n"


def layouts(headers: Headers, preset: Function) -> tuple[str, ...]:
    """Return the layouts that files of a preset's model have."""
    found = re.search(r"Its files: ([A-Z0-9_, ]+)$", meaning.behind(preset))
    if found is None:
        refuse(preset.name, "write behind it what it is: /**< NAME.  Its files: LAYOUT, LAYOUT */")
    listed = tuple(name.lower() for name in found[1].strip().split(", "))
    for name in listed:
        if name not in headers.enums["moe_layout"].words:
            refuse(preset.name, f"there is no layout {name.upper()}")
    return listed


def _constants(headers: Headers) -> list[tuple[str, int]]:
    found = [(m.name, m.value.strip("()")) for m in headers.macros.values()]
    return [(n, int(v)) for n, v in found if re.fullmatch(r"-?\d+", v) and not n.startswith("MOE_VERSION")]


def _struct(headers: Headers, struct: Struct) -> str:
    known = meaning.of_fields(headers, struct)
    callbacks, lines = [], []
    for field in struct.fields:
        kind = _ctype(headers, field.type)
        if field.type.callback:
            returned, taken = field.type.callback
            kind = f"{struct.name}_{field.name}"
            types = [_returned(headers, returned), *(_ctype(headers, each) for each in taken)]
            line = f"{kind} = CFUNCTYPE({', '.join(types)})"
            wrapped = _wrapped(f"{kind} = CFUNCTYPE(", types, ")")
            callbacks.append((line if len(line) <= _WIDTH else wrapped) + "\n")
        lines.append(f'        ("{field.name}", {kind}),')
    base = "Sized" if struct.sized else "Struct"
    parts = ["".join(callbacks)] if callbacks else []
    parts += ["", f"class {struct.name}({base}):", _docstring(struct.comment), ""]
    parts += ["    _fields_ = [", *lines, "    ]"]
    defaults = initializers.defaults(headers, struct) if struct.sized else {}
    if defaults:
        parts.append(_table("    _defaults_ = ", defaults.items()))
    parts += [*_meanings(known), *_sizes(struct), *_arrays(struct)]
    return "\n".join(parts)[0 if callbacks else 1 :] + "\n\n"


def _meanings(known: dict[str, Meaning]) -> list[str]:
    words = [(name, m) for name, m in known.items() if m.kind is Kind.WORD]
    sums = [(name, m) for name, m in known.items() if m.kind is Kind.SUM]
    flags = [name for name, m in known.items() if m.kind is Kind.FLAG]
    parts = []
    for title, listed in (("_words_", words), ("_sums_", sums)):
        if listed:
            parts += [
                f"    {title} = {{",
                *(f'        "{name}": {_words(m)},' for name, m in listed),
                "    }",
            ]
    if flags:
        line = f"    _flags_ = frozenset({{{', '.join(map(_quoted, flags))}}})"
        wrapped = _wrapped("    _flags_ = frozenset({", map(_quoted, flags), "})")
        parts.append(line if len(line) <= _WIDTH else wrapped)
    return parts


def _sizes(struct: Struct) -> list[str]:
    """Return which fields are bytes; ctypes has one type for them and for uint64_t."""
    names = [f.name for f in struct.fields if f.type.name == "size_t" and f.name != "struct_size"]
    return [f"    _bytes_ = frozenset({{{', '.join(map(_quoted, names))}}})"] if names else []


def _arrays(struct: Struct) -> list[str]:
    """Return element type and shape of the arrays whose comments begin with it: ``[T,K], nullable``."""
    lines = []
    for field in struct.fields:
        shape = re.match(r"(?:\[out\] )?\[([A-Za-z](?:,[A-Za-z])*)\]", field.comment)
        if shape and field.type.stars == 1 and field.type.name in _ELEMENTS:
            written = "" if field.type.constant else ", write"
            kind = f'"{_ELEMENTS[field.type.name]}{written}"'
            lines.append(f'        "{field.name}": ({kind}, "{shape[1].replace(",", "")}"),')
    return ["    _arrays_ = {", *lines, "    }"] if lines else []


def _words(meant: Meaning) -> str:
    assert meant.enum
    if not meant.words:
        return constant(meant.enum)
    return "{" + ", ".join(f'"{word}": {meant.enum.words[word]}' for word in meant.words) + "}"


def _argument_words(function: str, known: dict[str, Meaning]) -> list[str]:
    some = [f'"{name}": {_words(m)}' for name, m in known.items() if m.words]
    return [f'    "{function}": {{{", ".join(some)}}},'] if some else []


def _ctype(headers: Headers, kind: Type) -> str:
    if kind.length:
        return f"{_NUMBERS[kind.name]} * {kind.length}"
    if not kind.stars:
        if kind.name == "moe_status":
            return "Status"
        return "None" if kind.name == "void" else _NUMBERS[kind.name]
    if kind.name in headers.structs or kind.name in headers.handles:
        return "POINTER(" * kind.stars + kind.name + ")" * kind.stars
    return "c_char_p" if kind.name == "char" and kind.stars == 1 else "c_void_p"


def _returned(headers: Headers, kind: Type) -> str:
    """Return the type of what a callback returns: of text its address, since ctypes keeps no bytes."""
    found = _ctype(headers, kind)
    return "c_void_p" if found == "c_char_p" else found


def _function(headers: Headers, function: Function) -> str:
    returned = _ctype(headers, function.returns)
    taken = [_ctype(headers, parameter.type) for parameter in function.parameters]
    line = f'    "{function.name}": ({returned}, [{", ".join(taken)}]),'
    if len(line) <= _WIDTH:
        return line
    return _wrapped(f'    "{function.name}": ({returned}, [', taken, "]),")


def _docstring(comment: str) -> str:
    """Return the first sentence of a comment, for a class."""
    text = " ".join(plain(comment).split())
    sentence = re.match(r".*?[.:;](?= |$)", text)
    said = (sentence[0] if sentence else text).rstrip(".:;") + "."
    lines = textwrap.wrap(f'"""{said}"""', _WIDTH - 4)
    return textwrap.indent("\n".join(lines), "    ")


def _table(head: str, items: Iterable[tuple[str, object]]) -> str:
    listed = [f"{_quoted(name)}: {value}" for name, value in items]
    line = f"{head}{{{', '.join(listed)}}}"
    return line if len(line) <= _WIDTH else _wrapped(head + "{", listed, "}")


def _wrapped(head: str, listed: Iterable[str], tail: str) -> str:
    indent = " " * (len(head) - len(head.lstrip()))
    lines = [indent + "   "]
    for item in listed:
        if len(lines[-1]) + len(item) + 2 > _WIDTH:
            lines.append(indent + "   ")
        lines[-1] += f" {item},"
    return "\n".join([head, *lines, indent + tail])


def _tuple(listed: tuple[str, ...]) -> str:
    return "(" + ", ".join(map(_quoted, listed)) + ("," if len(listed) == 1 else "") + ")"


def _quoted(word: str) -> str:
    return f'"{word}"'
