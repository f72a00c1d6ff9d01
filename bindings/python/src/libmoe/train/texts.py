"""The files of a text: which are read, and which are passed over or refused, and why.

A folder stands for its text files; what is no text in it is passed over.  What the user named is refused
instead, with what would help: it was meant to be read.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .folder import LOG, RECORD, SETTINGS, is_run

Bytes = NDArray[np.uint8]

CHUNK = 1 << 20  # bytes that are looked at at a time
SHOWN = 3  # names of each reason in a list of what was passed over


@dataclass(frozen=True)
class Text:
    """One file.

    Attributes
    ----------
    name : str
        Its absolute path.
    data : ndarray of uint8, [n]
        Mapped, not read.
    sha256 : str
        Of all of it, as ``sha256sum`` prints it.
    """

    name: str
    data: Bytes
    sha256: str


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that is not read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Fault:
    """Why a file is no text, and what would help where it was named."""

    reason: str
    cure: str = ""  # nothing where it is passed over though it was named
    where: str = ""


_KINDS = (  # first bytes, what such a file is, what helps
    (b"\x1f\x8b", "compressed by gzip", "unpack it first: gunzip -k {name!r}"),
    (b"BZh91AY&SY", "compressed by bzip2", "unpack it first: bunzip2 -k {name!r}"),
    (b"\xfd7zXZ\0", "compressed by xz", "unpack it first: unxz -k {name!r}"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first: unzstd {name!r}"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it first: unlz4 {name!r}"),
    (b"PK\x03\x04", "a zip archive", "unpack it first: unzip {name!r}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z x {name!r}"),
    (b"%PDF-", "a PDF", "take the text out of it first: pdftotext {name!r}"),
    (b"\xff\xfe\0\0", "UTF-32 text", "write it anew as UTF-8: iconv -f UTF-32 -t UTF-8 {name!r} > NEW.txt"),
    (b"\0\0\xfe\xff", "UTF-32 text", "write it anew as UTF-8: iconv -f UTF-32 -t UTF-8 {name!r} > NEW.txt"),
    (b"\xff\xfe", "UTF-16 text", "write it anew as UTF-8: iconv -f UTF-16 -t UTF-8 {name!r} > NEW.txt"),
    (b"\xfe\xff", "UTF-16 text", "write it anew as UTF-8: iconv -f UTF-16 -t UTF-8 {name!r} > NEW.txt"),
)
_UTF16 = "write it anew as UTF-8: iconv -f UTF-16{order} -t UTF-8 {{name!r}} > NEW.txt"


def find(
    names: Sequence[str], *, utf8: bool = False, own: Path | None = None
) -> tuple[list[Text], list[PassedOver]]:
    """Map every file that is text and no copy of another; list the others.

    Parameters
    ----------
    names : sequence of str
        Files and folders.
    utf8 : bool
        Whether the text has to be UTF-8.
    own : path, optional
        Folder of the run that reads: what is in it is never text.

    Raises
    ------
    UserError
        A name does not exist, or is a file that is no text.
    """
    texts: list[Text] = []
    passed: list[PassedOver] = []
    known: set[str] = set()
    for path, named in listed(names, own, passed):
        found = _read(path, utf8)
        if isinstance(found, Text):
            # A second copy of a file would put the same text on both sides of the split.
            if found.sha256 not in known:
                known.add(found.sha256)
                texts.append(found)
                continue
            found = _Fault("a copy of another file")
        if named and found.cure:
            raise UserError(
                f"{str(path)!r} is {found.reason}{found.where}: {found.cure.format(name=str(path))}"
            )
        passed.append(PassedOver(os.path.abspath(path), found.reason))
    return texts, passed


def listed(names: Sequence[str], own: Path | None, passed: list[PassedOver]) -> Iterator[tuple[Path, bool]]:
    """List the files, and whether the user named them; those of folders sorted.

    What is passed over unread, hidden files and folders of runs, is added to `passed`.
    """
    for name in names:
        if not os.path.exists(name):
            raise UserError(f"no such file or folder: {name!r}")
        _refuse_runs(name, own)
        if not os.path.isdir(name):
            yield Path(name), True
        for folder, folders, files in os.walk(name):
            skipped = {inner: _not_entered(Path(folder, inner), own) for inner in sorted(folders)}
            skipped |= {file: "hidden" for file in sorted(files) if file.startswith(".")}
            passed += [PassedOver(os.path.abspath(Path(folder, s)), why) for s, why in skipped.items() if why]
            folders[:] = sorted(inner for inner in folders if not skipped[inner])
            yield from ((Path(folder, file), False) for file in sorted(files) if not skipped.get(file))


def told(passed: Sequence[PassedOver]) -> str:
    """Return a line for each reason: how many, and the first of them."""
    by_reason: dict[str, list[str]] = {}
    for each in passed:
        by_reason.setdefault(each.reason, []).append(each.name)
    lines = [f"passed over, {len(passed):,}:"] if passed else []
    for reason, names in by_reason.items():
        more = ", ..." if len(names) > SHOWN else ""
        lines.append(f"  {len(names):,} {reason}: " + ", ".join(map(repr, names[:SHOWN])) + more)
    return "\n".join(lines)


def _not_entered(folder: Path, own: Path | None) -> str:
    """Say why a folder in a folder is not read, or nothing."""
    if folder.name.startswith("."):
        return "hidden"
    if folder.is_symlink():
        return "a link to a folder"
    if own is not None and os.path.realpath(folder) == os.path.realpath(own):
        return "the folder of this run"
    return "the folder of a run" if is_run(folder) else ""


def _refuse_runs(name: str, own: Path | None) -> None:
    """Refuse a name that is, or lies in, the folder of this run, or is that of another."""
    real = Path(os.path.realpath(name))
    if own is not None and Path(os.path.realpath(own)) in (real, *real.parents):
        raise UserError(
            f"{name!r} is in the folder of this run, {str(own)!r}: a run is not its own text; name the text"
        )
    if is_run(real):
        raise UserError(
            f"{name!r} is the folder of a run, with its {SETTINGS}, {LOG} and {RECORD}, and no text: "
            "name the text, or --resume the run"
        )


def _read(path: Path, utf8: bool) -> Text | _Fault:
    if not path.is_file():  # pipes and devices could make open() wait forever
        return _Fault("no regular file", "name a file, or write into one first what it gives")
    try:
        if path.stat().st_size == 0:
            return _Fault("empty")
        data: Bytes = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        return _Fault(f"not readable ({error.strerror})", "look at its permissions (ls -l {name!r})")
    looked_at = _looked_at(data, utf8)
    return Text(os.path.abspath(path), data, looked_at) if isinstance(looked_at, str) else looked_at


def _looked_at(data: Bytes, utf8: bool) -> str | _Fault:
    """Return the checksum of a text, or why it is none: all of it is looked at once."""
    first = data[:CHUNK].tobytes()
    for start, reason, cure in _KINDS:
        if first.startswith(start):
            return _Fault(reason, cure)
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    for place in range(0, len(data), CHUNK):
        chunk = data[place : place + CHUNK].tobytes()
        if b"\0" in chunk:
            return _with_nul(chunk, place + chunk.index(b"\0"))
        digest.update(chunk)
        held = len(decoder.getstate()[0])  # bytes of a letter that the chunk before began
        try:
            if utf8:
                decoder.decode(chunk, final=place + CHUNK >= len(data))
        except UnicodeDecodeError as error:
            where = place - held + error.start
            return _Fault(
                "not UTF-8 text",
                "a tokenizer wants UTF-8: iconv -f LATIN1 -t UTF-8 {name!r} > NEW.txt, or whatever its "
                "encoding is; or train on bytes, without a tokenizer",
                f" (byte {data[where]:#04x} at {where:,})",
            )
    return digest.hexdigest()


def _with_nul(chunk: bytes, where: int) -> _Fault:
    """Tell UTF-16 without a mark, where every other byte of plain letters is 0, from what is no text."""
    counts = [chunk[side::2].count(0) / max(1, len(chunk[side::2])) for side in (0, 1)]
    if max(counts) > 0.4 and min(counts) < 0.05:
        return _Fault("UTF-16 text", _UTF16.format(order="BE" if counts[0] > counts[1] else "LE"))
    return _Fault(
        "binary",
        "name its text; if it is text but for these, take them out: tr -d '\\000' < {name!r} > NEW.txt",
        f" (NUL at byte {where:,})",
    )
