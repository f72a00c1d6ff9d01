"""The MOE_..._INIT macros, and the functions that fill a struct as its macro does.

A macro has a value for each field, as C99 and C++17 both take them without a warning.  Those that it does
not reach are 0.  Macros are written into the headers themselves: a new field needs a value in its macro only
where its default is not 0.
"""

from __future__ import annotations

import re

from .reader import Field, Headers, Struct, Type, refuse

_WIDTH = 125
_SWIFT_WIDTH = 120


def name_of(struct: Struct) -> str:
    """Return what the struct's macro is called."""
    return f"{struct.name.upper()}_INIT"


def values(headers: Headers, struct: Struct) -> dict[str, str]:
    """Return the value of every field, the size left out; refuse what cannot be one of the field."""
    name = name_of(struct)
    if name not in headers.macros:
        refuse(struct.name, f"has a struct_size and no macro {name}")
    given = re.sub(r"^\{ *|,? *\}$", "", headers.macros[name].value)
    listed = re.findall(r"\{[^}]*\}|[^,{}]+", given)
    listed = [value.strip() for value in listed if value.strip()]
    if listed[0] != f"sizeof({struct.name})":
        refuse(name, f"begins with {listed[0]}; it has to be sizeof({struct.name})")
    if len(listed) > len(struct.fields):
        refuse(name, f"has {len(listed)} values, and {struct.name} {len(struct.fields)} fields")
    found = {}
    for place, field in enumerate(struct.fields[1:], 1):
        value = listed[place] if place < len(listed) else zero(field.type)
        if not _fits(headers, field, value):
            refuse(name, f"gives {field.name} the value {value}, which is none of {field.declared}")
        found[field.name] = value
    return found


def zero(kind: Type) -> str:
    """Return 0 as a value of this type."""
    if kind.length:
        return "{ " + ", ".join(["0"] * kind.length) + " }"
    if kind.stars:
        return "NULL"
    return {"float": "0.0f", "double": "0.0"}.get(kind.name, "0")


def _fits(headers: Headers, field: Field, value: str) -> bool:
    if field.type.length or field.type.stars:
        return value == zero(field.type)
    if field.type.name == "float":
        return bool(re.fullmatch(r"-?[\d.]+(e-?\d+)?f", value))
    if field.type.name == "double":
        return bool(re.fullmatch(r"-?(\d+\.\d*(e-?\d+)?|\d+e-?\d+)", value))
    constants = {member.name for enum in headers.enums.values() for member in enum.members}
    return bool(re.fullmatch(r"-?\d+", value)) or value in constants


def macro(headers: Headers, struct: Struct) -> str:
    """Return the macro as it has to stand in the header."""
    listed = [f"sizeof({struct.name})", *values(headers, struct).values()]
    head = f"#define {name_of(struct)}"
    if len(line := f"{head} {{ {', '.join(listed)} }}") <= _WIDTH:
        return line
    if len(line := f"  {{ {', '.join(listed)} }}") <= _WIDTH:
        return f"{head} \\\n{line}"
    lines = ["   "]
    for value in listed:
        if len(lines[-1]) + len(value) + 5 > _WIDTH:
            lines.append("   ")
        lines[-1] += f" {value},"
    lines[-1] = lines[-1].rstrip(",")
    return " \\\n".join([head, "  {", *lines, "  }"])


def written(headers: Headers, text: str) -> str:
    """Return a header's text with its macros as they have to be."""
    for struct in headers.structs.values():
        name = name_of(struct)
        if struct.sized and f"#define {name} " in text:
            text = text.replace(headers.macros[name].code, macro(headers, struct))
    return text


def defaults(headers: Headers, struct: Struct) -> dict[str, int | float]:
    """Return the values of a struct's macro that are not 0."""
    members = {m.name: m.value for enum in headers.enums.values() for m in enum.members}
    found: dict[str, int | float] = {}
    for field in struct.fields[1:]:
        text = values(headers, struct)[field.name]
        if field.type.length or field.type.stars:
            continue
        value: int | float = members.get(text, 0)
        if text not in members:
            value = float(text.rstrip("f")) if field.type.name in ("float", "double") else int(text)
        if value != 0:
            found[field.name] = value
    return found


def _head(name: str, parameters: str) -> list[str]:
    """Return a Swift function's first lines, as its formatter breaks them."""
    line = f"public func {name}({parameters}) {{"
    return [line] if len(line) <= _SWIFT_WIDTH else [f"public func {name}(", f"  {parameters}", ") {"]


def swift(headers: Headers) -> str:
    """Return the moe_..._init functions of all structs, and what they fill them with."""
    lines = [
        "import CMoE",
        "",
        "// Structs as their macros have them, which Swift cannot import. "
        "Written by scripts/abi from include/*.h; do not edit.",
    ]
    for struct in headers.structs.values():
        if not struct.sized:
            continue
        name = f"{struct.name}_init"
        if name not in headers.functions:
            refuse(struct.name, f"has a struct_size and no function {name}")
        given = defaults(headers, struct)
        if given:
            lines += ["", f"extension {struct.name} {{", f"  static var standard: {struct.name} {{"]
            lines += [
                f"    var own = {struct.name}()",
                f"    own.struct_size = MemoryLayout<{struct.name}>.size",
            ]
            lines += [
                *(f"    own.{field} = {value}" for field, value in given.items()),
                "    return own",
                "  }",
                "}",
            ]
        value = ".standard" if given else f"{struct.name}()"
        lines += [
            "",
            f'@implementation @_cdecl("{name}")',
            *_head(name, f"_ given: UnsafeMutablePointer<{struct.name}>?, _ struct_size: Int"),
            f"  initialise(given, struct_size, {value})",
            "}",
        ]
    return "\n".join(lines) + "\n"
