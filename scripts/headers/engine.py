"""The numbers of the engine's enums, which never see the public headers, beside those of the headers.

An enum says whose numbers it has, in the comment before it or at its beginning: ``Numbers as in moe_score``.
Its cases are called as the constants are, or name theirs in a comment: ``case before = 0  // PRE``.  The
constant 0 may be missing, which the boundary then takes for none; others only where the comment says "Some
numbers as in".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .reader import Enum, Headers, refuse

_SAID = re.compile(r"([Nn]umbers|[Ss]ome numbers) as in (moei?_\w+)")
_SWIFT = re.compile(
    r"((?: *///?[^\n]*\n)*)[^\n]*\benum (\w+): U?Int32(?:, \w+)* \{\n((?: *///?[^\n]*\n)*)((?:.|\n)*?\n *\})"
)


def check(headers: Headers, sources: Path) -> int:
    """Refuse an enum with other numbers than the header's; return how many there are."""
    count = 0
    inner: dict[str, Enum] = {}
    header = sources / "CShims/include/moei.h"
    for said, name, body in re.findall(r"(/\*[^/]*\*/)\ntypedef enum (\w+) \{([^}]*)\}", header.read_text()):
        found = _SAID.search(said)
        if found:
            theirs = headers.enums[found[2]]
            cases = [
                (case.removeprefix("MOEI_"), number, "")
                for case, number in re.findall(r"(\w+) = (\d+)", body)
            ]
            _compare(f"moei.h, {name}", theirs, cases, whole=True)
            inner[name] = theirs
            count += 1
    for path in sorted(sources.glob("*/**/*.swift")):
        if path.is_symlink() or any(parent.is_symlink() for parent in path.parents):
            continue
        for place, whose, some, body in _enums(path.read_text()):
            known = {**headers.enums, **inner}
            if whose not in known:
                refuse(f"{path.name}, {place}", f"there is no enum {whose}")
            cases = re.findall(r"case `?(\w+)`? = (\d+)(?:  // ([A-Z][A-Z0-9_]+)\b)?", body)
            _compare(f"{path.name}, {place}", known[whose], cases, whole=not some)
            count += 1
    return count


def _enums(text: str) -> Iterator[tuple[str, str, bool, str]]:
    for before, name, within, body in _SWIFT.findall(text):
        said = _SAID.search(before) or _SAID.search(within)
        if said:
            yield name, said[2], said[1].lower().startswith("some"), body


def _compare(place: str, theirs: Enum, cases: list[tuple[str, str, str]], whole: bool) -> None:
    known = {_plain(word): number for word, number in theirs.words.items()}
    found = set()
    for case, number, named in cases:
        word = _plain(named or case)
        if known.get(word) != int(number):
            refuse(place, f"{case} = {number}, which is no constant of {theirs.name}")
        found.add(int(number))
    missing = [word for word, number in theirs.words.items() if number not in found and number != 0]
    if whole and missing:
        refuse(place, f"has no case for {', '.join(missing)} of {theirs.name}")


def _plain(name: str) -> str:
    return name.replace("_", "").lower().removeprefix("error")
