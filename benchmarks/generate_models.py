"""Run whole models from folders with libmoe and with transformers by turns; write generate.json.

    python generate_models.py MACHINE FOLDER [--layers 2] [--words 32000] [--only WORD]

MACHINE is the program built from machine.c; FOLDER is where the file goes, and for a while the
models.  README.md has the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers import HERE, Running, script

sys.path.append(str(HERE / "peers"))

from generate_work import DTYPES, JOBS, MODELS, GenerateWork  # noqa: E402
from protocol import Array  # noqa: E402

ROUNDS = 5


def compare(work: GenerateWork, bandwidth: float) -> list[dict[str, Any]]:
    """Let all ways take turns, and return a line for each: libmoe first."""
    running = {"libmoe": Running(script("libmoe_generate.py"), work)}
    for way in work.ways:
        running[way] = Running(script("transformers_generate.py", way), work)
    turns: dict[str, list[float]] = {way: [] for way in running}
    for round_ in range(ROUNDS):
        for way in list(running) if round_ % 2 == 0 else list(running)[::-1]:
            turns[way].append(running[way].turn())
    for side in running.values():
        side.close()
    ours = statistics.median(turns["libmoe"])
    traffic = float(running["libmoe"].facts["traffic"])
    return [
        {
            "work": work.name,
            "way": way,
            "seconds": statistics.median(turns[way]),
            "tokens_per_second": None if work.job == "load" else work.amount / statistics.median(turns[way]),
            "ratio": statistics.median(turns[way]) / ours,
            "of_read_bandwidth": traffic / bandwidth / statistics.median(turns[way]),
            "version": side.facts["version"],
            "difference": by_row(running["libmoe"].outputs[0], side.outputs[0], JOBS[work.job][0]),
            "limit": work.limit,
        }
        for way, side in running.items()
    ]


def by_row(ours: Array, theirs: Array, count: int) -> float:
    """Return the median over sequences of |theirs - ours| / |ours|: rounding may choose another expert."""
    ours, theirs = ours.reshape(count, -1), theirs.reshape(count, -1)
    return float(np.median(np.linalg.norm(theirs - ours, axis=1) / np.linalg.norm(ours, axis=1)))


def reading(folder: Path) -> float:
    """Return the seconds in which the folder's files are read once more."""
    start = time.perf_counter()
    memory = memoryview(bytearray(1 << 24))
    for path in folder.iterdir():
        with open(path, "rb", buffering=0) as file:
            while file.readinto(memory):
                pass
    return time.perf_counter() - start


def compare_all(asked: argparse.Namespace, threads: int, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Yield the lines of the table."""
    for model in MODELS:
        works = [
            (job, dtype) for job in JOBS for dtype in DTYPES[job] if asked.only in f"{model}, {job} {dtype}"
        ]
        if not works:
            continue
        # One model's folder at a time.
        with tempfile.TemporaryDirectory(dir=asked.folder) as name:
            folder = Path(name)
            sizes = [str(asked.layers), str(asked.words)]
            paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
            subprocess.run(
                [*script("transformers_generate.py", "write", name, model), *sizes],
                env={**os.environ, "PYTHONPATH": paths},
                check=True,
            )
            for job, dtype in works:
                lines = compare(GenerateWork(folder, model, job, dtype, threads), bandwidth)
                if job == "load":
                    lines[0]["over_reading"] = lines[0]["seconds"] / reading(folder / model)
                yield from lines


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("machine")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2, help="of each model (default 2)")
    parser.add_argument(
        "--words", type=int, default=32_000, help="of each model's vocabulary (default 32000)"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="what has it in its name")
    asked = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(
        f"{threads} threads each; load average before: {os.getloadavg()[0]:.2f} (near 0 is a quiet machine)"
    )
    marks = subprocess.run([asked.machine, str(threads)], check=True, stdout=subprocess.PIPE).stdout
    bandwidth = 1e9 * json.loads(marks)[0]["gbs"]
    print(f"{bandwidth / 1e9:.1f} GB/s of reading")
    print(
        f"\n{'work':36} {'way':12} {'ms':>10} {'tokens/s':>9} {'ratio':>6} {'% read':>6} {'difference':>10}"
    )
    lines = []
    for line in compare_all(asked, threads, bandwidth):
        lines.append(line)
        rate = line["tokens_per_second"]
        read = f"{100 * line['of_read_bandwidth']:6.1f}" if ", decode" in line["work"] else " " * 6
        beside = f"  {line['over_reading']:.2f} times reading" if "over_reading" in line else ""
        print(
            f"{line['work']:36} {line['way']:12} {1e3 * line['seconds']:10.2f} "
            f"{'' if rate is None else format(rate, '.1f'):>9} {line['ratio']:6.2f} {read} "
            f"{line['difference']:10.1e}{beside}",
            flush=True,
        )
    everything = {
        "threads": threads,
        "gbs": bandwidth / 1e9,
        "layers": asked.layers,
        "words": asked.words,
        "load_average_after": os.getloadavg(),
        "lines": lines,
    }
    (asked.folder / "generate.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(f"\nload average after: {os.getloadavg()[0]:.2f} (these runs included)")
    wrong = [line for line in lines if not line["difference"] <= line["limit"]]  # NaN is wrong too
    for line in wrong:
        print(f"{line['way']} does not do the same work: {line['work']}, {line['difference']:.1e}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
