"""The layer with weights of few bits, beside ggml by turns; print a table and write low_bits.json.

    python low_bits.py MACHINE FOLDER [LIBGGML] [--only WORD]

MACHINE is the program built from machine.c; FOLDER is where the file goes.  README.md has the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import HERE, ROUNDS, Running, script, write_inputs

sys.path.append(str(HERE / "peers"))

from protocol import Work  # noqa: E402
from shapes import Q  # noqa: E402

import libmoe  # noqa: E402

SHAPE = replace(Q, experts=128)
TOKENS = (1, 16, 1024)
FORMS = ("bf16", "int8", "int8_a8", "int8_row_a8", "int4", "int4_a8", "int4_g128_a8", "q4_k_a8", "q6_k_a8")
MORE = ("iq4_nl_a8", "mxfp4", "mxfp4_a8", "nvfp4", "fp8", "int4_zero_g128_a8")
GGML = ("bf16", "int8_a8", "int4_a8", "q4_k_a8", "q6_k_a8", "iq4_nl_a8", "mxfp4_a8")


def bits(form: str) -> float:
    """Return how many bits the packed copy has for each weight."""
    one = replace(SHAPE, experts=1, top_k=1)
    weights = libmoe.ExpertWeights(
        gate=_zeros(one.inner, one.hidden),
        up=_zeros(one.inner, one.hidden),
        down=_zeros(one.hidden, one.inner),
    )
    packing: Any = form
    with libmoe.Context(1) as context, libmoe.experts_prepare(weights, packing, context=context) as prepared:
        return 8.0 * float(prepared.nbytes) / (3 * one.inner * one.hidden)


def _zeros(outputs: int, inputs: int) -> Any:
    return np.zeros((1, outputs, inputs), np.float32)


def used_experts(tokens: int) -> float:
    """Return how many experts random routing chooses."""
    return SHAPE.experts * (1 - (1 - SHAPE.top_k / SHAPE.experts) ** tokens)


def compare(work: Work, ggml: str, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Let both take turns, and yield a line for each."""
    running = {"libmoe": Running(script("libmoe_layer.py"), work)}
    if ggml and work.dtype in GGML:
        running["ggml"] = Running(script("ggml_graph.py", ggml), work)
    turns: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(ROUNDS):
        for name, side in running.items():
            turns[name].append(side.turn())
    for side in running.values():
        side.close()
    ours = statistics.median(turns["libmoe"])
    weights = used_experts(work.shape.tokens) * 3 * SHAPE.hidden * SHAPE.inner
    for name in running:
        seconds = statistics.median(turns[name])
        yield {
            "work": work.name,
            "form": work.dtype,
            "tokens": work.shape.tokens,
            "side": name,
            "seconds": seconds,
            "ratio": seconds / ours,
            "gweights": 1e-9 * weights / seconds,
            "of_read_bandwidth": weights * bits(work.dtype) / 8 / bandwidth / seconds,
            "gops": 1e-9 * work.amount / seconds,
        }


def lines(asked: argparse.Namespace, bandwidth: float) -> Iterator[dict[str, Any]]:
    """Yield the lines of the table."""
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        for tokens in TOKENS:
            shape = replace(SHAPE, name=f"Q E 128 T {tokens}", tokens=tokens)
            works = [Work(Path(name), shape, False, form, threads) for form in FORMS + MORE]
            works = [work for work in works if asked.only in work.name]
            if works:
                write_inputs(works[0])
            for work in works:
                yield from compare(work, asked.ggml, bandwidth)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("machine")
    parser.add_argument("folder", type=Path)
    parser.add_argument("ggml", nargs="?", default="", metavar="LIBGGML")
    parser.add_argument("--only", default="", metavar="WORD", help="what has it in its name")
    asked = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(f"{threads} threads; load average before: {os.getloadavg()[0]:.2f} (near 0 is a quiet machine)")
    marks = subprocess.run([asked.machine, str(threads)], check=True, stdout=subprocess.PIPE).stdout
    bandwidth = 1e9 * json.loads(marks)[0]["gbs"]
    print(f"{bandwidth / 1e9:.1f} GB/s of reading")
    print(f"\n{'work':36} {'side':7} {'ms':>9} {'ratio':>6} {'Gweights/s':>10} {'% read':>6} {'GOP/s':>7}")
    found = []
    for line in lines(asked, bandwidth):
        found.append(line)
        print(
            f"{line['work']:36} {line['side']:7} {1e3 * line['seconds']:9.3f} {line['ratio']:6.2f} "
            f"{line['gweights']:10.1f} {100 * line['of_read_bandwidth']:6.1f} {line['gops']:7.1f}",
            flush=True,
        )
    everything = {"threads": threads, "gbs": bandwidth / 1e9, "lines": found}
    (asked.folder / "low_bits.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(f"\nload average after: {os.getloadavg()[0]:.2f} (these runs included)")


main()
