"""The layer over the ranks of mpiexec, by turns with one process and with transformers; write ranks.json.

    python ranks.py LIBRARY FOLDER [--torch PYTHON] [--only PART]

LIBRARY is libmoe_mpi.so, FOLDER where the file goes, PYTHON that of a venv with transformers.  README.md has
the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import HERE, ROUNDS, Running, script, write_inputs

sys.path.append(str(HERE / "peers"))

from protocol import Work  # noqa: E402
from shapes import Q, S, Shape  # noqa: E402

import libmoe  # noqa: E402
from libmoe.ranks import LayerWork, Machine, plan  # noqa: E402

SWIGLU = replace(S, name="S SwiGLU", kind="swiglu")  # as transformers has them
TOKENS = 4096  # a rank, on the slow link
TO_REACH = {"one process": 0.85, "transformers": 2.0}
AGREES = 0.15  # of the measured time


class Sides:
    """Starts what is compared: each is a process, or one for each rank, that takes its turn when asked."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.library, self.torch = str(Path(asked.library).resolve()), asked.torch

    def one_process(self, work: Work) -> Running:
        """All threads in one process."""
        return Running(script("libmoe_layer.py"), work)

    def ranks(self, work: Work, size: int) -> Running:
        """As many ranks, which share the work's threads."""
        return Running([*self.mpiexec(size), *script("libmoe_ranks.py", self.library)], work)

    def transformers(self, work: Work) -> Running:
        """As many processes as the work has threads."""
        command = script("transformers_ranks.py")
        return Running([self.torch, *command[1:]], work)

    def exchange(self, size: int) -> dict[str, Any]:
        """Return what messages take."""
        command = [*self.mpiexec(size), sys.executable, str(HERE / "exchange.py"), self.library]
        found: dict[str, float] = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        )
        return found

    def mpiexec(self, size: int) -> list[str]:
        """Return the beginning of a command; ranks are bound as little as the threads of one process."""
        return ["mpiexec", "--bind-to", "none", "-n", str(size)]


def by_turns(first: Running, second: Running) -> tuple[float, float, float]:
    """Return the median seconds of both, and how far their answers are apart."""
    difference = max(
        float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(first.outputs, second.outputs)
    )
    turns = [(first.turn(), second.turn()) for _ in range(ROUNDS)]
    first.close()
    second.close()
    one, two = (statistics.median(side) for side in zip(*turns))
    return one, two, difference


def speed(sides: Sides, folder: Path, threads: int) -> Iterator[dict[str, Any]]:
    """Two ranks beside one process, and beside transformers' ranks."""
    for shape in (S, SWIGLU, Q):
        work = Work(folder, shape, True, "f32", threads)
        write_inputs(work)
        beside = ["one process", *(["transformers"] if sides.torch and shape.kind == "swiglu" else [])]
        for name in beside:
            other = sides.one_process(work) if name == "one process" else sides.transformers(work)
            theirs, ours, difference = by_turns(other, sides.ranks(work, threads))
            yield {
                "part": "speed",
                "work": work.name,
                "beside": name,
                "version": other.facts["version"],
                "ranks": threads,
                "ours_seconds": ours,
                "theirs_seconds": theirs,
                "ratio": theirs / ours,
                "to_reach": TO_REACH[name],
                "difference": difference,
                "as_expected": difference <= (0 if name == "one process" else work.limit),
            }


def link(folder: Path) -> Iterator[dict[str, Any]]:
    """Two ranks on a slow link, and their bytes."""
    tests = HERE.parent / "bindings" / "python" / "tests" / "support"
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tests)])
    command = [sys.executable, str(HERE / "slow_link.py"), str(TOKENS)]
    found = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    for line in found.stdout.splitlines():
        told = json.loads(line)
        yield {"part": "link", **told, "to_reach": 0.8, "as_expected": told["as_arithmetic"]}


