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


def test_the_whole_job(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(f"line {i} of {i * i}\n" for i in range(4000)))
    done = demo(str(tmp_path / "text"), "--steps", "24", "--output", str(tmp_path / "out"))
    found = dict(re.findall(r"^    (.+?) {2,}(\d\.\d{3})", done.stdout, re.MULTILINE))
    names = ["unigram model", "bigram model", "window of 16 bytes", "dense transformer", "libmoe transformer"]
    assert list(found) == names, done.stderr
    ours, unigram, bigram = (float(found[name]) for name in (names[-1], *names[:2]))
    assert ours < unigram and bigram < unigram
    assert done.returncode == int(ours >= bigram), done.stderr
    assert "a step: 1,024 tokens; activations " in done.stderr and "A sample, at temperature" in done.stdout
    assert re.search(r"^optimizer +24 ", done.stdout, re.MULTILINE)  # of the profile
    for name in ("loss.png", "gradients.png", "load.png", "bytes.png", "best.safetensors", "trace.json"):
        assert (tmp_path / "out" / "moe" / name).exists()


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    done = demo(str(tmp_path / "nothing"), "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"train_lm: no such file or folder: '.*nothing'\n", done.stderr)
