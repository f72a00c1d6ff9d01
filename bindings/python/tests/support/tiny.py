"""Tiny runs of the trainer: a text of words, two layers of H 16."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import libmoe
from libmoe import cli
from libmoe.train import Settings
from libmoe.train.folder import LAST

WORDS = b"the model routes every token to its experts and the experts learn what they see\n".split(b" ")

# The settings below on a command line.
SMALL = (
    "--hidden-size 16 --n-layers 2 --n-heads 2 --n-experts 4 --intermediate-size 16 --sequence-length 16 "
    "--sequences 4 --warmup-steps 2 --evaluate-every 4 --evaluate-tokens 256 --log-every 1 --threads 1"
).split()


def text(folder: Path, size: int = 60_000, name: str = "text.txt") -> str:
    """Write a text of random words and return its name."""
    rng = np.random.default_rng(len(name))
    written = b" ".join(WORDS[i] for i in rng.integers(len(WORDS), size=size // 3))[:size]
    (folder / name).write_bytes(written)
    return str(folder / name)


def settings(folder: Path, **changes: Any) -> Settings:
    """Return settings of a run of a second."""
    small: dict[str, Any] = {
        "files": (text(folder),),
        "hidden_size": 16,
        "n_layers": 2,
        "n_heads": 2,
        "n_experts": 4,
        "intermediate_size": 16,
        "steps": 12,
        "sequence_length": 16,
        "sequences": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "evaluate_every": 4,
        "evaluate_tokens": 256,
        "log_every": 1,
        "threads": 1,
    }
    return Settings().changed({**small, **changes})


def state(run: Path) -> dict[str, bytes]:
    """Return every tensor of a run's last checkpoint but that of its numbers, of which seconds are one."""
    with libmoe.Checkpoint(run / LAST) as checkpoint:
        names = sorted(name for name in checkpoint if name.startswith("tensors."))
        numbers = max(names, key=lambda name: int(name.split(".")[1]))
        return {name: checkpoint[name].tobytes() for name in checkpoint if name != numbers}


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start ``python -m libmoe``."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(libmoe.__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}",
        **options.pop("env", {}),
    }
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(
        [sys.executable, "-m", "libmoe", *arguments], env=environment, text=True, **outputs
    )


def called(*arguments: str) -> tuple[int, str, str]:
    """Do what ``python -m libmoe`` does, in this process: exit status, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(arguments)
        except SystemExit as left:
            status = int(left.code or 0)
    return status, out.getvalue(), err.getvalue()


def finished(*arguments: str) -> tuple[int, str, str]:
    """Run ``python -m libmoe`` to its end: exit status, output, errors."""
    child = command(*arguments)
    try:
        out, err = child.communicate(timeout=300)
    finally:
        child.kill()
    return child.returncode, out, err
