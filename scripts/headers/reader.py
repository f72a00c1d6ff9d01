"""The C headers taken apart: sections, enums, structs, handles, functions, constants, and their comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Union

ROOT = Path(__file__).resolve().parents[2]
_NAMES = ("moe.h", "moe_experts.h", "moe_model.h", "moe_pretrained.h", "moe_communicator.h", "moe_ranks.h")
PATHS = [ROOT / "include" / name for name in _NAMES]


class HeaderError(Exception):
    """The header does not say something, or says it in a way that nobody can read."""


def refuse(place: str, text: str) -> NoReturn:
    """Stop, naming the place and what it wants."""
    raise HeaderError(f"{place}: {text}")


@dataclass
class Type:
    """A type as C spells it: ``const float *`` is float with one star."""

    name: str
    stars: int = 0
    length: int = 0  # of an array within a struct; 0 = none
    constant: bool = False
    callback: tuple[Type, list[Type]] | None = None  # what a pointer to a function returns and takes


@dataclass
class Member:
    """A constant of an enum."""

    name: str
    value: int
    comment: str
    heading: str  # a comment before it that is about all that follow


@dataclass
class Enum:
    """``typedef enum moe_x { MOE_X_A = 0, ... } moe_x;``."""

    name: str
    members: list[Member]
    comment: str
    code: str

    @property
    def prefix(self) -> str:
        """What its constants begin with: as many words of its name as all of them share."""
        words = self.name.upper().split("_")
        for count in range(len(words), 0, -1):
            prefix = "_".join(words[:count]) + "_"
            if all(member.name.startswith(prefix) for member in self.members):
                return prefix
        refuse(self.name, "its constants do not begin as it is called")

    @property
    def words(self) -> dict[str, int]:
        """Its constants in lower case, without the prefix."""
        return {member.name[len(self.prefix) :].lower(): member.value for member in self.members}


@dataclass
class Field:
    """A field of a struct."""

    name: str
    type: Type
    comment: str
    declared: str  # as the header has it
    heading: str  # a comment before it that is about all that follow


@dataclass
class Struct:
    """``typedef struct moe_x { ... } moe_x;``."""

    name: str
    fields: list[Field]
    comment: str
    code: str

    @property
    def sized(self) -> bool:
        """Whether it says how large it was when it was compiled."""
        return self.fields[0].name == "struct_size"


@dataclass
class Handle:
    """``typedef struct moe_x moe_x;``: what it is, is the library's business."""

    name: str
    comment: str
    code: str


@dataclass
class Parameter:
    """An argument of a function."""

    name: str
    type: Type
    declared: str


@dataclass
class Function:
    """A function of the library."""

    name: str
    returns: Type
    parameters: list[Parameter]
    comment: str
    code: str
    trailing: str = ""  # what is said of this one alone, where several share a comment


@dataclass
class Macro:
    """``#define MOE_X value``."""

    name: str
    value: str
    comment: str
    code: str


@dataclass
class Text:
    """A comment that belongs to no declaration."""

    comment: str


Item = Union[Enum, Struct, Handle, Function, Macro, Text]


@dataclass
class Section:
    """What stands between two titles."""

    title: str
    header: str
    items: list[Item] = field(default_factory=list)


class Headers:
    """All of both headers, by kind and by name."""

    def __init__(self, sections: list[Section]) -> None:
        self.sections = sections
        items = [item for section in sections for item in section.items]
        self.enums = {item.name: item for item in items if isinstance(item, Enum)}
        self.structs = {item.name: item for item in items if isinstance(item, Struct)}
        self.handles = {item.name: item for item in items if isinstance(item, Handle)}
        self.functions = {item.name: item for item in items if isinstance(item, Function)}
        self.macros = {item.name: item for item in items if isinstance(item, Macro)}

    @property
    def presets(self) -> dict[str, Function]:
        """Functions that fill in a known model's configuration, by the model."""
        start = "moe_preset_"
        return {name[len(start) :]: f for name, f in self.functions.items() if name.startswith(start)}


def read(texts: dict[str, str] | None = None) -> Headers:
    """Read the headers, or other texts of the same kind by the names of their files."""
    if texts is None:
        texts = {path.name: path.read_text() for path in PATHS}
    return Headers([section for name, text in texts.items() for section in _sections(name, text)])


def plain(comment: str) -> str:
    """Return a comment's text: without its marks, lines indented as they are to each other."""
    inner = re.sub(r"^/\*\**<?|\*/$", "", comment)
    first, *others = inner.split("\n")
    lines = [first.strip()]
    for line in others:
        lines.append(re.sub(r"^ *\*( |$)", "", line) if re.match(r" *\*", line) else line.strip())
    return "\n".join([lines[0], textwrap.dedent("\n".join(lines[1:]))]).strip("\n ")


def joined(comment: str) -> str:
    """Return a field's comment as one line."""
    return " ".join(plain(comment).split())


def split_type(declaration: str) -> tuple[Type, list[str]]:
    """``const float *x`` -> float with a star, x.  ``double a, b`` has two names."""
    declaration = " ".join(declaration.split())
    callback = re.fullmatch(r"(const )?(\w+) (\**)\(\*(\w+)\)\((.*)\)", declaration)
    if callback:
        constant, kind, stars, name, arguments = callback.groups()
        # At commas outside of the parentheses of what are functions themselves.
        taken = [split_type(argument)[0] for argument in re.split(r",(?![^(]*\))", arguments)]
        returned = Type(kind, len(stars), constant=bool(constant))
        return Type("function", 1, callback=(returned, taken)), [name]
    found = re.fullmatch(r"(const )?(\w+) (\**)(\w+)(?:\[(\d+)\])?((?:, \w+)*)", declaration)
    if found is None:
        refuse(declaration, "is a declaration that scripts/headers/reader.py does not understand")
    constant, kind, stars, name, length, others = found.groups()
    kind_of = Type(kind, len(stars), int(length or 0), bool(constant))
    return kind_of, [name, *others.split(", ")[1:]]


