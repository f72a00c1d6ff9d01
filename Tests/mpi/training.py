"""``python -m libmoe`` under mpiexec beside one process: training.py MPIEXEC FOLDER."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tiny import SMALL, state, text

MPIEXEC, FOLDER = sys.argv[1], Path(sys.argv[2])
MODEL = str(Path(__file__).parents[2] / "bindings/python/tests/pretrained/folders/mixtral")
TUNE = (
    "--steps 4 --sequence-length 12 --sequences 3 --evaluate-every 2 --evaluate-tokens 100 --warmup-steps 1 "
    "--schedule constant --log-every 1 --threads 1"
).split()


def command(ranks: int, *arguments: str) -> list[str]:
    """Return a command line; 0 ranks: without mpiexec."""
    started = [MPIEXEC, "-n", str(ranks)] if ranks else []
    return [*started, sys.executable, "-m", "libmoe", *arguments]


def done(ranks: int, *arguments: str) -> str:
    """Run it to its end and return what it prints."""
    made = subprocess.run(command(ranks, *arguments), capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, f"{arguments}: {made.returncode}\n{made.stdout}\n{made.stderr}"
    return made.stdout


def refused(line: list[str], words: str) -> None:
    """All ranks end, and the first one says why."""
    wrong = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert wrong.returncode != 0 and words in wrong.stderr, wrong


def processes(run: Path) -> list[int]:
    """Return the ranks that train into a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.path.basename(line[0]).startswith(b"python") and str(run).encode() in line:
                found.append(int(entry.name))
    return found


def evaluations(run: Path) -> int:
    """Return how many there have been."""
    path = run / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(json.loads(line)["kind"] == "evaluation" for line in lines if line.endswith("}"))


def begun(ranks: int, run: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a run and wait for its second evaluation."""
    with (FOLDER / "interrupted.log").open("w") as log:
        started = subprocess.Popen(
            command(ranks, "train", *arguments, "--output", str(run)),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until = time.monotonic() + 120
    while evaluations(run) < 2:
        assert time.monotonic() < until and started.poll() is None, (FOLDER / "interrupted.log").read_text()
        time.sleep(0.02)
    return started


def ended(started: subprocess.Popen[bytes], run: Path) -> None:
    """All of its processes end within a minute."""
    started.wait(60)
    until = time.monotonic() + 60
    while processes(run):
        assert time.monotonic() < until, "ranks are still there"
        time.sleep(0.1)


def of_a_folder(file: str) -> None:
    """Let a folder's model write, measure it, train from it, and go on with another number of ranks."""
    read = (
        ("generate", MODEL, "--prompt", "the cat", "--tokens", "9", "--seed", "3"),
        (
            "generate",
            MODEL,
            "--prompt",
            "the cat",
            "--tokens",
            "9",
            "--greedy",
            "--prepared",
            "int8_a8",
        ),
        ("eval", MODEL, file, "--tokens", "2000", "--sequence-length", "30"),
    )
    expected = [done(0, *each) for each in read]
    for ranks in (2, 3):
        assert [done(ranks, *each) for each in read] == expected, ranks
    tuned = ["train", file, "--init", MODEL, *TUNE]
    alone, run = FOLDER / "tuned", FOLDER / "tuned on ranks"
    done(0, *tuned, "--output", str(alone))
    done(3, *tuned, "--output", str(run), "--steps", "2", "--memory-limit", "2")
    done(2, "train", "--resume", str(run), "--steps", "4")
    assert state(run) == state(alone)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (run / "model" / name).read_bytes() == (alone / "model" / name).read_bytes(), name


def main() -> None:
    """Train, evaluate, sample; kill a rank; interrupt; the same of a model's folder."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    of_a_folder(text(FOLDER))
    given = [text(FOLDER), *SMALL]
    alone = FOLDER / "alone"
    done(0, "train", *given, "--steps", "12", "--output", str(alone))
    read = (
        ("eval", str(alone)),
        ("sample", str(alone), "--prompt", "the model", "--tokens", "20"),
    )
    expected = [done(0, *each) for each in read]
    for ranks in (1, 2, 3, 4):
        run = FOLDER / f"of{ranks}"
        told = done(ranks, "train", *given, "--steps", "12", "--output", str(run))
        assert told.count("to train on") == 1, told
        assert state(run) == state(alone), ranks
        assert [done(ranks, *each) for each in read] == expected, ranks

    refused(command(2, "train", "no such file", "--output", str(FOLDER / "none")), "rank 0: no such file")
    shorter = command(1, "generate", MODEL, "--prompt", "the cat", "--tokens", "3")
    longer = ["-n", "1", *command(0, "generate", MODEL, "--prompt", "the cat", "--tokens", "9")]
    refused([*shorter, ":", *longer], "--tokens: the ranks of a run have different ones")

    long = FOLDER / "long"
    done(0, "train", *given, "--steps", "400", "--output", str(long))
    killed = FOLDER / "killed"
    started = begun(3, killed, *given, "--steps", "400")
    os.kill(processes(killed)[-1], signal.SIGKILL)
    ended(started, killed)
    before = evaluations(killed)
    assert before < 100, "it was over before it was killed"
    done(2, "train", "--resume", str(killed))
    assert state(killed) == state(long)

    stopped = FOLDER / "stopped"
    started = begun(3, stopped, *given, "--steps", "100000")
    os.kill(started.pid, signal.SIGINT)
    ended(started, stopped)


main()
