"""The Python programs of the documents run as they stand there; so do the examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2]
CHECKOUT = PACKAGE.parents[1]


def run_programs(page: Path) -> None:
    """One after the other, as a reader would type them."""
    programs = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert programs, f"{page} shows no Python"
    names: dict[str, object] = {}
    for program in programs:
        exec(compile(program, str(page), "exec"), names)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "bindings/python/README.md",
        "docs/experts.md",
        "docs/routing.md",
        "docs/losses.md",
        "docs/memory.md",
        "docs/numerics.md",
    ],
)
def test_the_programs_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_programs(CHECKOUT / page)


def test_the_training_loops_learn(capsys: pytest.CaptureFixture[str]) -> None:
    run_programs(PACKAGE / "README.md")
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[1]) for line in lines if line[0].isdigit()]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    (language,) = (float(line.split()[1]) for line in lines if line.startswith("loss "))
    assert language < 3  # nats; guessing is ln 256 = 5.5


@pytest.mark.parametrize(
    "module",
    [
        "adaptive_clip",
        "checkpoint",
        "config",
        "expert_weights",
        "experts",
        "layer",
        "losses",
        "parameter",
        "presets",
        "routing",
        "schedule",
        "statistics",
    ],
)
def test_the_examples_of_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"libmoe.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
