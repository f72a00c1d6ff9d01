"""Tiny runs of the trainer: a text of words, two layers of H 16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import libmoe
from libmoe.train import Settings
from libmoe.train.folder import LAST

WORDS = b"the model routes every token to its experts and the experts learn what they see\n".split(b" ")


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
    }
    return subprocess.Popen(
        [sys.executable, "-m", "libmoe", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finished(*arguments: str) -> tuple[int, str, str]:
    """Run ``python -m libmoe`` to its end: exit status, output, errors."""
    child = command(*arguments)
    try:
        out, err = child.communicate(timeout=300)
    finally:
        child.kill()
    return child.returncode, out, err
