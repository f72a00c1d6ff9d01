"""Run transformers' models with each implementation of the experts by turns; write transformers.json.

    python transformers_models.py MACHINE FOLDER [--only WORD]

MACHINE is the program built from machine.c; FOLDER is where the file goes; with --only, what has the word in
its name is run.  README.md has the columns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import read_bandwidth
from peers import HERE, Running, by_row, by_turns, script, status

sys.path.append(str(HERE / "peers"))

from shapes import Dtype  # noqa: E402
from transformers_work import MODELS, TOKENS, TransformersWork  # noqa: E402

MIB = 2**20
DTYPES: tuple[Dtype, ...] = ("f32", "bf16")


def compare(work: TransformersWork, machine: str) -> list[dict[str, Any]]:
    """Let all ways take turns, the reading of memory too, and return a line for each: libmoe beside it."""
    running = {way: Running(script("transformers_model.py", way), work) for way in work.ways}
    rates: list[float] = []
    taken = by_turns(
        running, lambda: rates.append(read_bandwidth(machine, work.threads) if work.traffic else 1.0)
    )
    return [
        {
            "work": work.name,
            "way": way,
            "seconds": taken[way],
            "ratio": taken[way] / taken["libmoe"],
            "of_read_bandwidth": work.traffic / statistics.median(rates) / taken[way],
            "bytes": side.facts["bytes"],
            "share": running["libmoe"].facts["bytes"] / max(side.facts["bytes"], 1),
            "version": side.facts["version"],
            "difference": by_row(running["libmoe"].outputs[0], side.outputs[0], work.outputs_of),
            "limit": work.limit,
        }
        for way, side in running.items()
    ]


def compare_all(machine: str, only: str, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of the table."""
    with tempfile.TemporaryDirectory() as folder:
        for model, job, dtype in itertools.product(MODELS, TOKENS, DTYPES):
            work = TransformersWork(Path(folder), model, job, dtype, threads)
            if only in work.name:
                yield from compare(work, machine)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("machine")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", metavar="WORD", help="what has it in its name")
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(
        f"{threads} threads each; load average before: {os.getloadavg()[0]:.2f} (near 0 is a quiet machine)"
    )
    print(
        f"\n{'work':42} {'way':12} {'ms':>10} {'ratio':>6} {'% read':>6} {'MiB more':>9} {'share':>6} "
        f"{'difference':>10}"
    )
    lines = []
    for line in compare_all(arguments.machine, arguments.only, threads):
        lines.append(line)
        read = f"{100 * line['of_read_bandwidth']:6.1f}" if line["of_read_bandwidth"] else " " * 6
        print(
            f"{line['work']:42} {line['way']:12} {1e3 * line['seconds']:10.2f} {line['ratio']:6.2f} {read} "
            f"{line['bytes'] / MIB:9.0f} {line['share']:6.2f} {line['difference']:10.1e}",
            flush=True,
        )
    everything = {"threads": threads, "load_average_after": os.getloadavg(), "lines": lines}
    (arguments.folder / "transformers.json").write_text(json.dumps(everything, indent=1) + "\n")
    return status(lines, "way")


if __name__ == "__main__":
    sys.exit(main())
