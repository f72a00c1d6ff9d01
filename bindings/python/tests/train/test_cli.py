"""The command line: every command, its help, and what it says when something is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import libmoe
from libmoe import _installed, cli
from libmoe._options import parse
from libmoe.train import Settings, Trainer
from tiny import SMALL, command, finished, settings, text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("cli")
    status, out, err = finished(
        "train", text(folder), "--output", str(folder / "run"), "--steps", "8", *SMALL
    )
    assert status == 0, err
    assert re.search(r"\d\d,\d+ bytes to train on", out) and "finished at step 8" in out
    assert "step 8: held-out" in err
    return folder / "run"


@pytest.mark.parametrize("name", ["", "train", "eval", "sample", "inspect", "bench"])
def test_help_has_what_a_newcomer_needs(name: str) -> None:
    status, out, err = finished(*filter(None, [name]), "--help")
    assert (status, err) == (0, "")
    assert f"usage: python -m libmoe {name}".rstrip() in out
    if name in ("", "train"):
        assert "examples:\n" in out
    for each in Settings.__dataclass_fields__.values():
        if name == "train" and each.name not in ("files", "moe"):
            assert "--" + each.name.replace("_", "-") in out
            assert each.default in ("", None) or f"(default {each.default})" in re.sub(r"\s+", " ", out)


def test_version() -> None:
    assert finished("--version")[:2] == (0, f"{libmoe.__version__}\n")


def test_where_things_are() -> None:
    """In a checkout that is build/, which is laid out as an installed prefix."""
    built = Path(__file__).resolve().parents[4] / "build"
    assert finished("--library")[:2] == (0, f"{built / 'lib' / ('libmoe.so.' + libmoe.__version__)}\n")
    assert finished("--include-dir")[:2] == (0, f"{built / 'include'}\n")
    assert finished("--cmake-dir")[:2] == (0, f"{built / 'lib' / 'cmake' / 'libmoe'}\n")


def test_a_library_that_stands_alone(tmp_path: Path) -> None:
    """It is found by whatever name it was loaded by, and says that there is nothing beside it."""
    alone = shutil.copy((Path(__file__).resolve().parents[4] / "build/lib/libmoe.so").resolve(), tmp_path)
    folder = Path(alone).parent
    os.symlink(alone, folder / "link.so")
    environment = {**os.environ, "LIBMOE_LIBRARY": "link.so", "LD_LIBRARY_PATH": str(folder)}
    environment["PYTHONPATH"] = str(Path(libmoe.__file__).parents[1])

    def run(option: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "libmoe", option]
        return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)

    assert run("--library").stdout == f"{alone}\n"
    for option, missing in (("--include-dir", "moe.h"), ("--cmake-dir", "libmoe-config.cmake")):
        result = run(option)
        assert (result.returncode, result.stdout) == (1, "")
        assert f"libmoe {option}: there is no " in result.stderr and missing in result.stderr
        assert str(alone) in result.stderr and "make install" in result.stderr


def test_a_path_that_is_no_text_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_installed, "library", lambda: Path("/\udcff/libmoe.so"))
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", printed)
    with pytest.raises(SystemExit):
        cli.main(["--library"])
    assert printed.buffer.getvalue() == b"/\xff/libmoe.so\n"


def test_options_become_settings(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    moe = ["--moe", "noise=gaussian", "noise_std=0.5", "selection_bias=true"]
    status, _, err = finished(
        "train", text(tmp_path), "--output", out, "--steps", "1", "--clip", "none", *moe, *SMALL
    )
    assert status == 0, err
    found = Settings.load(tmp_path / "run")
    assert found == settings(
        tmp_path,
        steps=1,
        learning_rate=1e-3,
        clip="none",
        moe={"noise": "gaussian", "noise_std": 0.5, "selection_bias": True},
    )


def test_eval_of_held_out_text_is_the_runs_best(run: Path) -> None:
    evaluations = [
        record["bits_per_byte"]
        for record in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        if record["kind"] == "evaluation"
    ]
    status, out, _ = finished("eval", str(run), "--tokens", "256")
    assert status == 0 and out.startswith(f"{min(evaluations):.4f} bits per byte of held-out text")
    other = text(run.parent, 5000, "other.txt")
    status, out, _ = finished("eval", str(run), other, "--weights", "last")
    assert status == 0 and "of the files, 5,000 bytes" in out


def test_sample_goes_on_from_the_prompt_and_follows_its_seed(run: Path) -> None:
    written = [finished("sample", str(run), "--prompt", "the ", "--tokens", "30", "--seed", s) for s in "112"]
    assert [status for status, _, _ in written] == [0, 0, 0]
    texts = [out for _, out, _ in written]
    assert texts[0] == texts[1] != texts[2] and all(out.startswith("the ") for out in texts)


def test_inspect_tells_and_draws(run: Path) -> None:
    status, out, _ = finished("inspect", str(run), "--plots")
    assert status == 0
    for says in ("8 of 8 steps, finished", "layer 1: load", "best: ", "tokens/s", "loss.png"):
        assert says in out
    for name in ("loss.png", "gradients.png", "load.png", "bytes.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_bench_measures() -> None:
    sizes = ["--hidden-size", "16", "--n-layers", "1", "--n-heads", "2", "--intermediate-size", "16"]
    status, out, err = finished("bench", "--rounds", "1", "--sequence-length", "16", *sizes)
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["training", "evaluation", "generation"]
    out = finished("bench", "--rounds", "1", "--sequence-length", "16", "--profile", *sizes)[1]
    assert "\nphase " in out and "\nattention backward " in out and "\noptimizer " not in out


def test_a_profile_is_printed_and_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--output", str(folder), "--steps", "2", "--profile", *SMALL]
    status, out, err = finished("train", text(tmp_path), *arguments)
    assert status == 0, err
    assert re.search(r"^optimizer +2 ", out, re.MULTILINE)
    found = {
        (p["phase"], p["backward"]): p["calls"] for p in json.loads((folder / "profile.json").read_text())
    }
    assert found["optimizer", False] == 2  # one for each step
    assert (
        found["gate/up", False] > found["dispatch", True] == 4
    )  # 2 layers of experts in each; evaluation too
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "optimizer" for event in events) == 2


def test_a_profile_is_written_by_the_first_rank_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["train", text(tmp_path), "--output", str(folder), "--steps", "1", "--profile", *SMALL]
    asked = parse(arguments, cli.COMMANDS)
    asked.processes = SimpleNamespace(communicator=None, is_first=False)
    assert asked.run(asked) == 0
    assert not (folder / "profile.json").exists() and not (folder / "trace.json").exists()


def test_a_limit_that_is_too_small_is_refused_and_explained(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    arguments = ["--output", folder, *SMALL, "--sequences", "400", "--memory-limit", "1"]
    status, _, err = finished("train", text(tmp_path), *arguments)
    assert status == 1 and "hint: the memory limit of 1 MiB is too small" in err
    status, out, err = finished("inspect", folder)
    assert (status, err) == (0, "")
    assert "0 of 1000 steps, memory limit" in out and "      try: memory_limit " in out


def test_a_second_run_in_one_folder_is_refused_without_the_firsts_hints(run: Path, tmp_path: Path) -> None:
    status, out, err = finished("train", text(tmp_path), "--output", str(run), *SMALL)
    assert (status, out) == (1, "")
    assert err.startswith("libmoe train: there is a run in ") and err.count("\n") == 1


def test_a_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert finished("train", text(tmp_path), "--output", out, "--steps", "4", *SMALL)[0] == 0
    status, said, _ = finished("train", "--resume", out, "--steps", "6")
    assert status == 0 and "goes on after step 4\n" in said and "finished at step 6" in said
    status, _, err = finished("train", "--resume", out, text(tmp_path))
    assert (status, err) == (1, "libmoe train: FILE: cannot change in a run that goes on\n")
    config = (tmp_path / "run" / "config.json").read_bytes()
    status, _, err = finished("train", "--resume", out, "--steps", "3")
    assert (status, err.splitlines()[-1]) == (1, "libmoe train: steps = 3: the run has done 6 already")
    assert (tmp_path / "run" / "config.json").read_bytes() == config
    status, _, err = finished("train", "--resume", out, "--hidden-size", "32")
    assert (status, err) == (1, "libmoe train: --hidden-size: cannot change in a run that goes on\n")


def test_ctrl_c_saves_and_leaves_with_130(tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = command("train", text(tmp_path), "--output", str(out), "--steps", "100000", *SMALL)
    try:
        assert child.stderr
        assert child.stderr.readline().startswith("a step: 64 tokens; activations ")
        assert re.match(r"step 1/100000: \d\.\d+ bits/byte, [\d,]+ tokens/s", child.stderr.readline())
        assert any(line.startswith("step 4: held-out") for line in child.stderr)
        child.send_signal(signal.SIGINT)
        said, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "Traceback" not in err and "interrupted at step" in said
    assert (out / "last.safetensors").exists()


def test_a_second_signal_leaves_with_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_step(*_arguments: object) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_one_step", one_step)
    assert cli.main(["train", text(tmp_path), "--output", str(tmp_path / "run"), *SMALL]) == 143
    assert "libmoe train: interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["train", "nothing.txt"], 1, "libmoe train: no such file or folder: '.*nothing.txt'"),
        (["train"], 1, "libmoe train: no text: name files"),
        (["train", "TEXT", "--hidden-size", "15"], 1, "libmoe train: the model: .*15"),
        (["train", "TEXT", "--steps", "0"], 1, "libmoe train: steps = 0: at least 1"),
        (
            ["train", "TEXT", "--sequence-length", "99999"],
            1,
            "libmoe train: sequence_length 99999: no 100000 tokens",
        ),
        (["train", "TEXT", "--tokenizer", "none.json"], 1, "libmoe train: tokenizer.*none.json"),
        (["train", "TEXT", "--steps", "many"], 2, "invalid int value: 'many'"),
        (["train", "TEXT", "--moe", "noise"], 2, "expected NAME=VALUE"),
        (["eval", "nowhere"], 1, "libmoe eval: no such file or folder: 'nowhere'"),
        (["sample", "RUN", "--prompt", ""], 1, "libmoe sample: the prompt is empty"),
        (["sample", "RUN", "--temperature", "-1"], 1, "libmoe sample: .*temperature"),
        (["nonsense"], 2, "invalid choice: 'nonsense'"),
        (["genrate"], 2, r"; did you mean generate\?"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, run: Path, arguments: list[str], status: int, says: str) -> None:
    places = {"TEXT": text(tmp_path), "RUN": str(run)}
    more = ["--output", str(tmp_path / "out")] if arguments[0] == "train" else []
    found, _, err = finished(*(places.get(argument, argument) for argument in arguments), *more)
    assert found == status
    *_, last = err.splitlines()
    assert re.search(says, last), err
    assert "Traceback" not in err and (status == 2 or err.count("\n") == 1)
