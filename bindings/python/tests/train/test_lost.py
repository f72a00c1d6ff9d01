"""Runs that lose their reader, their terminal, or their side files: the checkpoint is kept, and goes on."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import libmoe
from libmoe.train import Settings, Trainer, UserError
from libmoe.train import log as logs
from tiny import SMALL, called, command, settings, state, text

ENDLESS = ["--steps", "100000", *SMALL]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of 4 steps."""
    folder = tmp_path_factory.mktemp("lost")
    arguments = ["--output", str(folder / "run"), "--steps", "4", *SMALL]
    status, _, err = called("train", text(folder), *arguments)
    assert status == 0, err
    return folder / "run"


@pytest.fixture
def run(ready: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ready, tmp_path / "run"))


@pytest.mark.parametrize("both", [False, True])
def test_training_goes_on_without_a_reader(tmp_path: Path, both: bool) -> None:
    arguments = ["train", text(tmp_path), "--output", str(tmp_path / "run"), "--steps", "12", *SMALL]
    child = command(*arguments, **({"stderr": subprocess.STDOUT} if both else {}))
    assert child.stdout
    child.stdout.readline()  # as head -1 does
    child.stdout.close()
    assert child.wait(timeout=300) == 0
    assert logs.read(tmp_path / "run")[-1]["why"] == "finished"
    with libmoe.Checkpoint(tmp_path / "run" / "last.safetensors") as checkpoint:
        assert checkpoint["step"].tolist() == [12]


