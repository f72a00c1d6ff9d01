"""Run libmoe and what users would take instead by turns; print the ratios and write peers.json.

    python peers.py FOLDER LIBGGML

FOLDER is where openblas_loop was built, and where peers.json goes.  README.md explains the columns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "peers"))

import numpy as np  # noqa: E402
from protocol import Array, Step, Task, Work  # noqa: E402
from shapes import PARAMETERS, Dtype, Q, S  # noqa: E402

import libmoe  # noqa: E402

ROUNDS = 5
REST = 0.3  # seconds between turns, in which the other side's idle threads stop spinning


@dataclass(frozen=True)
class Peer:
    """A program that does the layer's work, and which work it can do."""

    name: str
    command: list[str]
    can: Callable[[Work], bool]


def script(name: str, *arguments: str) -> list[str]:
    """Return the command of a peer in Python."""
    return [sys.executable, str(HERE / "peers" / name), *arguments]


def peers(folder: Path, ggml: str) -> list[Peer]:
    """Return the layer's competitors."""
    return [
        Peer("OpenBLAS loop", [str(folder / "openblas_loop")], lambda w: w.dtype == "f32" and not w.backward),
        Peer("PyTorch loop", script("pytorch_loop.py"), lambda w: True),
        Peer(
            "transformers block",
            script("transformers_block.py"),
            lambda w: w.dtype == "f32" and w.shape.kind == "swiglu",
        ),
        Peer("ONNX Runtime MoE", script("onnxruntime_moe.py"), lambda w: w.dtype == "f32" and not w.backward),
        Peer("ggml graph", script("ggml_graph.py", ggml), lambda w: not w.backward),
    ]


