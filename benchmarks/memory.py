"""What a training step takes in memory and time: by tape policy and limit, and beside PyTorch.

    python memory.py FOLDER [PYTHON]

FOLDER is where memory.json and memory.png go.  PYTHON is an interpreter that has PyTorch; without it PyTorch
is left out.  README.md explains the columns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from peers import HERE, Running, script, write_inputs
from shapes import Shape
from timeline import draw, record

sys.path.append(str(HERE / "peers"))

from protocol import Work  # noqa: E402

ROUNDS = 3
MIB = 2**20
SHAPE = Shape("memory", tokens=16384, hidden=1024, inner=1024, experts=16, top_k=4, kind="swiglu")
LIMIT = 64 * MIB
POLICIES = {
    "full tape": ("full", 0),
    "lean tape": ("lean", 0),
    "lean tape, limit 64 MiB": ("lean", LIMIT),
}


def commands(torch: str | None) -> dict[str, list[str]]:
    """Return the cases by name, libmoe's full tape first."""
    cases = {
        name: script("libmoe_memory.py", policy, str(limit)) for name, (policy, limit) in POLICIES.items()
    }
    if torch is not None:
        for way in ("plain", "checkpointed"):
            name = "PyTorch loop" if way == "plain" else "PyTorch loop, checkpointed"
            cases[name] = [torch, str(HERE / "peers" / "pytorch_memory.py"), way]
    return cases


def measure(cases: dict[str, list[str]], folder: Path, threads: int) -> list[dict[str, Any]]:
    """Run the cases, each in a process of its own, by turns; return a line for each."""
    work = Work(folder, SHAPE, True, "f32", threads)
    write_inputs(work)
    running: dict[str, Running] = {}
    outputs: list[np.ndarray[Any, Any]] = []
    lines = []
    for name, command in cases.items():
        case = running[name] = Running(command, work)
        outputs = outputs or list(case.outputs)
        difference = max(
            float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
            for theirs, ours in zip(case.outputs, outputs)
        )
        lines.append({"case": name, "difference": difference, **case.facts})
        case.outputs.clear()
    turns = [[case.turn() for case in running.values()] for _ in range(ROUNDS)]
    for case in running.values():
        case.close()
    for line, seconds in zip(lines, zip(*turns)):
        line["seconds"] = statistics.median(seconds)
    return lines


def main() -> int:
    """Measure, print, write and draw."""
    target = Path(sys.argv[1])
    torch = sys.argv[2] if len(sys.argv) > 2 else None
    threads = len(os.sched_getaffinity(0))
    print(f"{threads} threads; load average before: {os.getloadavg()[0]:.2f} (near 0 is a quiet machine)")
    if torch is None:
        print("PyTorch is left out: it is not installed here. `benchmarks/run-memory peers` installs it.")
    with tempfile.TemporaryDirectory(dir=target) as folder:
        lines = measure(commands(torch), Path(folder), threads)
    sizes = f"T {SHAPE.tokens} H {SHAPE.hidden} I {SHAPE.inner} E {SHAPE.experts} K {SHAPE.top_k}"
    print(f"\nforward + backward, SwiGLU, float32, {sizes}: above weights, gradients, x, dy, y and dx")
    print(f"{'':28} {'MiB':>7} {'promised':>9} {'s':>7} {'time':>6} {'difference':>11}")
    for line in lines:
        promised = f"{line['promised'] / MIB:9.1f}" if "promised" in line else f"{'':9}"
        print(
            f"{line['case']:28} {line['resident'] / MIB:7.1f} {promised} {line['seconds']:7.2f} "
            f"{line['seconds'] / lines[0]['seconds']:6.2f} {line['difference']:11.1e}  {line['version']}"
        )
    long = json.loads(subprocess.check_output([sys.executable, str(HERE / "long_call.py")]))
    print(
        f"\n{long['tokens']} tokens, H 256 I 256 E 16 K 4, the smallest workable limit: promised "
        f"{long['promised'] / MIB:.1f} MiB, asked for {long['asked_for'] / MIB:.1f}, resident "
        f"{long['resident'] / MIB:.1f}; x alone has {long['x_bytes'] / MIB:.1f}; {long['seconds']:.1f} s"
    )
    steps = [
        json.loads(subprocess.check_output([sys.executable, str(HERE / "fused_step.py"), way]))
        for way in ("apart", "fused")
    ]
    print("\nthe same step with AdamW, full tape: all that libmoe holds, and all that is resident")
    for line in steps:
        print(
            f"{line['way']:6} {line['asked_for'] / MIB:8.1f} MiB {line['resident'] / MIB:8.1f} MiB "
            f"{line['seconds']:6.2f} s  parameters {line['parameters'][:16]}"
        )
    everything = {
        "threads": threads,
        "load_average_after": os.getloadavg(),
        "lines": lines,
        "long": long,
        "steps": steps,
    }
    (target / "memory.json").write_text(json.dumps(everything, indent=1) + "\n")
    draw({name: record(SHAPE, threads, *policy) for name, policy in POLICIES.items()}, target / "memory.png")
    print(f"\nWritten: {target}/memory.json, {target}/memory.png")
    wrong = [line["case"] for line in lines if not line["difference"] <= 1e-3]  # NaN is wrong too
    broken = [line for line in [*lines, long] if line.get("promised") != line.get("asked_for")]
    for name in wrong:
        print(f"{name} does not do the same work")
    for line in broken:
        print(f"asked for {line['asked_for']} bytes and promised {line['promised']}")
    if steps[0]["parameters"] != steps[1]["parameters"]:
        print("the step within backward has other bits")
        return 1
    return 1 if wrong or broken else 0


if __name__ == "__main__":
    sys.exit(main())
