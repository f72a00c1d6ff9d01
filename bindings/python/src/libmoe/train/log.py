"""The log of a run: JSON lines.

Each line is one object with a "kind" and the number of "step"s done:

start        what runs: text, weights, threads, memory
step         means since the line before: loss, rate, norm, speed, and of every layer of experts its load
evaluation   held-out bits per byte
stop         why it ended
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .config import UserError

FILE = "log.jsonl"

Record = dict[str, Any]


class Log:
    """Appends records to a run's log; every line is in the file before the next step.

    Parameters
    ----------
    folder : path
        Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(_line({"kind": kind, "step": step, **values}))

    def rewind(self, step: int) -> None:
        """Forget what came after a checkpoint at `step`, and how the run ended."""
        kept = [r for r in read(self._path.parent) if r["step"] <= step and r["kind"] != "stop"]
        unfinished = self._path.with_name(FILE + ".unfinished")
        unfinished.write_text("".join(map(_line, kept)))
        unfinished.replace(self._path)


def read(folder: Path) -> list[Record]:
    """Return all records of a run's log; a line that was cut off while it was written is left out.

    Raises
    ------
    UserError
        There is no log, or it is damaged.
    """
    try:
        lines = (folder / FILE).read_text().split("\n")
    except OSError as error:
        raise UserError(f"no run in {str(folder)!r}: {FILE}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{str(folder / FILE)!r}: line {number} is no JSON: {error}") from None
    return records


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """Return the records of one kind."""
    return [record for record in records if record["kind"] == kind]


def _line(record: Record) -> str:
    return json.dumps(_finite(record), separators=(",", ":"), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null in their place."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
