"""The Python programs of the READMEs run as they stand there; so do the examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]


def run_programs(readme: Path) -> None:
    """One after the other, as a reader would type them."""
    programs = re.findall(r"^```python\n(.*?)^```", readme.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert programs, f"{readme} shows no Python"
    names: dict[str, object] = {}
    for program in programs:
        exec(compile(program, str(readme), "exec"), names)


@pytest.mark.parametrize("readme", ["README.md", "bindings/python/README.md"])
def test_the_programs_run(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_programs(CHECKOUT / readme)


def test_the_training_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    run_programs(PACKAGE / "README.md")
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line[0].isdigit()]
    assert len(losses) == 20
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "module",
    ["checkpoint", "config", "layer", "losses", "parameter", "presets", "routing", "statistics"],
)
def test_the_examples_of_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"libmoe.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
