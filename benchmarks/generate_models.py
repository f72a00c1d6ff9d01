"""Run whole models from folders with libmoe, transformers and llama.cpp by turns; write generate.json.

    python generate_models.py MACHINE FOLDER [--llama LIBRARY SOURCE] [--layers 2] [--words 32000]
        [--only WORD]

MACHINE is the program built from machine.c, LIBRARY the library from llama_read.c, SOURCE llama.cpp's;
FOLDER is where the file goes, and for a while the models.  README.md has the columns.
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
from itertools import repeat
from pathlib import Path
from typing import Any

from measure import read_bandwidth
from peers import HERE, Running, by_row, by_turns, script, status

sys.path.append(str(HERE / "peers"))

from generate_work import DTYPES, JOBS, PUBLISHED, TRAINED, GenerateWork  # noqa: E402


def start(work: GenerateWork, llama: list[str]) -> dict[str, Running]:
    """Return libmoe and all others that can do the work, ready; one that fails is named and left out."""
    commands = {way: script("transformers_generate.py", way) for way in work.ways}
    if llama and work.job != "train":
        commands["llama.cpp"] = script("llama_generate.py", llama[0])
    running = {"libmoe": Running(script("libmoe_generate.py"), work)}
    for way, command in commands.items():
        try:
            if way == "llama.cpp" and not work.gguf.exists():
                convert(work, llama[1])
            running[way] = Running(command, work)
        except (RuntimeError, ValueError) as error:
            print(f"{way} is left out of {work.name}: {error}", flush=True)
    return running


def convert(work: GenerateWork, source: str) -> None:
    """Write the model's folder as llama.cpp reads it."""
    command = script("llama_gguf.py", source, str(work.files), str(work.gguf), work.dtype)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError("the converter failed: " + done.stderr.splitlines()[-1])


def compare(work: GenerateWork, llama: list[str], machine: str) -> list[dict[str, Any]]:
    """Let all ways take turns, with the reading of memory where that is the limit; libmoe's line is first."""
    running = start(work, llama)
    rates: list[float] = []

    def read() -> None:
        if work.job.startswith("decode"):
            rates.append(read_bandwidth(machine, work.threads))

    taken = by_turns(running, before=read)
    ours = running["libmoe"]
    lines: list[dict[str, Any]] = []
    for way, side in running.items():
        seconds = taken[way]
        line = {
            "work": work.name,
            "way": way,
            "seconds": seconds,
            "tokens_per_second": None if work.job == "load" else work.amount / seconds,
            "ratio": seconds / taken["libmoe"],
            "version": side.facts["version"],
            "difference": max(map(by_row, ours.outputs, side.outputs, repeat(work.rows))),
            "limit": work.limit,
        }
        if work.job == "train":
            line |= {"bytes": side.facts["bytes"], "share": ours.facts["bytes"] / side.facts["bytes"]}
        if rates:
            bandwidth = statistics.median(rates)
            line |= {
                "read_gbs": 1e-9 * bandwidth,
                "of_read_bandwidth": ours.facts["traffic"] / bandwidth / seconds,
            }
        lines.append(line)
    return lines


def reading(folder: Path) -> float:
    """Return the seconds in which the folder's files are read once more, each to new memory."""
    start = time.perf_counter()
    for path in folder.iterdir():
        path.read_bytes()
    return time.perf_counter() - start


def compare_all(asked: argparse.Namespace, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of the table."""
    generation = [job for job in JOBS if job != "train"]
    for model in PUBLISHED:
        yield from compare_model(asked, threads, model, generation, asked.words)
    for model, sizes in TRAINED.items():
        words = sizes["vocab_size"] * asked.layers // sizes["num_hidden_layers"]  # in proportion
        yield from compare_model(asked, threads, model, ["train"], words)


def compare_model(
    asked: argparse.Namespace, threads: int, model: str, jobs: list[str], words: int
) -> Iterator[dict[str, Any]]:
    """Yield the lines of a model, whose files are there for as long."""
    works = [(job, dtype) for job in jobs for dtype in DTYPES[job] if asked.only in f"{model}, {job} {dtype}"]
    if not works:
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        subprocess.run(
            script("transformers_generate.py", "write", name, model, str(asked.layers), str(words)),
            env={**os.environ, "PYTHONPATH": paths},
            check=True,
        )
        for job, dtype in works:
            work = GenerateWork(folder, model, job, dtype, threads)
            lines = compare(work, asked.llama, asked.machine)
            if job == "load":
                lines[0]["over_reading"] = lines[0]["seconds"] / reading(folder / model)
            yield from lines


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("machine")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--llama", nargs=2, default=[], metavar=("LIBRARY", "SOURCE"), help="if llama.cpp takes part"
    )
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
    print(
        f"\n{'work':36} {'way':12} {'ms':>10} {'tokens/s':>9} {'ratio':>6} {'% read':>6} {'of GB/s':>7} "
        f"{'difference':>10}"
    )
    lines = []
    for line in compare_all(asked, threads):
        lines.append(line)
        rate = line["tokens_per_second"]
        read = " " * 14
        if "read_gbs" in line:
            read = f"{100 * line['of_read_bandwidth']:6.1f} {line['read_gbs']:7.1f}"
        more = f"  {line['over_reading']:.2f} times reading" if "over_reading" in line else ""
        if "bytes" in line:
            more = f"  {line['bytes'] / 2**20:.0f} MiB more, share {line['share']:.2f}"
        print(
            f"{line['work']:36} {line['way']:12} {1e3 * line['seconds']:10.2f} "
            f"{'' if rate is None else format(rate, '.1f'):>9} {line['ratio']:6.2f} {read} "
            f"{line['difference']:10.1e}{more}",
            flush=True,
        )
    everything = {
        "threads": threads,
        "layers": asked.layers,
        "words": asked.words,
        "load_average_after": os.getloadavg(),
        "lines": lines,
    }
    (asked.folder / "generate.json").write_text(json.dumps(everything, indent=1) + "\n")
    return status(lines, "way")


if __name__ == "__main__":
    sys.exit(main())
