"""The layer with weights of few bits, beside its peers by turns; print a table and write low_bits.json.

    python low_bits.py MACHINE FOLDER [--ggml LIBGGML] [--peers PYTHON] [--only WORD]

MACHINE is the program built from machine.c; FOLDER is where the file goes.  README.md has the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import read_bandwidth
from peers import HERE, ROUNDS, Running, script, write_inputs

sys.path.append(str(HERE / "peers"))

from layer_reference import Float64, reference  # noqa: E402
from protocol import Work  # noqa: E402
from shapes import Q, S, Shape, packed_bits  # noqa: E402

TOKENS = (1, 16, 1024)
FORMS = ("bf16", "int8", "int8_a8", "int8_row_a8", "int4", "int4_a8", "int4_g128_a8", "q4_k_a8", "q6_k_a8")
MORE = (
    *("iq4_nl_a8", "mxfp4", "mxfp4_a16", "mxfp4_a8", "nvfp4", "nvfp4_a16", "fp8", "fp8_a16"),
    "int4_zero_g128_a8",
)
# What a peer computes, by the name of the form that is nearest to it here.
GGML = ("f32", "bf16", "int8_a8", "int4_a8", "q4_k_a8", "q6_k_a8", "iq4_nl_a8", "mxfp4_a8")
PEERS = {
    "zentorch": ("zentorch_moe.py", ("f32", "bf16", "int8_row_a8")),
    "sglang": ("sglang_moe.py", ("bf16", "int8_row_a8", "int4_g128_a8", "mxfp4_a16", "fp8_a16")),
    "vLLM": ("vllm_moe.py", ("bf16",)),
    "ORT": ("onnxruntime_qmoe.py", ("int8_a8", "int4_a8")),
    "kt": ("kt_kernel_moe.py", ("bf16", "int8_row_a8", "int4_a8", "mxfp4_a16")),
}


def groups() -> Iterator[tuple[Shape, tuple[str, ...]]]:
    """Yield the shapes, and the forms that each is measured in."""
    for tokens in TOKENS:
        yield replace(Q, name=f"Q E 128 T {tokens}", experts=128, tokens=tokens), FORMS + MORE
    for tokens in TOKENS:
        yield replace(Q, name=f"Q T {tokens}", tokens=tokens), ("f32", "bf16")
    yield replace(S, name="S SwiGLU T 1024", kind="swiglu"), ("f32", "bf16")  # as all peers can


def used_weights(shape: Shape) -> float:
    """Return how many weights random routing chooses, of all matrices."""
    experts = shape.experts * (1 - (1 - shape.top_k / shape.experts) ** shape.tokens)
    return experts * shape.matrices * shape.hidden * shape.inner


class Sides:
    """libmoe and its peers; a peer that fails in a form is named, and left out of that form from then on."""

    def __init__(self, machine: str, ggml: str, python: str) -> None:
        self.machine = machine
        self.peers: dict[str, tuple[list[str], tuple[str, ...]]] = {}
        if ggml:
            self.peers["ggml"] = script("ggml_graph.py", ggml), GGML
        for name, (file, forms) in PEERS.items() if python else ():
            self.peers[name] = [python, *script(file)[1:]], forms
        self.failed: set[tuple[str, str]] = set()

    def start(self, work: Work) -> dict[str, Running]:
        """Return libmoe and all that can do the work, ready."""
        running = {"libmoe": Running(script("libmoe_layer.py"), work)}
        for name, (command, forms) in self.peers.items():
            if work.dtype in forms and (name, work.dtype) not in self.failed:
                try:
                    running[name] = Running(command, work)
                except (RuntimeError, ValueError) as error:
                    self.leave_out(name, work, error)
        return running

    def leave_out(self, name: str, work: Work, error: Exception) -> None:
        """Say that a peer does not compute here."""
        self.failed.add((name, work.dtype))
        print(f"{name} is left out of {work.dtype}: {error}", flush=True)

    def compare(self, work: Work, expected: Float64) -> Iterator[dict[str, Any]]:
        """Let all take turns, the reading of memory too, and yield a line for each."""
        running = self.start(work)
        turns: dict[str, list[float]] = {name: [] for name in running}
        rates = []
        for round_ in range(ROUNDS):
            rates.append(read_bandwidth(self.machine, work.threads))
            # Once around and once back: who comes first finds the memory as the reading has left it.
            for name, side in list(running.items())[:: 1 if round_ % 2 == 0 else -1]:
                try:
                    turns[name].append(side.turn())
                except (RuntimeError, ValueError, BrokenPipeError) as error:
                    if name == "libmoe":
                        raise
                    self.leave_out(name, work, error)
                    del running[name]
        ours, bandwidth = statistics.median(turns["libmoe"]), statistics.median(rates)
        weights = used_weights(work.shape)
        for name, side in running.items():
            side.close()
            seconds = statistics.median(turns[name])
            y = side.outputs[0].reshape(expected.shape)
            yield {
                "work": work.name,
                "form": work.dtype,
                "tokens": work.shape.tokens,
                "side": name,
                "version": side.facts["version"],
                "seconds": seconds,
                "ratio": seconds / ours,
                "gweights": 1e-9 * weights / seconds,
                "read_gbs": 1e-9 * bandwidth,
                "of_read_bandwidth": weights * packed_bits(work.dtype) / 8 / bandwidth / seconds,
                "gops": 1e-9 * work.amount / seconds,
                "error": float(np.linalg.norm(y - expected) / np.linalg.norm(expected)),
                "limit": work.limit,
            }


def lines(asked: argparse.Namespace, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of the table."""
    sides = Sides(asked.machine, asked.ggml, asked.peers)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        for shape, forms in groups():
            works = [Work(Path(name), shape, False, form, threads) for form in forms]
            works = [work for work in works if asked.only in work.name]
            if works:
                write_inputs(works[0])
                expected = reference(works[0])
            for work in works:
                yield from sides.compare(work, expected)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("machine")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ggml", default="", metavar="LIBGGML", help="the library, if ggml takes part")
    parser.add_argument("--peers", default="", metavar="PYTHON", help="of the venv that the others are in")
    parser.add_argument("--only", default="", metavar="WORD", help="what has it in its name")
    asked = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(f"{threads} threads; load average before: {os.getloadavg()[0]:.2f} (near 0 is a quiet machine)")
    print(
        f"\n{'work':36} {'side':8} {'ms':>9} {'ratio':>6} {'Gweights/s':>10} {'GB/s read':>9} {'% read':>6} "
        f"{'GOP/s':>7} {'error':>7}  version"
    )
    found = []
    for line in lines(asked, threads):
        found.append(line)
        print(
            f"{line['work']:36} {line['side']:8} {1e3 * line['seconds']:9.3f} {line['ratio']:6.2f} "
            f"{line['gweights']:10.1f} {line['read_gbs']:9.1f} {100 * line['of_read_bandwidth']:6.1f} "
            f"{line['gops']:7.1f} {line['error']:7.1e}  {line['version']}",
            flush=True,
        )
    everything = {"threads": threads, "lines": found}
    (asked.folder / "low_bits.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(f"\nload average after: {os.getloadavg()[0]:.2f} (these runs included)")
    wrong = [line for line in found if not line["error"] <= line["limit"]]  # NaN is wrong too
    for line in wrong:
        print(f"{line['side']} does not do the same work: {line['work']}, {line['error']:.1e}")
    return 1 if wrong else 0


sys.exit(main())