def _sections(header: str, text: str) -> Iterator[Section]:
    section = Section("", header)
    comment, shared = "", ""
    for kind, code, gap in _pieces(text):
        if kind == "comment" and re.match(r"/\* -{20}", code):
            if comment:
                section.items.append(Text(comment))
            yield section
            section, comment, shared = Section(plain(code.replace("-", "")).strip(), header), "", ""
        elif kind == "comment" and code.startswith("/**<"):
            item = section.items[-1] if section.items else None
            if not isinstance(item, Function):
                refuse(joined(code), "stands behind nothing it could belong to")
            item.trailing = joined(code)
        elif kind == "comment":
            if comment:
                section.items.append(Text(comment))
            comment = code
            if not code.startswith("/**"):
                section.items.append(Text(comment))
                comment = ""
        else:
            if gap and not comment:
                shared = ""
            item = _declaration(code, comment or shared)
            if item is not None:
                section.items.append(item)
            shared, comment = (comment or shared), ""
    yield section


def _pieces(text: str) -> Iterator[tuple[str, str, bool]]:
    """Yield comments, directives and declarations, and whether an empty line stands before each."""
    place = 0
    while True:
        blank = re.compile(r"\s*").match(text, place)
        assert blank
        gap, place = blank[0].count("\n") > 1, blank.end()
        if place == len(text):
            return
        start = place
        if text.startswith("/*", place):
            place = text.index("*/", place) + 2
            yield "comment", text[start:place], gap
        elif text[place] == "#":
            found = re.compile(r"(?:[^\n]*\\\n)*[^\n]*").match(text, place)
            assert found
            place = found.end()
            yield "directive", found[0], gap
        elif text.startswith('extern "C" {', place) or text[place] == "}":
            place = text.index("\n", place)
        else:
            place = _end_of_declaration(text, place)
            yield "declaration", text[start:place], gap


def _end_of_declaration(text: str, place: int) -> int:
    depth = 0
    while True:
        if text.startswith("/*", place):
            place = text.index("*/", place) + 2
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        place += 1
        if text[place - 1] == ";" and depth == 0:
            return place


def _bare(code: str) -> str:
    return " ".join(re.sub(r"/\*.*?\*/", " ", code, flags=re.DOTALL).split())


def _declaration(code: str, comment: str) -> Item | None:
    if code.startswith("#"):
        macro = re.match(r"#define (MOE_\w+) ((?:.|\n)+)", code)
        if macro is None or macro[1] in ("MOE_API", "MOE_CHECK"):
            return None
        return Macro(macro[1], " ".join(macro[2].replace("\\\n", " ").split()), comment, code)
    bare = _bare(code)
    handle = re.fullmatch(r"typedef struct (\w+) \1;", bare)
    if handle:
        return Handle(handle[1], comment, code)
    opened = re.match(r"typedef (enum|struct) (\w+) \{", code)
    if opened:
        body = code[opened.end() : code.rindex("}")]
        if opened[1] == "enum":
            return Enum(opened[2], _members(opened[2], body), comment, code)
        return Struct(opened[2], _fields(body), comment, code)
    found = re.fullmatch(r"MOE_API (?:MOE_CHECK )?((?:const )?\w+ \**)(\w+)\((.*)\);", bare)
    if found is None:
        refuse(bare, "is a declaration that scripts/headers/reader.py does not understand")
    returns = split_type(found[1] + "x")[0]
    parameters = []
    for declared in [] if found[3] == "void" else found[3].split(","):
        kind, names = split_type(declared)
        parameters.append(Parameter(names[0], kind, declared.strip()))
    return Function(found[2], returns, parameters, comment, code)


def _commented(body: str, ends: str) -> Iterator[tuple[str, str, str]]:
    """Yield what ends in one of these signs, and its comment: the one behind it, or else before it."""
    pieces = re.findall(rf"/\*.*?\*/|[^{ends}/]+[{ends}]?", body, flags=re.DOTALL)
    code, before, heading = "", "", ""
    for piece in [piece.strip() for piece in pieces if piece.strip()]:
        if piece.startswith("/**<"):
            yield code, piece, heading
            code = before = heading = ""
        elif piece.startswith("/*"):
            if code:
                yield code, before, heading
                code = before = heading = ""
            if piece.startswith("/**"):
                before = piece
            else:
                heading = piece
        else:
            if code:
                yield code, before, heading
                before = heading = ""
            code = piece.rstrip(ends)
    if code:
        yield code, before, heading


def _members(enum: str, body: str) -> list[Member]:
    members = []
    for code, comment, heading in _commented(body, ","):
        found = re.fullmatch(r"(\w+) = (\d+)", code)
        if found is None:
            refuse(enum, f"{code!r} has no number")
        members.append(Member(found[1], int(found[2]), joined(comment), heading))
    return members


def _fields(body: str) -> list[Field]:
    fields = []
    for code, comment, heading in _commented(body, ";"):
        kind, names = split_type(code)
        declared = " ".join(code.split())
        fields += [Field(name, kind, joined(comment), declared, heading) for name in names]
    return fields
