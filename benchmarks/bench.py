"""Measure this machine, then the layer on it; print a table and write bench.json and roofline.png.

    python bench.py MACHINE FOLDER

MACHINE is the program built from machine.c; the two files go to FOLDER.  README.md explains the columns.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import numpy as np
from measure import alternate
from roofline import draw
from shapes import ADAMW_BYTES, PARAMETERS, Dtype, Q, S, Shape, packed_bits

import libmoe
from libmoe import words

PREPARED: tuple[words.Prepared, ...] = ("none", "f32", "bf16")
FEW_BITS: tuple[words.Prepared, ...] = tuple(
    form for form in get_args(words.Prepared) if form not in PREPARED and not form.startswith("stored")
)


@dataclass
class Case:
    """One line of the table: what runs, and how much work a run is."""

    work: str
    threads: int
    run: Callable[[], object]
    operations: float = 0.0
    traffic: float = 0.0  # bytes
    busiest: float | None = None  # tokens of the busiest expert / mean
    seconds: float = math.nan


def main() -> int:
    """Measure, print and write."""
    program, folder = sys.argv[1], Path(sys.argv[2])
    load = os.getloadavg()
    every = len(os.sched_getaffinity(0))
    counts = sorted({1, every})
    peaks = {entry["threads"]: entry for entry in machine(program, counts)}
    contexts = {threads: libmoe.Context(threads) for threads in counts}
    print(contexts[every].build_info())
    print(f"load average before: {load[0]:.2f} (on a busy machine every figure below is worth little)")
    print_machine(peaks)
    lines: list[dict[str, Any]] = []
    print(f"\n{'work':46} {'threads':>7} {'ms':>9} {'GFLOP/s':>8} {'% FMA':>6} {'GB/s':>6} {'% read':>6}")
    for group in groups(contexts):
        for case, seconds in zip(group, alternate([case.run for case in group])):
            case.seconds = seconds
            lines.append(line(case, peaks[case.threads]))
            print_line(lines[-1])
    notes = conclusions(lines, peaks[every])
    print()
    for name, value in notes.items():
        print(f"{name:60} {value:.3f}")
    folder.mkdir(parents=True, exist_ok=True)
    everything = {
        "build": contexts[every].build_info(),
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
        "machine": list(peaks.values()),
        "lines": lines,
        "conclusions": notes,
    }
    (folder / "bench.json").write_text(json.dumps(everything, indent=1) + "\n")
    draw(peaks, lines, folder / "roofline.png")
    print(f"\nWritten: {folder}/bench.json and {folder}/roofline.png")
    return 0


def machine(program: str, counts: list[int]) -> list[dict[str, Any]]:
    """Return the FMA peak and the read bandwidth for each number of threads."""
    output = subprocess.run([program, *map(str, counts)], check=True, stdout=subprocess.PIPE).stdout
    entries: list[dict[str, Any]] = json.loads(output)
    return entries


def groups(contexts: dict[int, libmoe.Context]) -> Iterator[list[Case]]:
    """Yield lists of cases that alternate; the layers of one list are gone before the next is made."""
    most = max(contexts)
    every = contexts[most]
    for shape in (S, Q):
        yield [forward(shape, count, shape.layer(context)) for count, context in contexts.items()]
        yield [forward(shape, count, shape.layer(context), "f32") for count, context in contexts.items()]
        yield [train(shape, count, context) for count, context in contexts.items()]
        half = replace(shape, name=f"{shape.name} bf16")
        yield [
            forward(half, most, half.layer(every, dtype="bf16"), prepared) for prepared in ("none", "bf16")
        ]
        yield [train(half, most, every, "bf16")]
    skewed = replace(Q, name="Q skewed")
    yield [forward(skewed, count, skew(Q.layer(context))) for count, context in contexts.items()]
    small = replace(Q, name="Q 16 tokens per expert", tokens=16 * Q.experts // Q.top_k)
    few = [*(replace(Q, name=f"Q T {tokens}", tokens=tokens) for tokens in (1, 4, 16)), small]
    for prepared in PREPARED:
        layer = Q.layer(every)
        yield [forward(shape, most, layer, prepared) for shape in few]
    for form in FEW_BITS:
        yield [forward(few[0], most, Q.layer(every), form)]
    narrow = replace(Q, name="Q with I = 1", inner=1)
    yield [forward(narrow, most, narrow.layer(every))]
    many = Shape("experts", tokens=4096, hidden=512, inner=512, experts=0, top_k=2, kind="gelu")
    spread = [replace(many, name=f"E {experts}", experts=experts) for experts in (8, 32, 128, 512)]
    yield [forward(shape, most, shape.layer(every)) for shape in spread]
    yield [adamw(count, context, moments) for count, context in contexts.items() for moments in ADAMW_BYTES]


def skew(layer: libmoe.Layer) -> libmoe.Layer:
    """Return the layer with Zipf's bias: the e-th expert as likely as 1 / (e + 1)."""
    layer.parameters["router.bias"].data[:] = -np.log(np.arange(1, layer.n_experts + 1))
    return layer


