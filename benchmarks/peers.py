"""Run libmoe and what users would take instead by turns; print the ratios and write peers.json.

    python peers.py FOLDER

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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "peers"))

import numpy as np  # noqa: E402
from protocol import Array, Work  # noqa: E402
from shapes import Q, S  # noqa: E402

import libmoe  # noqa: E402

ROUNDS = 5
REST = 0.3  # seconds between turns, in which the other side's idle threads stop spinning
LIMITS = {"f32": 1e-3, "bf16": 3e-2}  # of |theirs - ours| / |ours|


@dataclass(frozen=True)
class Peer:
    """A program that does the layer's work, and which work it can do."""

    name: str
    command: list[str]
    can: Callable[[Work], bool]


def peers(folder: Path) -> list[Peer]:
    """Return libmoe's competitors."""

    def script(name: str) -> list[str]:
        return [sys.executable, str(HERE / "peers" / name)]

    return [
        Peer("OpenBLAS loop", [str(folder / "openblas_loop")], lambda w: w.dtype == "f32" and not w.backward),
        Peer("PyTorch loop", script("pytorch_loop.py"), lambda w: True),
        Peer(
            "transformers block",
            script("transformers_block.py"),
            lambda w: w.dtype == "f32" and w.shape.kind == "swiglu",
        ),
        Peer("ONNX Runtime MoE", script("onnxruntime_moe.py"), lambda w: w.dtype == "f32" and not w.backward),
    ]


def works(folder: Path, threads: int) -> list[list[Work]]:
    """Return what is run; the works of one list share their parameters' files."""

    def on(shape: Any, *kinds: tuple[bool, str]) -> list[Work]:
        return [Work(folder, shape, backward, dtype, threads) for backward, dtype in kinds]

    both = [(False, "f32"), (True, "f32"), (False, "bf16"), (True, "bf16")]
    small = replace(Q, name="Q 16 tokens per expert", tokens=16 * Q.experts // Q.top_k)
    few = [replace(Q, name=f"Q T {tokens}", tokens=tokens) for tokens in (1, 4, 16)]
    return [
        on(S, *both),
        on(Q, *both),
        on(small, (False, "f32")),
        *(on(shape, (False, "f32")) for shape in few),
    ]


def main() -> int:
    """Measure, print and write."""
    target = Path(sys.argv[1])
    threads = len(os.sched_getaffinity(0))
    load = os.getloadavg()
    print(f"{threads} threads each; load average before: {load[0]:.2f} (near 0 is a quiet machine)")
    print(
        f"\n{'work':36} {'peer':20} {'ours ms':>9} {'theirs ms':>10} {'ratio':>6} {'difference':>10}  version"
    )
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=target) as folder:
        for group in works(Path(folder), threads):
            write_inputs(group[0])
            for work in group:
                for peer in peers(target):
                    if peer.can(work):
                        lines.append(compare(work, peer))
                        print_line(lines[-1])
    everything = {
        "threads": threads,
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
        "lines": lines,
    }
    (target / "peers.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(f"\nload average after: {os.getloadavg()[0]:.2f} (these runs included)")
    print(f"Written: {target}/peers.json")
    wrong = [entry for entry in lines if entry["difference"] > LIMITS[entry["dtype"]]]
    for entry in wrong:
        print(f"{entry['peer']} does not do the same work: {entry['work']}, {entry['difference']:.1e}")
    return 1 if wrong else 0


def write_inputs(work: Work) -> None:
    """Write libmoe's initial parameters, no router bias as some peers have none, and random x and dy."""
    shape = work.shape
    layer = shape.layer(libmoe.Context())
    layer.parameters["router.bias"].data[:] = 0
    for name, parameter in layer.parameters.items():
        parameter.data.tofile(work.folder / name)
    generator = np.random.default_rng(0)
    for name in ("x", "dy"):
        generator.standard_normal((shape.tokens, shape.hidden), np.float32).tofile(work.folder / name)


class Running:
    """A peer's process, ready to take its turn."""

    def __init__(self, command: list[str], work: Work) -> None:
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
        self.version: str = self._read()["version"]
        outputs = ["peer.y", "peer.dx"] if work.backward else ["peer.y"]
        self.outputs: list[Array] = [np.fromfile(work.folder / name, np.float32) for name in outputs]

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
            raise RuntimeError(f"{self.command[-1]} ended early, with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def compare(work: Work, peer: Peer) -> dict[str, Any]:
    """Run libmoe and a peer by turns and return the line of the table."""
    ours = Running([sys.executable, str(HERE / "peers" / "libmoe_layer.py")], work)
    theirs = Running(peer.command, work)
    difference = max(
        float(np.linalg.norm(their - our) / np.linalg.norm(our))
        for their, our in zip(theirs.outputs, ours.outputs)
    )
    turns = [(ours.turn(), theirs.turn()) for _ in range(ROUNDS)]
    ours.close()
    theirs.close()
    mine, their_own = (statistics.median(side) for side in zip(*turns))
    kind = "forward + backward" if work.backward else "forward"
    return {
        "work": f"{work.shape.name} {kind} {work.dtype}",
        "peer": peer.name,
        "version": theirs.version,
        "dtype": work.dtype,
        "ours_seconds": mine,
        "theirs_seconds": their_own,
        "ratio": their_own / mine,
        "ours_gflops": 1e-9 * work.shape.operations(work.backward) / mine,
        "theirs_gflops": 1e-9 * work.shape.operations(work.backward) / their_own,
        "difference": difference,
    }


def print_line(entry: dict[str, Any]) -> None:
    """Print one line of the table."""
    print(
        f"{entry['work']:36} {entry['peer']:20} {1e3 * entry['ours_seconds']:9.3f} "
        f"{1e3 * entry['theirs_seconds']:10.3f} {entry['ratio']:6.2f} {entry['difference']:10.1e}  "
        f"{entry['version']}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
