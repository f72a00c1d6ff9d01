"""The demo, a few steps of it: every part runs, and what it says adds up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import libmoe

EXAMPLE = Path(__file__).resolve().parents[1] / "train_lm"
BINDING = Path(libmoe.__file__).resolve().parents[1]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        env={**os.environ, "PYTHONPATH": f"{BINDING}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def text(folder: Path) -> str:
    (folder / "text").write_text("".join(f"line {i} of {i * i}\n" for i in range(4000)))
    return str(folder / "text")


def test_the_whole_job(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = demo(text(tmp_path), "--steps", "24", "--output", str(out))
    table = done.stdout[done.stdout.index("Held-out text:") :]
    found = dict(re.findall(r"^(\w.+?) {2,}(\d\.\d{3})", table, re.MULTILINE))
    assert list(found) == [
        "counting bytes",
        "counting pairs of bytes",
        "window of 16 bytes",
        "dense, as many seconds",
        "dense, the same bytes",
        "experts",
    ], done.stderr
    ours, unigram, bigram = (
        float(found[n]) for n in ("experts", "counting bytes", "counting pairs of bytes")
    )
    assert ours < unigram and bigram < unigram
    assert done.returncode == int(ours >= bigram), done.stderr
    assert "A sample, at temperature" in done.stdout
    assert re.search(r"^optimizer +24 ", done.stdout, re.MULTILINE)  # of the profile
    steps = re.findall(r"^(?:experts|dense, the same bytes) +\d\.\d{3} +(\d+) +([\d,]+)", table, re.MULTILINE)
    assert steps == [("24", "24,576")] * 2  # the main comparison is of equal bytes
    for name in ("curves", "moe/loss", "moe/gradients", "moe/load", "moe/bytes"):
        assert (out / f"{name}.png").exists()
    assert "After the same 24,576 bytes the experts are " in table
    commands = re.findall(r"^    (PYTHONPATH=.*)$", table, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:  # as they are printed, from anywhere
        went_on = subprocess.run(command, shell=True, cwd="/", capture_output=True, text=True, check=False)
        assert went_on.returncode == 0, went_on.stderr


def test_results_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    def bits(name: str) -> list[str]:
        done = demo(text(tmp_path), "--steps", "12", "--output", str(tmp_path / name))
        return re.findall(r"^(?:experts|dense, the same bytes) +(\d\.\d{3}) +12 ", done.stdout, re.MULTILINE)

    first = bits("first")
    assert len(first) == 2 and bits("second") == first


def test_help_needs_neither_numpy_nor_the_library() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(EXAMPLE), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--steps" in done.stdout


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    done = demo(str(tmp_path / "nothing"), "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"train_lm: no such file or folder: '.*nothing'\n", done.stderr)
