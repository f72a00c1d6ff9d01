"""Run libmoe and PyTorch by turns on whole models, print the ratios and write model-PART.json.

    python model.py FOLDER [train|attention|generate ...]

FOLDER is where the files go; without a part all run.  README.md explains the columns.
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

import numpy as np
from peers import HERE, Running, script

sys.path.append(str(HERE / "peers"))

from libmoe_model import model_of  # noqa: E402
from model_work import (  # noqa: E402
    ATTENTION_HEADS,
    ATTENTION_SIZE,
    BATCH,
    CONTEXT,
    VOCABULARY,
    AttentionWork,
    ModelWork,
)
from protocol import Array  # noqa: E402
from shapes import Dtype  # noqa: E402

import libmoe  # noqa: E402

ROUNDS = 5
MIB = 2**20
# Of scratch and tape, for training with a memory limit: somewhat less than a third of what PyTorch takes.
LIMITS: dict[Dtype, int] = {"f32": 256 * MIB, "bf16": 176 * MIB}
TIMED = 2048  # tokens of the attention that is timed
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)  # tokens of attention, for its memory

Line = dict[str, Any]


def compare(work: ModelWork | AttentionWork, ours: list[str], theirs: list[str], rounds: int) -> Line:
    """Run both, check that they do the same, and let them take turns."""
    running = [Running(command, work) for command in (ours, theirs)]
    mine, other = running
    rounded = isinstance(work, ModelWork) and work.dtype == "bf16"
    apart = by_token if rounded else overall
    difference = max(apart(our, their) for our, their in zip(mine.outputs, other.outputs))
    turns = [[side.turn() for side in running] for _ in range(rounds)]
    for side in running:
        side.close()
    seconds = [statistics.median(times) for times in zip(*turns)]
    return {
        "work": work.name,
        "amount": work.amount,
        "seconds": seconds,
        "ratio": seconds[1] / seconds[0] if rounds else None,
        "facts": [side.facts for side in running],
        "difference": difference,
        "limit": work.limit,
    }


def overall(ours: Array, theirs: Array) -> float:
    """Return |theirs - ours| / |ours|."""
    return float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))


def by_token(ours: Array, theirs: Array) -> float:
    """Return the median over tokens of that of their logits.

    Rounded to bfloat16, some tokens go to another expert, on either side, and differ by what experts differ.
    """
    ours, theirs = (logits.reshape(-1, VOCABULARY) for logits in (ours, theirs))
    return float(np.median(np.linalg.norm(theirs - ours, axis=1) / np.linalg.norm(ours, axis=1)))


def train(folder: Path, threads: int) -> Iterator[Line]:
    """Compare training steps."""
    write_model(folder)
    print(
        f"\ntraining, batches of {BATCH} x {CONTEXT} tokens: tokens/s; MiB above weights, gradients, moments"
    )
    print(
        f"{'':28} {'ours':>8} {'theirs':>8} {'ratio':>6} "
        f"{'ours MiB':>8} {'theirs':>8} {'share':>6} {'difference':>11}"
    )
    for dtype, least in LIMITS.items():
        work = ModelWork("train", folder, dtype, threads)
        for limit, way in ((0, "eager"), (0, "compiled"), (least, "eager")):
            ours, theirs = script("libmoe_model.py", str(limit)), script("pytorch_model.py", way)
            line = compare(work, ours, theirs, ROUNDS)
            line["work"] += f", limit {limit // MIB} MiB" if limit else f", {way}"
            mine, other = (facts["resident"] / MIB for facts in line["facts"])
            print(f"{rates(line)} {mine:8.1f} {other:8.1f} {mine / other:6.2f} {line['difference']:11.1e}")
            yield line


def generate(folder: Path, threads: int) -> Iterator[Line]:
    """Compare the generation of one sequence."""
    write_model(folder)
    print("\ngeneration of one sequence, greedy: tokens/s")
    print(f"{'':28} {'ours':>8} {'theirs':>8} {'ratio':>6} {'difference':>11}")
    work = ModelWork("generate", folder, "f32", threads)
    line = compare(work, script("libmoe_model.py", "0"), script("pytorch_model.py", "eager"), ROUNDS)
    print(f"{rates(line)} {line['difference']:11.1e}")
    yield line


def attention(folder: Path, threads: int) -> Iterator[Line]:
    """Compare attention's time at one length, and its memory at several."""
    ours, theirs = script("libmoe_attention.py"), script("pytorch_attention.py")
    print(f"\nattention, {ATTENTION_HEADS} heads of {ATTENTION_SIZE}, forward and backward: GFLOP/s")
    print(f"{'':28} {'ours':>8} {'theirs':>8} {'ratio':>6} {'difference':>11}")
    write_attention(folder, TIMED)
    for dtype, causal in itertools.product(("f32", "bf16"), (False, True)):
        line = compare(AttentionWork(folder, TIMED, causal, dtype, threads), ours, theirs, ROUNDS)
        print(f"{rates(line, 1e-9)} {line['difference']:11.1e}")
        yield line
    print("\nits memory above query, key, value, output and their gradients: MiB")
    print(f"{'':28} {'ours':>8} {'theirs':>8} {'':6} {'difference':>11}")
    for length in LENGTHS:
        write_attention(folder, length)
        line = compare(AttentionWork(folder, length, True, "f32", threads), ours, theirs, 0)
        mine, other = (facts["resident"] / MIB for facts in line["facts"])
        print(f"{line['work']:28} {mine:8.2f} {other:8.2f} {'':6} {line['difference']:11.1e}", flush=True)
        yield line


def rates(line: Line, unit: float = 1.0) -> str:
    """Return the first columns of a table: amounts of work a second, and their ratio."""
    mine, other = (unit * line["amount"] / seconds for seconds in line["seconds"])
    return f"{line['work']:28} {mine:8.1f} {other:8.1f} {line['ratio']:6.2f}"


def write_model(folder: Path) -> None:
    """Write libmoe's initial parameters, and random tokens."""
    model = model_of(libmoe.Context(), "f32", inference_only=True)
    values: dict[str, Any] = {name: p.data for name, p in model.parameters.items()}
    np.savez(folder / "model.npz", **values)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, CONTEXT + 1), np.int32)
    np.save(folder / "tokens.npy", tokens)


def write_attention(folder: Path, length: int) -> None:
    """Write random queries, keys, values and gradients of the output."""
    shape = (4, 1, length, ATTENTION_HEADS, ATTENTION_SIZE)
    np.save(folder / "attention.npy", np.random.default_rng(0).standard_normal(shape, np.float32))


PARTS = {"train": train, "attention": attention, "generate": generate}


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]}; choose from {', '.join(PARTS)}")
    threads = len(os.sched_getaffinity(0))
    print(
        f"{threads} threads each; load average before: {os.getloadavg()[0]:.2f} (near 0 is a quiet machine)"
    )
    wrong = []
    for part in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            lines = list(PARTS[part](Path(folder), threads))
        everything = {"threads": threads, "load_average_after": os.getloadavg(), "lines": lines}
        (arguments.folder / f"model-{part}.json").write_text(json.dumps(everything, indent=1) + "\n")
        wrong += [line for line in lines if not line["difference"] <= line["limit"]]  # NaN is wrong too
    print(f"\nload average after: {os.getloadavg()[0]:.2f} (these runs included)")
    print(f"Written: {arguments.folder}/model-*.json")
    for line in wrong:
        print(f"PyTorch does not do the same work: {line['work']}, {line['difference']:.1e}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
