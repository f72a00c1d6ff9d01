"""The Python programs of the documents run as they stand there; so do the examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
import shutil
from pathlib import Path

import pytest

import libmoe

PACKAGE = Path(__file__).resolve().parents[2]
CHECKOUT = PACKAGE.parents[1]


def with_a_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go where there is path/to/model, as the programs call it."""
    shutil.copytree(PACKAGE / "tests/pretrained/folders/mixtral", place / "path/to/model")
    monkeypatch.chdir(place)


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
        "docs/models.md",
        "docs/numerics.md",
    ],
)
def test_the_programs_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_a_model(tmp_path, monkeypatch)
    run_programs(CHECKOUT / page)


def test_the_families_of_the_page_are_those_that_there_are() -> None:
    page = (CHECKOUT / "docs/models.md").read_text()
    (table,) = re.findall(r"^\| family .*?\n\n", page, flags=re.DOTALL | re.MULTILINE)
    rows = [row.split("|")[2] for row in table.splitlines()[2:] if row]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    texts = {f"{name}_text" for name in ("qwen3_vl_moe", "qwen3_5_moe")}
    assert (named - {"_text"}) | texts == set(libmoe.pretrained_families())


def test_the_training_loops_learn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_model(tmp_path, monkeypatch)
    run_programs(PACKAGE / "README.md")
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[1]) for line in lines if re.match(r"\d+ \d\.\d", line)]
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
