"""The text of a run: what is read and what is not, and that held-out text was never trained on."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from libmoe.train import Part, Settings, Trainer, UserError
from libmoe.train.data import load, load_recorded
from tiny import SMALL, called, command, settings, text


def texts(folder: Path, count: int = 6, size: int = 3000) -> Path:
    folder.mkdir()
    for n in range(count):
        (folder / f"{n}.txt").write_text(f"{n} " * size)
    return folder


def train(*names: str | Path, run: Path, steps: int = 2) -> tuple[int, str, str]:
    return called("train", *map(str, names), "--output", str(run), "--steps", str(steps), *SMALL)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with texts/ and a finished run/."""
    folder = tmp_path_factory.mktemp("texts")
    status, _, err = train(texts(folder / "texts"), run=folder / "run")
    assert status == 0, err
    return folder


@pytest.fixture
def copied(ready: Path, tmp_path: Path) -> Path:
    """Return the same, to be spoilt: the run's text is that of the copy."""
    shutil.copytree(ready, tmp_path / "copy")
    for name in ("texts.json", "config.json"):
        path = tmp_path / "copy" / "run" / name
        path.write_text(path.read_text().replace(str(ready), str(tmp_path / "copy")))
    return tmp_path / "copy"


def test_a_run_keeps_names_sizes_and_checksums(ready: Path) -> None:
    record = json.loads((ready / "run" / "texts.json").read_text())
    assert [Path(file["name"]).name for file in record["files"]] == [f"{n}.txt" for n in range(6)]
    for file in record["files"]:
        content = Path(file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def spoil(folder: Path, how: str) -> str:
    path = folder / "texts" / "3.txt"
    if how == "removed":
        path.unlink()
        return f"removed: '{path}'"
    content = path.read_bytes()
    if how == "longer":
        path.write_bytes(content + b"more")
        return f"changed: '{path}' (6,000 bytes then, 6,004 now)"
    path.write_bytes(content[:-1] + b"!")  # as long as before
    return f"changed: '{path}' (other content of 6,000 bytes)"


@pytest.mark.parametrize("how", ["removed", "longer", "as long"])
def test_another_text_is_refused_and_the_difference_said(copied: Path, how: str) -> None:
    run = str(copied / "run")
    before = called("eval", run)
    assert before[0] == 0 and before[2] == ""
    says = spoil(copied, how)
    for arguments in (["eval", run], ["train", "--resume", run, "--steps", "3"]):
        status, out, err = called(*arguments)
        assert (status, out) == (1, "") and says in err and err.count("\n") == 1
    status, out, err = called("inspect", run)
    assert status == 0 and says in out and "2 of 2 steps, finished" in out, err
    status, out, _ = called("inspect", run, "--plots")
    assert status == 0 and "loss.png" in out and "bytes.png" not in out


def test_files_that_were_added_change_nothing_and_are_said(copied: Path) -> None:
    run = str(copied / "run")
    before = called("eval", run)[1]
    added = Path(text(copied / "texts", name="added.txt"))
    (copied / "texts" / "below").mkdir()
    text(copied / "texts" / "below", name="more.txt")
    for arguments in (["eval", run], ["train", "--resume", run, "--steps", "3"], ["inspect", run]):
        status, out, err = called(*arguments)
        assert status == 0 and f"added: '{added}', '" in out + err, err
        assert arguments[0] != "eval" or out == before


def test_a_runs_own_output_is_never_text(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts")
    assert train(folder, run=folder / "first")[0] == 0
    before = called("eval", str(folder / "first"))
    # Pictures and logs come and go in the run's folder: the text is as it was, word by word.
    assert called("inspect", str(folder / "first"), "--plots")[0] == 0
    (folder / "first" / "notes.txt").write_text("what I thought of it " * 999)
    assert called("eval", str(folder / "first")) == before and before[0] == 0
    # Nor is another run's, and both of them know the same text.
    status, out, err = train(folder, run=folder / "second")
    assert status == 0, err
    assert f"1 the folder of a run: '{folder / 'first'}'" in out
    records = [json.loads((folder / run / "texts.json").read_text()) for run in ("first", "second")]
    assert records[0]["files"] == records[1]["files"]
    assert called("eval", str(folder / "first"))[1] == before[1]
    for name in (folder / "first", folder / "first" / "log.jsonl"):
        status, _, err = called("train", str(name), "--output", str(folder / "first"), *SMALL)
        assert status == 1 and "run" in err
    status, _, err = train(folder / "first", run=tmp_path / "third")
    assert status == 1 and "is the folder of a run" in err and "--resume" in err


def test_evaluating_on_text_of_the_training_is_said(ready: Path, tmp_path: Path) -> None:
    again = shutil.copy(ready / "texts" / "2.txt", tmp_path / "copy.txt")
    status, out, err = called("eval", str(ready / "run"), str(again), text(tmp_path))
    assert status == 0 and "bits per byte of the files" in out
    assert err == f"this run was trained on most of '{again}': that is no held-out text\n"


def test_evaluating_on_a_changed_text_of_the_training_is_said(ready: Path, tmp_path: Path) -> None:
    shutil.copytree(ready, tmp_path / "own")
    run, edited = tmp_path / "own" / "run", ready / "texts" / "2.txt"
    before = edited.read_bytes()
    try:
        edited.write_bytes(before + b"more\n")
        status, _, err = called("eval", str(run), str(edited))
    finally:
        edited.write_bytes(before)
    assert status == 0
    assert (
        err == f"this run was trained on '{edited}' as it was then: only what is new there is held-out text\n"
    )


def test_short_texts_are_all_read(tmp_path: Path) -> None:
    """500 files of 124 bytes: every byte is in some window of 129, beside a byte between two of them."""
    for n in range(500):
        (tmp_path / f"{n:03}.txt").write_text(f"{n:03}:" + "abcdefgh" * 15)
    corpus = load([str(tmp_path)], held_out=0.1, seed=0)
    assert corpus.training.n_bytes == 450 * 124 and corpus.held_out.n_bytes == 50 * 124
    seen: set[bytes] = set()
    for step in range(200):
        for window in corpus.training.batch(0, step, 16, 129).astype(np.uint8):
            seen |= set(re.findall(rb"(\d{3}):", window.tobytes()))
    training = {span[:3].tobytes() for span in corpus.training.spans}
    # All but the first, whose number only a window from the first byte on has: 1 of 56,000 places.
    assert len(training) == 450 and training >= seen >= training - {min(training)}
    windows = corpus.held_out.spread(1000, 129).astype(np.uint8)
    assert windows.size >= corpus.held_out.n_bytes - 129
    assert set(re.findall(rb"(\d{3}):", windows.tobytes())).isdisjoint(training)
    # One file of them all: the separator is the byte that no text has.
    assert (windows == 0).sum() == pytest.approx(windows.size / 125, abs=1)


def test_a_short_text_beside_a_long_one_is_read() -> None:
    part = Part([np.full(1000, 1, np.uint8), np.full(9, 7, np.uint8), np.full(5, 8, np.uint8)], 1014, 0)
    drawn = part.batch(0, 0, 4000, 33)
    assert set(np.unique(drawn).tolist()) == {0, 1, 7, 8}
    whole = [row for row in drawn.tolist() if row[-5:] == [8] * 5]
    assert whole and all(row[-16:] == [0, *[7] * 9, 0, *[8] * 5] for row in whole)


def test_separators_do_not_count_in_bits_per_byte(tmp_path: Path) -> None:
    from libmoe.train.evaluate import bits_per_byte

    trainer = Trainer(settings(tmp_path), tmp_path / "run")
    spans = [np.full(n, 97, np.uint8) for n in (9, 12, 8)]
    part = Part(spans, 29, 0)
    (row,) = part.spread(1, 31)
    targets = row[1:].astype(np.int32)
    output = trainer.model.forward(row[None, :-1].copy(), targets[None])
    # Without the two separators, by their own losses.
    losses = [
        trainer.model.forward(row[None, :-1].copy(), np.where(np.arange(30) == n, targets, -100)[None]).loss
        for n in range(30)
        if targets[n] != 0
    ]
    found = bits_per_byte(trainer.model, part, sequence_length=30, sequences=1, most_tokens=30)
    assert len(losses) == 28 and output.n_targets == 30
    assert found == pytest.approx(np.mean(losses) / np.log(2), rel=1e-5)


def utf16(words: str, mark: bool) -> bytes:
    return words.encode("utf-16" if mark else "utf-16-le")


NO_TEXT = {
    "gzip": (gzip.compress(os.urandom(9000)), "is compressed by gzip", "gunzip"),
    "binary": (b"\x7fELF" + os.urandom(9000), "is binary .NUL at byte", "name its text"),
    "late": (b"text " * 9000 + b"\0" + b"text " * 9000, "is binary .NUL at byte 45,000", "tr -d"),
    "utf16": (utf16("some words " * 999, True), "is UTF-16 text", "iconv -f UTF-16 "),
    "no mark": (utf16("some words " * 999, False), "is UTF-16 text", "iconv -f UTF-16LE"),
    "pdf": (b"%PDF-1.7\n" + b"words " * 999, "is a PDF", "pdftotext"),
    "zip": (b"PK\x03\x04" + os.urandom(900), "is a zip archive", "unzip"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_what_is_no_text_is_refused_by_name_and_passed_over_in_a_folder(tmp_path: Path, kind: str) -> None:
    content, says, cure = NO_TEXT[kind]
    folder = texts(tmp_path / "texts")
    path = folder / "what it is"
    path.write_bytes(content)
    for command_line in (["train", text(tmp_path), str(path)], ["train", str(path)]):
        status, out, err = called(*command_line, "--output", str(tmp_path / "run"), *SMALL)
        assert (status, out) == (1, "") and re.search(f"'{path}' {says}", err) and cure in err
    assert not (tmp_path / "run").exists()
    corpus = load([str(folder)], held_out=0.1, seed=0)
    (passed,) = corpus.record.passed_over
    assert passed.name == str(path) and passed.reason in says.replace(" .NUL", "") and corpus.n_files == 6


def test_what_was_passed_over_is_listed_with_its_reason(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts")
    for n in range(5):
        (folder / f"{n}.bin").write_bytes(b"\0" * 99)
    (folder / "empty.txt").touch()
    (folder / "linked").symlink_to(texts(tmp_path / "elsewhere"))
    (folder / ".git").mkdir()
    os.mkfifo(folder / "pipe")
    shutil.copy(folder / "1.txt", folder / "same.txt")
    status, out, err = train(folder, run=tmp_path / "run", steps=1)
    assert status == 0, err
    assert "of 6 files\npassed over, 10:\n" in out
    for line in (
        f"5 binary: '{folder}/0.bin', '{folder}/1.bin', '{folder}/2.bin', ...",
        f"1 empty: '{folder}/empty.txt'",
        f"1 a link to a folder: '{folder}/linked'",
        f"1 hidden: '{folder}/.git'",
        f"1 no regular file: '{folder}/pipe'",
        f"1 a copy of another file: '{folder}/same.txt'",
    ):
        assert f"\n  {line}\n" in out
    with pytest.raises(UserError, match="too little text.*\n.*passed over, 1:\n  1 binary: .*0.bin"):
        (tmp_path / "only").mkdir()
        shutil.copy(folder / "0.bin", tmp_path / "only")
        load([str(tmp_path / "only")], held_out=0.1, seed=0)


def test_a_folder_of_somebody_is_not_written_into(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    content = {"config.json": '{"mine": 1}', "log.jsonl": "precious\n"}
    for name, inside in content.items():
        (theirs / name).write_text(inside)
    status, _, err = train(text(tmp_path), run=theirs)
    assert status == 1 and f"'{theirs}' has files that are no run's ('config.json', 'log.jsonl')" in err
    assert {path.name: path.read_text() for path in theirs.iterdir()} == content
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("words")
    status, _, err = train(text(tmp_path), run=other)
    assert status == 1 and "'thesis.tex'" in err and [p.name for p in other.iterdir()] == ["thesis.tex"]
    status, _, err = train(text(tmp_path), run=Path(text(tmp_path, name="a file")))
    assert status == 1 and "is a file: give a new folder" in err
    (tmp_path / "empty").mkdir()
    assert train(text(tmp_path), run=tmp_path / "empty", steps=1)[0] == 0


def test_a_run_that_was_killed_in_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(text(tmp_path), run=run, steps=1)[0] == 0
    for name in ("best", "last"):
        (run / f"{name}.safetensors").rename(run / f"{name}.safetensors.123-1700000000123456789.tmp")
    (run / "best.safetensors.tmp").touch()  # nobody's
    status, _, err = train(text(tmp_path), run=run, steps=1)
    assert status == 1 and "files that are no run's ('best.safetensors.tmp')" in err
    (run / "best.safetensors.tmp").unlink()
    status, _, err = train(text(tmp_path), run=run, steps=1)
    assert status == 0, err
    assert not list(run.glob("*.tmp"))


def test_two_runs_into_one_new_folder_do_not_mix(tmp_path: Path) -> None:
    run, long = tmp_path / "run", ["--steps", "100000", *SMALL]
    arguments = ["train", text(tmp_path), "--output", str(run), *long]
    children = [command(*arguments, "--seed", seed) for seed in "01"]
    try:
        while all(child.poll() is None for child in children):
            pass
        (lost,) = [child for child in children if child.poll() is not None]
        (won,) = [child for child in children if child.poll() is None]
        assert lost.communicate()[1].startswith("libmoe train: ") and lost.returncode == 1
        assert Settings.load(run).seed == children.index(won)
        # Nor can a second process go on with it meanwhile.
        assert won.stderr
        assert any("held-out" in line for line in won.stderr)
        status, _, err = called("train", "--resume", str(run))
        assert status == 1 and f"another process ({won.pid}) trains into '{run}'" in err
        assert ", running" in called("inspect", str(run))[1]
        won.terminate()
        won.communicate(timeout=60)
        assert won.returncode == 143
    finally:
        for child in children:
            child.kill()
    kinds = [json.loads(line)["kind"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert kinds.count("start") == 1
    assert called("train", "--resume", str(run), "--patience", "1")[0] == 0


def test_a_record_that_is_lost_is_said(copied: Path) -> None:
    (copied / "run" / "texts.json").write_text("[")
    with pytest.raises(UserError, match="texts.json' is damaged: what was held out cannot be told"):
        load_recorded(copied / "run", Settings.load(copied / "run"))
    (copied / "run" / "texts.json").unlink()
    run = str(copied / "run")
    status, _, err = called("eval", run)
    assert status == 1 and "texts.json': No such file" in err and "name files to evaluate on others" in err
    assert called("eval", run, text(copied))[0] == 0
    assert "texts.json': No such file" in called("inspect", run)[1]


def test_resume_refuses_another_split_and_another_text_of_the_same_length(tmp_path: Path) -> None:
    given, run = settings(tmp_path), tmp_path / "run"
    Trainer(given, run, quiet=True).train()
    other = tmp_path / "other"
    other.mkdir()
    changes: list[tuple[dict[str, object], str]] = [
        ({"seed": 5}, "seed = 5: the text of this run was split with 0"),
        ({"held_out": 0.3}, "held_out = 0.3: the text of this run was split with 0.1"),
        ({"files": (text(other),)}, "removed: '.*text.txt' .still there.*; added: '.*other/text.txt'"),
    ]
    for change, says in changes:
        with pytest.raises(UserError, match=says):
            Trainer(given.changed(change), run, resume=True)
        # Neither does a config.json that was changed by hand let held-out text be what was trained on.
        given.changed(change).save(run)
        status, _, err = called("eval", str(run))
        assert status == 1 and re.search(says, err)
        given.save(run)
    assert called("eval", str(run))[0] == 0
