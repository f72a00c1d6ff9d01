"""What mypy --strict says to a user: words that there are pass, others do not, and neither do models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import libmoe
from child import ENVIRONMENT

pytest.importorskip("mypy")

PROGRAM = """\
import numpy

import libmoe
from libmoe import words

options = libmoe.presets.mixtral(hidden_size=64)
layout: words.Layout = libmoe.presets.LAYOUTS["mixtral"][0]
score: words.Score = "sigmoid"
layer = libmoe.Layer(8, 16, 4, 2, router="hash", score=score, unallocated="expert_weights")
model = libmoe.Model(8, 1, 2, norm_place="post", dense_kind="mlp", weight_dtype="bf16")
optimizer: libmoe.Optimizer = libmoe.SGD(layer.parameters, state_dtype="bf16")

libmoe.presets.mixtrel()  # wrong: attr-defined
libmoe.Layer(8, 16, 4, 2, router="hush")  # wrong: arg-type
libmoe.Layer(8, 16, 4, 2, weight_dtype="i64")  # wrong: arg-type
libmoe.Layer(8, 16, 4, 2, losses={"swich": 0.1})  # wrong: dict-item
libmoe.Model(8, 1, 2, dense_kind="linear")  # wrong: arg-type
libmoe.AdamW(layer.parameters, state_dtype="f64")  # wrong: arg-type
libmoe.Context(matmul="blas")  # wrong: arg-type
layer.save("a", layout="mixtrel")  # wrong: arg-type
layer.forward(numpy.ones((3, 8), numpy.float32), tape_policy="fat")  # wrong: arg-type
libmoe.Schedule("cosinus")  # wrong: arg-type
"""


def test_mypy_knows_the_words(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(program)]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        env={**ENVIRONMENT, "MYPYPATH": str(Path(libmoe.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    told = dict(re.findall(r"program.py:(\d+): error: .*\[([\w-]+)\]", found.stdout))
    lines = enumerate(PROGRAM.splitlines(), 1)
    wanted = {str(n): line.rpartition("# wrong: ")[2] for n, line in lines if "# wrong: " in line}
    assert told == wanted, found.stdout + found.stderr