def forward(shape: Shape, threads: int, layer: libmoe.Layer, prepared: words.Prepared = "none") -> Case:
    """Return forward for evaluation.

    Runs take turns with several inputs, so that a few tokens do not find their experts' weights in the cache.
    """
    layer.prepare(prepared)
    inputs = [tokens(shape, seed) for seed in range(8 if shape.tokens <= 16 else 1)]
    y = np.empty_like(inputs[0])
    counts = [layer.forward(x, out=y).report.tokens_per_expert for x in inputs]
    in_use = float(np.mean([np.count_nonzero(count) for count in counts]))
    turns = cycle(inputs)
    return Case(
        shape.name + " forward" + ("" if prepared == "none" else f", prepared {prepared}"),
        threads,
        lambda: layer.forward(next(turns), out=y),
        shape.operations(),
        shape.traffic(
            in_use,
            layer.parameters["experts.up.weight"].data.itemsize
            if prepared == "none"
            else packed_bits(prepared) / 8,
        ),
        busiest=float(counts[0].max() / counts[0].mean()),
    )


def train(shape: Shape, threads: int, context: libmoe.Context, dtype: Dtype = "f32") -> Case:
    """Return forward with a tape, and backward with all gradients."""
    layer = shape.layer(context, backward=True, dtype=dtype)
    tape = layer.tape()
    x, dy = tokens(shape, 0), tokens(shape, 1)
    y, dx = np.empty_like(x), np.empty_like(x)

    def run() -> None:
        layer.forward(x, tape=tape, training=True, out=y)
        layer.backward(tape, dy, out=dx)

    return Case(f"{shape.name} forward + backward", threads, run, shape.operations(backward=True))


def adamw(threads: int, context: libmoe.Context, moments: Dtype) -> Case:
    """Return a step of AdamW."""
    generator = np.random.default_rng(0)
    data, gradient = (generator.standard_normal(PARAMETERS, np.float32) for _ in range(2))
    optimizer = libmoe.AdamW([libmoe.Parameter(data, gradient)], state_dtype=moments, context=context)
    return Case(
        f"AdamW, 50 M parameters, moments {moments}",
        threads,
        optimizer.step,
        traffic=ADAMW_BYTES[moments] * PARAMETERS,
    )


def tokens(shape: Shape, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return random numbers [T, H]."""
    return np.random.default_rng(seed).standard_normal((shape.tokens, shape.hidden), np.float32)


def line(case: Case, peak: dict[str, Any]) -> dict[str, Any]:
    """Return what is written about one case; `peak` is of its number of threads."""
    result = asdict(replace(case, run=str))
    del result["run"]
    if case.operations:
        result["gflops"] = 1e-9 * case.operations / case.seconds
        result["of_fma_peak"] = result["gflops"] / peak["gflops"]
    if case.traffic:
        result["gbs"] = 1e-9 * case.traffic / case.seconds
        result["of_read_bandwidth"] = result["gbs"] / peak["gbs"]
    return result


def print_machine(peaks: dict[int, dict[str, Any]]) -> None:
    """Print the marks that the layer is measured against."""
    for threads, peak in peaks.items():
        print(
            f"this machine, {threads} threads ({peak['instructions']}): "
            f"{peak['gflops']:.0f} GFLOP/s of float32 FMA, {peak['gbs']:.1f} GB/s of reading"
        )


def print_line(entry: dict[str, Any]) -> None:
    """Print one line of the table, blank where a column says nothing."""
    columns = f"{entry['work']:46} {entry['threads']:7} {1e3 * entry['seconds']:9.3f}"
    columns += f" {entry['gflops']:8.1f} {100 * entry['of_fma_peak']:6.1f}" if "gflops" in entry else " " * 16
    columns += f" {entry['gbs']:6.1f} {100 * entry['of_read_bandwidth']:6.1f}" if "gbs" in entry else ""
    print(columns, flush=True)


def conclusions(lines: list[dict[str, Any]], peak: dict[str, Any]) -> dict[str, float]:
    """Return the figures that come from several lines."""
    most = max(entry["threads"] for entry in lines)
    seconds = {(entry["work"], entry["threads"]): entry["seconds"] for entry in lines}
    traffic = {entry["work"]: entry["traffic"] for entry in lines}
    result = {}
    for work, threads in seconds:
        if most > 1 and threads == 1:
            result[f"{work}: 1 thread / {most} threads, time"] = seconds[work, 1] / seconds[work, most]
    result["Q: time with I = 1 / forward, about the share beside the experts"] = (
        seconds["Q with I = 1 forward", most] / seconds["Q forward", most]
    )
    fewest = "E 8 forward"
    for work, threads in seconds:
        if work.startswith("E ") and work != fewest:
            reading = (traffic[work] - traffic[fewest]) / (1e9 * peak["gbs"])
            expected = seconds[fewest, threads] + reading
            result[f"{work}: time / (time of E 8 + reading the weights)"] = seconds[work, threads] / expected
    return result


if __name__ == "__main__":
    sys.exit(main())
