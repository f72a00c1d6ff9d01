"""The log of a run: JSON lines.

Each line is one object with a "kind" and the number of "step"s done:

start        what runs: settings, text, weights, threads, the library
plan         memory of a step
step         means since the line before: loss, rate, norm, speed, and of every layer of experts its load
evaluation   held-out bits per byte
stop         why it ended
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from .errors import UserError
from .folder import LOG, write_whole

FILE = LOG

Record = dict[str, Any]

_LAYER = ("layer", "load", "dropped", "dead", "peak", "z_loss")
# What the readers of a log need in a line of each kind; a line without it is damaged.
_NEEDED = {
    "start": ("training_bytes", "vocabulary_size", "weights", "threads", "processors"),
    "plan": ("total", "unlimited", "keep"),
    "step": ("loss", "bits_per_byte", "norm", "norm_max", "learning_rate", "tokens_per_second", "layers"),
    "evaluation": ("bits_per_byte",),
    "stop": ("why",),
}


class Log:
    """Appends records to a run's log; every line is in the file before the next step.

    Parameters
    ----------
    folder : path
        Of the run.
    writes : bool
        False of a rank that leaves it to the first.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self._path = folder / FILE
        self._writes = writes

    def write(self, kind: str, step: int, **values: Any) -> Record:
        """Append one line, and return what it says.

        Raises
        ------
        UserError
            It cannot be written; the text has the path and the reason.
        """
        line = _line({"kind": kind, "step": step, **values})
        if not self._writes:
            return json.loads(line)  # type: ignore[no-any-return]
        try:
            with self._path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise UserError(f"cannot write {str(self._path)!r}: {error.strerror}") from None
        return json.loads(line)  # type: ignore[no-any-return]

    def sync(self) -> None:
        """Have the lines on the disk before a checkpoint says what they end with."""
        if self._writes:
            with self._path.open("a") as file:
                os.fsync(file.fileno())

    def rewind(self, step: int) -> None:
        """Forget what came after a checkpoint at `step`, how the run ended, and lines that are damaged."""
        if not self._writes:
            return
        records, _ = read_all(self._path.parent)
        kept = [r for r in records if r["step"] <= step and r["kind"] != "stop"]
        write_whole(self._path, "".join(map(_line, kept)).encode())


def read(folder: Path) -> list[Record]:
    """Return all records of a run's log; lines that are damaged are left out."""
    return read_all(folder)[0]


def read_all(folder: Path) -> tuple[list[Record], int]:
    """Return all records of a run's log, and how many lines are damaged.

    A power that failed leaves a line that is cut off, or bytes that are none of the log's.  A log that is not
    there is an empty one: the checkpoints are what a run goes on from.

    Raises
    ------
    UserError
        The system does not let it be read.
    """
    try:
        lines = (folder / FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UserError(f"cannot read {str(folder / FILE)!r}: {error.strerror}") from None
    records = [record for record in map(_record, lines) if record is not None]
    return records, sum(bool(line) for line in lines) - len(records)


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """Return the records of one kind."""
    return [record for record in records if record["kind"] == kind]


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    needed = _NEEDED.get(str(record.get("kind")))
    if needed is None or not record.keys() >= set(needed):
        return None
    layers = record.get("layers", [])
    whole = isinstance(layers, list) and all(isinstance(each, dict) for each in layers)
    return record if whole and all(each.keys() >= set(_LAYER) for each in layers) else None


def _line(record: Record) -> str:
    return json.dumps(_finite(record), separators=(",", ":"), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null in their place."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
