"""What fields of the structs may be by themselves: Sources/MoEABI/Boundary/FieldBounds.swift.

An int32_t is what meaning.py says.  Of other numbers the comment says it in one of these ways, and without
one any number will do by itself:

    1 to 2^31 - 1      whole numbers, both included; 0 too where "0 =", "0 or", "0 with" or "0 for" follows
    at most 16         0 to 16
    at least 1, >= 1   and finite; 0 too where "0 =" or "else 0" follows, or "of MOE_..." comes before
    > 0                likewise
    [0, 1), [0, 1]
    finite
    below 2^56

What one field may be beside another is code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import meaning
from .meaning import Kind
from .reader import Field, Headers, Struct, refuse

# By the library, or looked at one by one.
_FILLED = {"moe_tensor", "moe_stored_tensor", "moe_report", "moe_plan"}
_WHOLE = {"int32_t", "int64_t"}
_LAST = {"int32_t": 2**31 - 1, "int64_t": 2**63 - 1}


def swift(headers: Headers) -> str:
    """Return the rows of all structs that callers fill."""
    lines = [
        "import CMoE",
        "import MoE",
        "",
        "// What fields may be by themselves. Written by scripts/abi from the comments in include/*.h; "
        "do not edit.",
    ]
    given = _given(headers)
    for struct in headers.structs.values():
        if not struct.sized and struct.name not in given:
            continue
        rows = list(_rows(headers, struct)) if struct.name in given else []
        head = f"extension {struct.name}: Bounded {{"
        body = ["  func requireBounds(_ check: Bounds) throws(Fault) {", *rows, "  }", "}"]
        lines += ["", head, *body] if rows else ["", head + "}"]
    return "\n".join(lines) + "\n"


def _given(headers: Headers) -> set[str]:
    """Return the names of the structs that callers fill."""
    kinds = [p.type for function in headers.functions.values() for p in function.parameters]
    kinds += [field.type for struct in headers.structs.values() for field in struct.fields]
    return {kind.name for kind in kinds if kind.constant} - _FILLED | {"moe_clip_state"}


def _rows(headers: Headers, struct: Struct) -> Iterator[str]:
    meanings, said = meaning.of_fields(headers, struct), meaning.comments(headers, struct)
    for field in struct.fields:
        if field.name == "struct_size" or field.type.stars or field.type.length:
            continue
        found = meanings.get(field.name)
        if found is None or found.kind is Kind.NUMBER:
            row = _number(headers, f"{struct.name}.{field.name}", field, said[field.name])
        elif found.kind is Kind.FLAG:
            row = "flag({})"
        elif found.kind is Kind.RESERVED:
            row = "zero({})"
        elif found.enum is None or found.words:
            continue  # some of an enum's: what is missing and why, the code says
        else:
            numbers = sorted(found.enum.words.values())
            if found.kind is Kind.SUM:
                row = f'sum({{}}, of: "{found.enum.name}", {sum(numbers)})'
            else:
                if numbers != list(range(len(numbers))):
                    refuse(found.enum.name, "has gaps; bounds.py wants numbers one after another")
                row = f'word({{}}, of: "{found.enum.name}", last: {numbers[-1]})'
        if row:
            what = f'{field.name}, "{field.name}"'
            yield f"    try check.{row.format(what)}"


def _number(headers: Headers, place: str, field: Field, text: str) -> str | None:
    may_be_0 = re.search(r"\b0 (=|or|with|for)|\belse 0\b|\bof MOE_", text) is not None
    if field.type.name == "uint64_t":
        below = re.search(r"\bbelow 2\^(\d+)", text)
        return f"below({{}}, bits: {below[1]})" if below else None
    least = re.search(r"(?:>=|\bat least) (\d+)(?![\d.e])", text)
    if field.type.name in _WHOLE:
        both = re.search(r"(?<![\w.^])(\d+) to (2\^(\d+)( - 1)?|\d+)\b", text)
        most = re.search(r"\bat most (\d+)\b", text)
        last = _LAST[field.type.name]
        if both:
            first = int(both[1])
            last = 2 ** int(both[3]) - (1 if both[4] else 0) if both[3] else int(both[2])
        elif most:
            first, last = 0, int(most[1])
        elif least:
            first = int(least[1])
        else:
            return None
        names = [name for name in re.findall(r"\bMOE_\w+", text) if name in headers.macros]
        named = (headers.macros[name].value for name in names)
        special = [int(value.strip("()")) for value in named if re.fullmatch(r"\(-\d+\)", value)]
        first = min([first, *special, *([0] if may_be_0 else [])])
        if first > last:
            refuse(place, "its comment has no number within its bounds")
        return f"integer({{}}, {first}, {last if last < 2**63 - 1 else '.max'})"
    if "[0, 1)" in text:
        return "share({})"
    if "[0, 1]" in text:
        return "fraction({})"
    above = re.search(r"(?<![-=])> (\d+)", text)
    if (least or above) and may_be_0:
        return "number({}, atLeast: 0)"
    if least:
        return f"number({{}}, atLeast: {least[1]})"
    if above:
        return f"number({{}}, above: {above[1]})"
    return "finite({})" if re.search(r"\bfinite\b", text) else None