def works(folder: Path, threads: int) -> list[list[Work]]:
    """Return what is run; the works of one list share their parameters' files."""

    def on(shape: Any, *kinds: tuple[bool, Dtype]) -> list[Work]:
        return [Work(folder, shape, backward, dtype, threads) for backward, dtype in kinds]

    forward: list[tuple[bool, Dtype]] = [(False, "f32"), (False, "bf16")]
    both: list[tuple[bool, Dtype]] = [(False, "f32"), (True, "f32"), (False, "bf16"), (True, "bf16")]
    small = replace(Q, name="Q 16 tokens per expert", tokens=16 * Q.experts // Q.top_k)
    few = [replace(Q, name=f"Q T {tokens}", tokens=tokens) for tokens in (1, 4, 16)]
    return [
        on(S, *both),
        on(Q, *both),
        on(small, *forward),
        *(on(shape, *forward) for shape in few),
    ]


def compare_all(target: Path, ggml: str, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of the table."""
    with tempfile.TemporaryDirectory(dir=target) as name:
        folder = Path(name)
        for group in works(folder, threads):
            write_inputs(group[0])
            for work in group:
                for peer in peers(target, ggml):
                    if peer.can(work):
                        yield compare(work, script("libmoe_layer.py"), peer.name, peer.command)
        step = Step(folder, PARAMETERS, threads)
        write_random(folder, PARAMETERS, "p", "g")
        for way in ("fused", "default"):
            command = script("pytorch_adamw.py", way)
            yield compare(step, script("libmoe_adamw.py"), f"PyTorch, {way}", command)


def main() -> int:
    """Measure, print and write."""
    target = Path(sys.argv[1])
    threads = len(os.sched_getaffinity(0))
    load = os.getloadavg()
    print(f"{threads} threads each; load average before: {load[0]:.2f} (near 0 is a quiet machine)")
    print(
        f"\n{'work':36} {'peer':18} {'ours ms':>9} {'theirs ms':>10} {'ratio':>6} "
        f"{'ours':>7} {'theirs':>7} {'':7} {'difference':>10}  version"
    )
    lines: list[dict[str, Any]] = []
    for line in compare_all(target, sys.argv[2], threads):
        lines.append(line)
        print_line(line)
    everything = {
        "threads": threads,
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
        "lines": lines,
    }
    (target / "peers.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(f"\nWritten: {target}/peers.json")
    return status(lines, "peer")


def write_inputs(work: Work) -> None:
    """Write libmoe's initial parameters, no router bias as some peers have none, and random x and dy."""
    shape = work.shape
    layer = shape.layer(libmoe.Context())
    layer.parameters["router.bias"].data[:] = 0
    for name, parameter in layer.parameters.items():
        parameter.data.tofile(work.folder / name)
    write_random(work.folder, shape.tokens * shape.hidden, "x", "dy")


def write_random(folder: Path, count: int, *names: str) -> None:
    """Write files of normal numbers."""
    generator = np.random.default_rng(0)
    for name in names:
        generator.standard_normal(count, np.float32).tofile(folder / name)


class Running:
    """A peer's process, ready to take its turn."""

    def __init__(self, command: list[str], work: Task) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS")}
        environment["OMP_NUM_THREADS"] = str(work.threads)
        paths = [str(HERE), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        self.command = command
        self.process = subprocess.Popen(
            [*command, *work.arguments()],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()
        files = [work.folder / f"peer.{name}" for name in work.outputs]
        self.outputs: list[Array] = [np.fromfile(file, np.float32) for file in files]
        for file in files:
            file.unlink()  # so that nobody's answer can pass for another's

    def turn(self) -> float:
        """Return the median seconds of its runs."""
        time.sleep(REST)
        stdin = self._pipe(self.process.stdin)
        stdin.write("\n")
        stdin.flush()
        return float(self._read()["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _read(self) -> dict[str, Any]:
        line = self._pipe(self.process.stdout).readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.command)} ended early, with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def compare(work: Task, our_command: list[str], name: str, command: list[str]) -> dict[str, Any]:
    """Run libmoe and a peer by turns and return the line of the table."""
    ours = Running(our_command, work)
    theirs = Running(command, work)
    difference = max(
        float(np.linalg.norm(their - our) / np.linalg.norm(our))
        for their, our in zip(theirs.outputs, ours.outputs)
    )
    turns = [(ours.turn(), theirs.turn()) for _ in range(ROUNDS)]
    ours.close()
    theirs.close()
    mine, their_own = (statistics.median(side) for side in zip(*turns))
    return {
        "work": work.name,
        "peer": name,
        "version": theirs.facts["version"],
        "ours_seconds": mine,
        "theirs_seconds": their_own,
        "ratio": their_own / mine,
        "ours_rate": 1e-9 * work.amount / mine,
        "theirs_rate": 1e-9 * work.amount / their_own,
        "unit": work.unit,
        "difference": difference,
        "limit": work.limit,
    }


def by_turns(running: dict[str, Running], before: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Let all take turns, once around and once back, and end them; return the median seconds of each."""
    turns: dict[str, list[float]] = {name: [] for name in running}
    for round_ in range(ROUNDS):
        before()
        for name in list(running) if round_ % 2 == 0 else list(running)[::-1]:
            turns[name].append(running[name].turn())
    for side in running.values():
        side.close()
    return {name: statistics.median(seconds) for name, seconds in turns.items()}


def by_row(ours: Array, theirs: Array, count: int) -> float:
    """Return the median over rows of |theirs - ours| / |ours|: rounding may choose another expert."""
    ours, theirs = ours.reshape(count, -1), theirs.reshape(count, -1)
    return float(np.median(np.linalg.norm(theirs - ours, axis=1) / np.linalg.norm(ours, axis=1)))


def status(lines: list[dict[str, Any]], side: str) -> int:
    """Name those whose answer is too far from ours, and return the exit status."""
    print(f"\nload average after: {os.getloadavg()[0]:.2f} (these runs included)")
    wrong = [line for line in lines if not line["difference"] <= line["limit"]]  # NaN is wrong too
    for line in wrong:
        print(f"{line[side]} does not do the same work: {line['work']}, {line['difference']:.1e}")
    return 1 if wrong else 0


def print_line(entry: dict[str, Any]) -> None:
    """Print one line of the table."""
    print(
        f"{entry['work']:36} {entry['peer']:18} {1e3 * entry['ours_seconds']:9.3f} "
        f"{1e3 * entry['theirs_seconds']:10.3f} {entry['ratio']:6.2f} "
        f"{entry['ours_rate']:7.1f} {entry['theirs_rate']:7.1f} {entry['unit']:7} "
        f"{entry['difference']:10.1e}  {entry['version']}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
