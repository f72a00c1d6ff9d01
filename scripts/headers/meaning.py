"""What an int32_t of the header is: a word of an enum, several of them added up, yes or no, or a number.

The comment has to begin with it:

    a moe_score ...                a word
    MOE_DTYPE_F32 or BF16 ...      one of these words, also behind a colon
    as moe_tensor.dtype ...        what that field is
    a sum of moe_unallocated ...   words added up
    1 = ...                        yes or no; of arguments also "0 or 1"
    a number ...                   a number
    0                              of fields called reserved
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum as Choice

from .reader import Enum, Function, Headers, Struct, joined, plain, refuse

_NAMES = r"MOE_[A-Z0-9_]+(?:(?:, or |, | or )[A-Z][A-Z0-9_]+)*"


class Kind(Choice):
    """What it is."""

    WORD = "word"
    SUM = "sum"
    FLAG = "flag"
    NUMBER = "number"
    RESERVED = "reserved"


@dataclass
class Meaning:
    """What one field or argument is."""

    kind: Kind
    enum: Enum | None = None
    words: tuple[str, ...] = ()  # those of the enum that it may be; none = all


def of_fields(headers: Headers, struct: Struct) -> dict[str, Meaning]:
    """Return what the int32_t fields of a struct are; refuse a field of which the header does not say it."""
    known = comments(headers, struct)
    found = {}
    for field in struct.fields:
        place = f"{struct.name}.{field.name}"
        if field.name != "struct_size" and not known[field.name]:
            refuse(place, "has no comment; say what it is behind it: /**< ... */")
        if field.type.name == "int32_t" and not field.type.stars:
            found[field.name] = _meaning(headers, place, known[field.name])
    return found


def comments(headers: Headers, struct: Struct) -> dict[str, str]:
    """Return what is said of each field, where need be by the struct whose fields of the same name it has."""
    same = re.search(r"Fields as those of the same name in (moe_\w+)", plain(struct.comment))
    others = {field.name: field.comment for field in headers.structs[same[1]].fields} if same else {}
    return {field.name: field.comment or others.get(field.name, "") for field in struct.fields}


def of_arguments(headers: Headers) -> dict[str, dict[str, Meaning]]:
    """Return what the int32_t arguments of all functions are.

    One that a function's own comment does not name is what it was in the function before that named it.
    """
    found: dict[str, dict[str, Meaning]] = {}
    said: dict[str, Meaning] = {}
    for function in headers.functions.values():
        described = arguments(function)
        for name, text in described.items():
            if any(
                p.name == name and p.type.name == "int32_t" and not p.type.stars for p in function.parameters
            ):
                said[name] = _meaning(headers, f"{function.name}, {name}", text)
        found[function.name] = {}
        for parameter in function.parameters:
            if parameter.type.name == "int32_t" and not parameter.type.stars:
                if parameter.name not in said:
                    refuse(
                        function.name,
                        f"nothing says what {parameter.name} is; add a line @param {parameter.name} ...",
                    )
                found[function.name][parameter.name] = said[parameter.name]
    return found


def arguments(function: Function) -> dict[str, str]:
    """Return what the comment says of each argument, without its [in] or [out]."""
    return {name: said for names, _, said in described(function) for name in names.split(", ")}


def described(function: Function) -> list[tuple[str, str, str]]:
    """Return what a comment has by argument: its name, or several; [in] or [out]; and what it is."""
    text = r"@param (\w+(?:, \w+)*) *((?:(?!@).|\n(?= {2,}\S))*)"
    found = []
    for names, said in re.findall(text, plain(function.comment)):
        how = re.match(r"(\[(?:in|out)[^]]*\])? *(.*)", joined(said))
        assert how
        found.append((names, how[1] or "", how[2]))
    return found


def behind(function: Function) -> str:
    """Return what stands behind one of several functions that share a comment."""
    return re.sub(r"^/\*\*< *| *\*/$", "", function.trailing)


def _meaning(headers: Headers, place: str, text: str) -> Meaning:
    if other := re.match(r"as (moe_\w+)\.(\w+)", text):
        fields = headers.structs[other[1]].fields if other[1] in headers.structs else []
        comment = next((f.comment for f in fields if f.name == other[2]), "")
        return _meaning(headers, f"{place}, which is {other[0]}", comment)
    if re.match(r"a sum of (moe_\w+)", text):
        return Meaning(Kind.SUM, _enum(headers, place, text.split()[3]))
    if re.match(r"a moe_\w+", text):
        return Meaning(Kind.WORD, _enum(headers, place, text.split()[1]))
    if re.match(r"1 ?[=:] ?\S|0 or 1\b", text):
        return Meaning(Kind.FLAG)
    if re.match(r"a number\b", text):
        return Meaning(Kind.NUMBER)
    if text == "0" and re.search(r"\.reserved\d*$", place):
        return Meaning(Kind.RESERVED)
    named = re.search(rf"(?:^|: )({_NAMES})", text)
    if named and len(names := re.split(r", or |, | or ", named[1])) > 1:
        for enum in headers.enums.values():
            members = [member.name for member in enum.members]
            full = [name if name.startswith("MOE_") else enum.prefix + name for name in names]
            if set(full) <= set(members):
                return Meaning(Kind.WORD, enum, tuple(name[len(enum.prefix) :].lower() for name in full))
        refuse(place, f"{named[1]} are not constants of one enum")
    refuse(
        place,
        f"its comment, {text!r}, does not begin with what it is: 'a moe_x', 'MOE_X_A or B', "
        "'a sum of moe_x', '1 = ...' or 'a number'",
    )


def _enum(headers: Headers, place: str, name: str) -> Enum:
    name = name.rstrip(".,;:")
    if name not in headers.enums:
        refuse(place, f"there is no enum {name}")
    return headers.enums[name]