def test_other_commands_end_as_by_sigpipe(run: Path) -> None:
    for arguments in (["sample", str(run), "--tokens", "400"], ["eval", str(run)], ["inspect", str(run)]):
        reading, writing = os.pipe()
        os.close(reading)
        child = command(*arguments, stdout=writing)
        os.close(writing)
        err = child.communicate(timeout=300)[1]
        assert (child.returncode, err) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output_is_as_a_lost_reader(run: Path, unbuffered: str) -> None:
    for arguments in (["sample", str(run), "--tokens", "9"], ["eval", str(run)], ["inspect", str(run)]):
        with Path("/dev/full").open("w") as full:
            child = command(*arguments, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
        err = child.communicate(timeout=300)[1]
        assert (child.returncode, err) == (128 + signal.SIGPIPE, "")


@pytest.fixture
def hang_up() -> Iterator[None]:
    """SIGHUP as usual, here and in children, though the tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up")
def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    """The terminal goes away: SIGHUP, twice, and every line that is printed fails with EIO."""
    ours, theirs = pty.openpty()
    run = tmp_path / "run"
    child = command(
        "train", text(tmp_path), "--output", str(run), *ENDLESS, stdout=theirs, stderr=theirs, stdin=theirs
    )
    os.close(theirs)
    try:
        said = b""
        while b"step 4: held-out" not in said:
            said += os.read(ours, 4096)
        os.close(ours)
        for _ in range(2):
            child.send_signal(signal.SIGHUP)
        assert child.wait(timeout=60) == 128 + signal.SIGHUP
    finally:
        child.kill()
    stop = logs.read(run)[-1]
    assert stop["why"] == "interrupted"
    with libmoe.Checkpoint(run / "last.safetensors") as checkpoint:
        assert checkpoint["step"].tolist() == [stop["step"]]


def test_under_nohup_a_closed_terminal_is_no_reason(tmp_path: Path) -> None:
    child = command(
        "train",
        text(tmp_path),
        "--output",
        str(tmp_path / "run"),
        *ENDLESS,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    try:
        assert child.stderr
        assert any("step 4: held-out" in line for line in child.stderr)
        child.send_signal(signal.SIGHUP)
        assert any("step 40: held-out" in line for line in child.stderr)
        child.terminate()
        child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 128 + signal.SIGTERM


def damaged(whole: bytes, how: str) -> bytes | None:
    lines = whole.splitlines(keepends=True)
    return {
        "missing": None,
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "cut in its first line": lines[0][:40],
        "zeros": b"\0" * 4096,
        "garbage": os.urandom(5000) + b"\n" + whole[200:],
        "other JSON": b'[]\nnull\n3\n{}\n{"kind":"step","step":1}\n{"kind":7}\n{"kind":"stop","step":"1"}\n',
        "deep": b"[" * 100_000 + b"\n" + whole,
        "without its start": b"".join(lines[1:]),
        "a step of nothing": whole + b'{"kind":"step","step":4,"layers":[[]]}\n',
    }[how]


DAMAGES = ["missing", "empty", "cut", "cut in its first line", "zeros", "garbage", "other JSON", "deep"]


@pytest.mark.parametrize("how", [*DAMAGES, "without its start", "a step of nothing"])
def test_a_damaged_log_stops_neither_inspect_nor_resume(run: Path, how: str) -> None:
    content = damaged((run / "log.jsonl").read_bytes(), how)
    (run / "log.jsonl").unlink()
    if content is not None:
        (run / "log.jsonl").write_bytes(content)
    status, out, err = called("inspect", str(run))
    assert (status, err) == (0, "") and f"{run}: 4 of 4 steps" in out
    assert "log.jsonl has " in out or how == "without its start"
    plots = called("inspect", str(run), "--plots")
    assert plots[0] == 0 or plots[2] == "libmoe inspect: nothing to draw: the log has no step yet\n"
    before = state(run)
    trainer = Trainer(Settings.load(run), run, resume=True)
    assert trainer.step == 4 and state(run) == before
    trainer._unlock()
    status, out, err = called("train", "--resume", str(run), "--steps", "6")
    assert status == 0 and "finished at step 6" in out, err
    assert [r["step"] for r in logs.read(run) if r["kind"] == "step"][-2:] == [5, 6]
    assert logs.read_all(run)[1] == 0  # what was damaged is gone


@pytest.mark.usefixtures("hang_up")
def test_a_resumed_run_with_a_damaged_log_has_the_same_bits(tmp_path: Path) -> None:
    given = settings(tmp_path)
    Trainer(given, tmp_path / "whole").train()
    stopped = Trainer(given, tmp_path / "run")
    one_step = stopped._one_step

    def step(since: Any) -> None:
        one_step(since)
        if stopped.step == 6:
            signal.raise_signal(signal.SIGHUP)

    stopped._one_step = step  # type: ignore[method-assign]
    assert stopped.train().signal == signal.SIGHUP
    (tmp_path / "run" / "log.jsonl").write_bytes(b"\0" * 99)
    assert Trainer(given, tmp_path / "run", resume=True).train().step == 12
    assert state(tmp_path / "run") == state(tmp_path / "whole")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "config.json' has no settings, which are one JSON object"),
        (b"null", "config.json' has no settings"),
        (b"", "config.json' is no JSON"),
        (b"\xff\0\xfe", "config.json' is no JSON"),
        (b'{"steps": ', "config.json' is no JSON"),
        (b"[" * 100_000, "config.json' is no JSON"),
        (b'{"steps": "many"}', "config.json': steps = 'many': at least 1"),
        (b'{"files": 5}', "config.json': files = 5: names of files"),
        (b'{"moe": []}', r"config.json': moe = \[\]"),
        (b'{"tokenizer": 5}', "config.json': tokenizer = 5: a text is wanted"),
        (b'{"clip": {}}', "config.json': clip = {}"),
        (b'{"stepz": 5}', "config.json': unknown setting 'stepz'; did you mean 'steps'"),
        (
            None,
            "no such file: .*config.json'; write it anew: the first line of .*log.jsonl' has the",
        ),
    ],
)
def test_damaged_settings_are_one_line_with_the_cure(run: Path, content: bytes | None, says: str) -> None:
    (run / "config.json").unlink()
    if content is not None:
        (run / "config.json").write_bytes(content)
    for arguments in (["inspect"], ["train", "--resume"], ["eval"], ["sample"]):
        status, _, err = called(*arguments, str(run))
        assert status == 1 and err.count("\n") == 1
        assert err.startswith(f"libmoe {arguments[0]}: ")
        with pytest.raises(UserError, match=says):
            raise UserError(err)
    # The cure helps.
    (start,) = logs.of_kind(logs.read(run), "start")
    (run / "config.json").write_text(json.dumps(start["settings"]))
    assert called("eval", str(run))[0] == 0


def test_the_log_is_on_the_disk_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, save = os.fsync, libmoe.save_training

    def noted(file: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    def saving(path: Path, **parts: object) -> None:
        order.append(Path(path).name)
        save(path, **parts)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(libmoe, "save_training", saving)
    Trainer(settings(tmp_path, steps=8), tmp_path / "run").train()
    saved = [n for n, name in enumerate(order) if name.endswith(".safetensors")]
    assert len(saved) >= 3 and all(order[n - 1] == "log.jsonl" for n in saved)
    assert {"config.json.unfinished", "texts.json.unfinished"} <= set(order)


def test_inspect_has_the_best_from_the_checkpoint_where_the_log_lost_it(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (best,) = re.findall(r"^best: (\S+) held-out", called("inspect", str(run))[1], re.MULTILINE)
    (copy / "log.jsonl").write_bytes(b"")
    assert (
        f"best: {best} held-out bits per byte, at a step that the log does not have"
        in called("inspect", str(copy))[1]
    )