def simulated(sides: Sides, folder: Path, threads: int) -> Iterator[dict[str, Any]]:
    """1 to 4 ranks beside one process, measured and as `libmoe.ranks.plan` has them.

    The machine is what one process takes with one thread and with all, and what messages take; its speed
    changes by the minute, so that times over those of one process in the same minutes are compared.
    """
    messages = sides.exchange(2)
    for shape in (S, Q):
        work = Work(folder, shape, True, "f32", threads)
        write_inputs(work)
        slow, fast, _ = by_turns(sides.one_process(replace(work, threads=1)), sides.one_process(work))
        machine = machine_of(shape, slow, fast, threads, messages)
        loads = tokens_per_expert(work)
        yield {"part": "machine", "work": work.name, "machine": asdict(machine)}
        for size in range(1, 5):
            whole, measured, difference = by_turns(sides.one_process(work), sides.ranks(work, size))
            of_ranks = [part.sum() for part in np.array_split(loads, size)]
            imbalance = float(max(of_ranks) / np.mean(of_ranks))
            layer = replace(layer_work(shape, shape.tokens // size), imbalance=imbalance)
            each = max(1, threads // size)
            strategies = plan(layer, machine, size, threads=each).strategies
            made = next(one for one in strategies if one.runs and one.ep == size)
            found, wanted = made.seconds / fast, measured / whole
            yield {
                "part": "simulated",
                "work": work.name,
                "ranks": size,
                "measured_seconds": measured,
                "measured": wanted,
                "simulated": found,
                "off": found / wanted - 1,
                "waiting": made.exchanged_share,
                "difference": difference,
                "as_expected": difference == 0 and abs(found / wanted - 1) <= AGREES,
            }


def tokens_per_expert(work: Work) -> NDArray[np.int64]:
    """Return [E] how many rows each expert has."""
    layer = work.shape.layer(libmoe.Context())
    for name, parameter in layer.parameters.items():
        if name.startswith("router."):
            parameter.data[...] = work.load(name)
    return layer.forward(work.load("x")).report.tokens_per_expert


def layer_work(shape: Shape, tokens: int) -> LayerWork:
    """Return a shape as the planner takes it."""
    kind: Any = "gated" if shape.kind == "swiglu" else "mlp"
    return LayerWork(shape.hidden, shape.inner, shape.experts, shape.top_k, tokens, expert_kind=kind)


def machine_of(shape: Shape, slow: float, fast: float, threads: int, messages: dict[str, Any]) -> Machine:
    """Return the machine by the seconds that one thread and all threads take."""
    operations = layer_work(shape, shape.tokens).operations
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cores=threads,
        core_rate=operations / slow,
        node_rate=operations / fast,
        memory=float(memory),
        **messages,
    )


def show(line: dict[str, Any]) -> str:
    """Return a line of the table."""
    told = line.get("machine", line)
    scaled = {**told, **{f"{name}_ms": 1e3 * told[name] for name in told if "seconds" in name}}
    if line["part"] == "machine":
        scaled = {name: value / (1e9 if "rate" in name else 1e-6) for name, value in told.items()}
    return f"{line['work']:32} " + SHOWN[line["part"]].format(**scaled)


SHOWN = {
    "speed": "{ranks} ranks {ours_seconds_ms:9.1f} ms, {beside:12} {theirs_seconds_ms:9.1f} ms, ratio "
    "{ratio:5.2f} (to reach {to_reach}), difference {difference:.1e}  {version}",
    "link": "{bytes_of_features:,} bytes of rows and gate, {bytes_by_arithmetic:,} by arithmetic, "
    "{bytes_sent:,} in all; a step {seconds_ms:.0f} ms, on the link "
    "{seconds_on_link_ms:.1f} ms, of which hidden {hidden:.0%}",
    "machine": "{core_rate:.1f} GFLOP/s one core, {node_rate:.1f} all; messages {copy_rate:.1f} GB/s, "
    "{copy_latency:.0f} us",
    "simulated": "{ranks} ranks {measured_seconds_ms:9.1f} ms, over one process: measured {measured:5.2f}, "
    "simulated {simulated:5.2f}, {off:+.1%}",
}


def lines(asked: argparse.Namespace, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of all parts that are asked for."""
    sides = Sides(asked)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "speed": lambda: speed(sides, folder, threads),
            "link": lambda: link(folder),
            "simulated": lambda: simulated(sides, folder, threads),
        }
        for part, measured in parts.items():
            if asked.only in part:
                yield from measured()


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", default="", metavar="PYTHON", help="of the venv that transformers is in")
    parser.add_argument("--only", default="", metavar="PART", help="speed, link or simulated")
    asked = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    load = os.getloadavg()
    print(f"{threads} threads; load average before: {load[0]:.2f} (near 0 is a quiet machine)\n")
    found = []
    for line in lines(asked, threads):
        found.append(line)
        print(show(line), flush=True)
    machines = [line["machine"] for line in found if line["part"] == "machine"]
    everything = {
        "threads": threads,
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
        **({"machine": machines[-1]} if machines else {}),
        "lines": found,
    }
    (asked.folder / "ranks.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(f"\nload average after: {os.getloadavg()[0]:.2f} (these runs included)")
    wrong = [line for line in found if not line.get("as_expected", True)]
    for line in wrong:
        print(f"not as expected: {show(line)}")
    return 1 if wrong else 0


sys.exit(main())
