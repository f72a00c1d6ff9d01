"""The pages of docs/reference: what the headers say, a page for each section, with links between them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import meaning
from .reader import Enum, Function, Handle, Headers, Item, Macro, Section, Struct, Text, plain

_FOLDER = "docs/reference"
_Rows = list[tuple[str, tuple[str, ...]]]  # each with the comment before it
_NOTE = "Written by `scripts/abi` from the headers' own comments; do not edit."


def pages(headers: Headers, functions: str) -> dict[str, str]:
    """Return every page by its path; ``functions`` is the text of docs/functions.md, to which they point."""
    sections = [section for section in headers.sections if section.title]
    links = _Links(sections, functions)
    found = {f"{_FOLDER}/{_slug(section)}.md": _page(headers, section, links) for section in sections}
    found[f"{_FOLDER}/README.md"] = _index(headers, sections, links)
    return found


class _Links:
    """Where each name of the headers is described."""

    def __init__(self, sections: list[Section], functions: str) -> None:
        self._places: dict[str, str] = {}
        for section in sections:
            for item in section.items:
                if isinstance(item, Text):
                    continue
                owner = item.name[: -len("_INIT")] if _is_initializer(item) else item.name
                self._places[item.name] = f"{_slug(section)}.md#{owner.lower()}"
                if isinstance(item, Enum):
                    place = self._places[item.name]
                    self._places.update((member.name, place) for member in item.members)
        self._notes: dict[str, str] = {}
        for heading in re.findall(r"^### (.+)$", functions, re.MULTILINE):
            anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            self._notes.update((name, f"../functions.md#{anchor}") for name in re.findall(r"\w+", heading))

    def linked(self, text: str, own: str = "") -> str:
        """Return prose for Markdown, in which the names of the headers lead to what they are."""

        def link(found: re.Match[str]) -> str:
            name = found[0]
            known = name in self._places and name != own
            return f"[`{name}`]({self._places[name]})" if known else f"`{name}`"

        escaped = re.sub(r"([*<>|\\])", r"\\\1", text)
        return re.sub(r"\b(?:moe|MOE)_\w*\w", link, escaped)

    def note(self, name: str) -> str:
        """Return a pointer to what docs/functions.md says of a function."""
        place = self._notes.get(name)
        return f"[Owner, threads, statuses, and what an error leaves]({place})" if place else ""


def _slug(section: Section) -> str:
    title = re.split(r"[:,]", section.title)[0].lower()
    return re.sub(r"[^a-z]+", "-", title).strip("-")


def _index(headers: Headers, sections: list[Section], links: _Links) -> str:
    lines = ["# Reference", "", f"Every function, struct, enum and constant. {_NOTE}", ""]
    for section in headers.sections:
        for item in section.items if not section.title else ():
            assert isinstance(item, Text)
            lines += [*_prose(plain(item.comment), links), ""]
    for section in sections:
        lines += [f"## [{section.title}]({_slug(section)}.md)", "", f"`#include <{section.header}>`", ""]
        for kind, title in (
            (Handle, "Handles"),
            (Struct, "Structs"),
            (Enum, "Enums"),
            (Function, "Functions"),
        ):
            names = [item.name for item in section.items if isinstance(item, kind)]
            if names:
                lines += [f"{title}: " + " · ".join(links.linked(name) for name in names), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _page(headers: Headers, section: Section, links: _Links) -> str:
    lines = [f"# {section.title}", "", f"`#include <{section.header}>`. {_NOTE}", ""]
    said = ""
    for item in section.items:
        if isinstance(item, Text):
            lines += [*_prose(plain(item.comment), links), ""]
            continue
        if _is_initializer(item):
            continue
        lines += [f"## {item.name}", ""]
        if isinstance(item, Function) and item.comment == said:
            lines += ["As the function before.", ""]
        else:
            lines += _described(headers, item, links)
        said = item.comment
        if isinstance(item, Function):
            about = [links.linked(meaning.behind(item)), links.note(item.name)]
            lines += [line for text in about if text for line in (text, "")]
        if isinstance(item, (Function, Macro)):
            lines += ["```c", _code(item), "```", ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _described(headers: Headers, item: Item, links: _Links) -> Iterator[str]:
    assert not isinstance(item, Text)
    text = plain(item.comment)
    if isinstance(item, Function):
        text, _, returned = text.partition("@return ")
        head = re.sub(r"@param (?:(?!@).|\n {2,})*\n?", "", text)
        yield from (*_prose(head.strip("\n"), links, item.name), "")
        taken: list[tuple[str, ...]] = [
            (f"`{name}`", _cell(f"{how} {what}".strip(), links))
            for name, how, what in meaning.described(item)
        ]
        if taken:
            yield from _table(("argument", ""), taken)
        if returned:
            yield from (f"**Returns** {links.linked(' '.join(returned.split()))}", "")
        return
    yield from (*_prose(text, links, item.name), "")
    rows: _Rows = []
    if isinstance(item, Struct):
        said = meaning.comments(headers, item)
        for field in item.fields:
            name = field.name if "," in field.declared else field.declared
            rows.append((field.heading, (f"`{name}`", _cell(said[field.name], links))))
        yield from _tables(("field", ""), rows, links)
        if item.sized:
            yield from (
                f"`MOE{item.name[3:].upper()}_INIT` and [`{item.name}_init`](#{item.name}_init) fill it.",
                "",
            )
    if isinstance(item, Enum):
        for member in item.members:
            rows.append((member.heading, (f"`{member.name} = {member.value}`", _cell(member.comment, links))))
        yield from _tables(("constant", ""), rows, links)


def _tables(head: tuple[str, ...], rows: _Rows, links: _Links) -> Iterator[str]:
    """Yield tables, each under the comment that is about its rows."""
    listed: list[tuple[str, ...]] = []
    for heading, row in rows:
        if heading:
            yield from _table(head, listed) if listed else ()
            yield from (*_prose(plain(heading), links), "")
            listed = []
        listed.append(row)
    yield from _table(head, listed)


def _is_initializer(item: Item) -> bool:
    return isinstance(item, Macro) and item.name.endswith("_INIT")


def _code(item: Function | Macro) -> str:
    if isinstance(item, Macro):
        return item.code
    return re.sub(r"\n +", "\n    ", re.sub(r"\b(?:MOE_API|MOE_CHECK) ", "", item.code))


def _cell(text: str, links: _Links) -> str:
    return links.linked(" ".join(text.split()))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def _prose(text: str, links: _Links, own: str = "") -> Iterator[str]:
    """Yield paragraphs; what is indented, equations and lists of names, stays as it is."""
    inside = False
    for line in text.split("\n"):
        indented = line.startswith("  ")
        if indented != inside:
            yield from ("```",) if inside else ("", "```text")
            if inside:
                yield ""
            inside = indented
        yield line if indented else links.linked(line, own)
    if inside:
        yield "```"
