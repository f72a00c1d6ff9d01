"""What a user sees: one unit, lines in a pipe, a bar that fits, suggestions, hints that mean something."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from pathlib import Path
from typing import Any

import pytest

import libmoe
from libmoe.train import Settings, Trainer, UserError
from libmoe.train import log as logs
from libmoe.train.folder import LAST
from libmoe.train.progress import fitted
from tiny import SMALL, called, command, settings, text

WIDE = ["--evaluate-every", "100000", "--log-every", "5"]


def test_a_pipe_has_loss_and_rate_between_evaluations(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", text(tmp_path), "--output", str(run), *SMALL, "--steps", "20", "--log-every", "5"]
    status, _, err = called(*arguments, "--evaluate-every", "20")
    assert status == 0
    found = re.findall(r"^step (\d+)/20: (\d\.\d{3}) bits/byte, [\d,]+ tokens/s$", err, re.MULTILINE)
    logged = [(str(r["step"]), f"{r['bits_per_byte']:.3f}") for r in logs.of_kind(logs.read(run), "step")]
    assert found == logged and [step for step, _ in found] == ["5", "10", "15", "20"]


def test_one_unit_on_every_screen(tmp_path: Path) -> None:
    run = tmp_path / "run"
    wild = ["--learning-rate", "3", "--clip", "none", "--schedule", "constant", "--steps", "120"]
    status, out, err = called("train", text(tmp_path), "--output", str(run), *SMALL, *wild)
    assert status == 0 and "the training loss rose" in err
    screens = [out, err, called("inspect", str(run))[1], called("eval", str(run))[1]]
    assert all("bits" in screen or "rose" in screen for screen in screens[1:])
    assert not any("nats" in screen for screen in screens)
    # A byte is a token: bits per byte are nats per token over ln 2.
    for record in logs.of_kind(logs.read(run), "step"):
        assert record["bits_per_byte"] == pytest.approx(record["loss"] / 0.6931471805599453)


def test_a_short_run_has_no_hints(tmp_path: Path) -> None:
    for n, more in enumerate((["--log-every", "1"], ["--n-experts", "16", "--warmup-steps", "0"])):
        arguments = ["--output", str(tmp_path / str(n)), *SMALL, "--threads", "0", *more, "--steps", "60"]
        status, _, err = called("train", text(tmp_path), *arguments)
        assert status == 0 and "hint" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "TEXT", "--lr", "1e-3"], "did you mean --learning-rate?"),
        (["train", "TEXT", "--lr=1e-3"], "did you mean --learning-rate?"),
        (
            ["train", "TEXT", "--epochs", "3"],
            "did you mean --steps? (one epoch is about",
        ),
        (
            ["train", "TEXT", "--batch-size", "3"],
            "did you mean --sequences? (a step has",
        ),
        (["train", "TEXT", "--batch_size", "3"], "did you mean --sequences?"),
        (["train", "TEXT", "--block-size", "64"], "did you mean --sequence-length?"),
        (["train", "TEXT", "--num-experts", "4"], "did you mean --n-experts?"),
        (["train", "TEXT", "--learnig-rat", "4"], "did you mean --learning-rate?"),
        (["train", "TEXT", "--hidden_size", "4"], "did you mean --hidden-size?"),
        (["train", "--data", "TEXT"], "files are named without an option"),
        (["train", "TEXT", "-o", "x"], "did you mean --output?"),
        (["sample", "RUN", "--max-new-tokens", "4"], "did you mean --tokens?"),
        (["sample", "RUN", "--temp", "4"], ""),  # the beginning of an option is one
        (["eval", "RUN", "--checkpoint", "last"], "did you mean --weights?"),
        (["bench", "--d-model", "64"], "did you mean --hidden-size?"),
        (["inspect", "RUN", "--plt"], "did you mean --plots?"),
        (["generate", "RUN", "--prompt", "x", "--prepared", "int5"], "; did you mean int8 or int4?"),
        (["train", "TEXT", "--schedule", "cosin"], "; did you mean cosine?"),
        (["bench", "--trained", "*.attention.*"], "unrecognized arguments: --trained"),
        (["bench", "--epochs", "64"], "unrecognized arguments: --epochs 64\n"),
        (["train", "TEXT", "--qqqq"], "unrecognized arguments: --qqqq\n"),
    ],
)
def test_unknown_options_are_answered(tmp_path: Path, arguments: list[str], says: str) -> None:
    places = {"TEXT": text(tmp_path), "RUN": str(tmp_path / "run")}
    status, out, err = called(*(places.get(argument, argument) for argument in arguments))
    assert out == "" and says in err
    assert status == 2 or not says
    assert f"usage: python -m libmoe {arguments[0]}" in err or not says


def test_unknown_settings_are_answered() -> None:
    says = "unknown setting 'lr'; did you mean 'learning_rate'?"
    with pytest.raises(UserError, match=says):
        Settings(lr=1e-3)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=says):
        Settings().changed({"lr": 1e-3})
    with pytest.raises(UserError, match="did you mean 'sequences'.*a step has sequences"):
        Settings(batch_size=3)  # type: ignore[call-arg]
    assert Settings(files="book.txt").files == ("book.txt",)  # type: ignore[arg-type]
    assert Settings(files=Path("book.txt")).files == ("book.txt",)  # type: ignore[arg-type]


def test_a_run_without_an_evaluation_names_no_infinity(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    child = command("train", text(tmp_path), "--output", run, *SMALL, *WIDE, "--steps", "100000")
    assert child.stderr
    assert any(line.startswith("step 5/") for line in child.stderr)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and "inf" not in out.replace("interrupted", "")
    assert "before the first evaluation" in out
    status, out, err = called("inspect", run)
    assert status == 0 and "inf" not in out and "interrupted" in out, err
    assert "--weights last" in called("sample", run)[2]
    assert called("sample", run, "--weights", "last", "--tokens", "3")[0] == 0


PARTS = ["1.744 bits/byte", "0:12 min left", "12,345 tokens/s"]


@pytest.mark.parametrize("columns", [200, 80, 60, 40, 39, 30, 20, 8, 0])
def test_a_line_of_progress_fits(columns: int) -> None:
    line = fitted(500, 1000, PARTS, columns)
    assert len(line) <= columns
    assert columns < 30 or PARTS[0] in line
    bar = re.match(r"\[(#+)(-*)\]", line)
    assert bool(bar) == (columns >= 39)
    assert bar is None or abs(len(bar[1]) - len(bar[2])) <= 1  # half of it
    assert all(part in line for part in PARTS) == (columns >= 80)


def test_a_terminal_of_40_columns(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    arguments = ["--output", str(tmp_path / "run"), *SMALL, "--steps", "40"]
    child = command("train", text(tmp_path), *arguments, *WIDE, stderr=theirs, env={"TERM": "xterm"})
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # EIO: the child has closed it
        pass
    assert child.wait(timeout=60) == 0
    drawn = [part for part in re.split(r"\r\x1b\[K|\r?\n", said.decode()) if re.search(r"\d+/40 ", part)]
    assert drawn and all(len(line) <= 39 for line in drawn)
    assert all(re.match(r"\[[#-]{8,}\] \d+/40  \d\.\d+ bits/byte", line) for line in drawn)
    os.close(ours)


def test_eval_says_what_it_read(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert called("train", text(tmp_path), "--output", run, *SMALL, "--steps", "4")[0] == 0
    status, out, _ = called("eval", run, "--tokens", "1")
    assert status == 0 and "16 of its " in out
    assert "--tokens 1 is less than a window of sequence_length 16, of which one was read" in out
    status, out, _ = called("eval", run, "--tokens", "100")
    assert status == 0 and re.search(r"held-out text, 96 of its [\d,]+ bytes\n", out)
    held_out = json.loads((tmp_path / "run" / "texts.json").read_text())["held_out_bytes"]
    assert called("eval", run)[1].endswith(f" of held-out text, {held_out:,} bytes\n")


def test_records_go_to_a_callback_and_nothing_to_a_quiet_screen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records: list[dict[str, Any]] = []
    run = tmp_path / "run"
    Trainer(settings(tmp_path), run, quiet=True, on_record=records.append).train()
    assert capfd.readouterr() == ("", "")
    assert records == logs.read(run) and [r["kind"] for r in records][:2] == ["start", "plan"]
    scalars = [(r["kind"], r["bits_per_byte"], r["step"]) for r in records if "bits_per_byte" in r]
    assert len(scalars) == 12 + 3

    def fails(record: dict[str, Any]) -> None:
        if record["kind"] == "evaluation":
            raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError):
        Trainer(settings(tmp_path), tmp_path / "other", quiet=True, on_record=fails).train()
    assert logs.read(tmp_path / "other")[-1]["why"] == "ConnectionError"
    with libmoe.Checkpoint(tmp_path / "other" / LAST) as checkpoint:  # saved before anybody was told
        assert checkpoint["step"].tolist() == [4]
    (tmp_path / "other" / LAST).unlink()  # as if it had been killed between the best and the last
    again = Trainer(settings(tmp_path), tmp_path / "other", resume=True, quiet=True)
    assert again.step == 4 and again.train().why == "finished"


def test_more_threads_than_processors_are_said_and_bounded(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    arguments = ["train", text(tmp_path), "--output", run, *SMALL, "--threads", "999", "--steps", "100000"]
    one = {next(iter(os.sched_getaffinity(0)))}
    child = command(*arguments, preexec_fn=lambda: os.sched_setaffinity(0, one))
    assert child.stderr and child.stdout
    assert any(line.startswith("step 4: held-out") for line in child.stderr)
    status = Path(f"/proc/{child.pid}/status").read_text()
    child.terminate()
    out, _ = child.communicate(timeout=60)
    assert "threads 999: this process may use 1 processors, and so many threads compute" in out
    found = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
    assert found and int(found[1]) < 100
    (start,) = logs.of_kind(logs.read(tmp_path / "run"), "start")
    assert (start["threads"], start["processors"]) == (1, 1)
    status_, _, err = called(
        "bench", "--threads", "999", "--rounds", "1", "--hidden-size", "16", "--n-heads", "1"
    )
    assert status_ == 0 and err.startswith("threads 999: this process may use ")
