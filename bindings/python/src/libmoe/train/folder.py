"""A run's folder: which files are in it, and whose it is.

config.json         the settings
texts.json          the text: every file's name, size and checksum, see record.py
tokenizer.json      a copy of the tokenizer, where there is one
log.jsonl           what happened, see log.py
last.safetensors    training state of the last checkpoint, from which a run goes on with the same bits
best.safetensors    that of the best evaluation
model/              the model of the best evaluation as a folder, of a run that began with one
lock                held by the process that trains, whose number is in it
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import IO

from .errors import UserError

SETTINGS, LOG = "config.json", "log.jsonl"
LAST, BEST, MODEL = "last.safetensors", "best.safetensors", "model"
RECORD, TOKENIZER, LOCK = "texts.json", "tokenizer.json", "lock"
UNFINISHED = ".unfinished"  # behind the name of a file that is being written

# What a run that came to no checkpoint leaves.
_BEGUN = {SETTINGS, RECORD, TOKENIZER, LOG, LOCK}
# What the library leaves of a checkpoint that it was killed in.
_HALF_SAVED = re.compile(rf"({re.escape(LAST)}|{re.escape(BEST)})\.\d+-\d+\.tmp")


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, finished or not."""
    begun = all((folder / name).exists() for name in (SETTINGS, LOG))
    return begun and ((folder / RECORD).exists() or any(folder.glob("*.safetensors")))


def check_new(folder: Path) -> None:
    """Refuse a folder in which no run can begin: it has one, or files of somebody else.

    One that never came to a checkpoint has nothing to lose, and may begin anew.

    Raises
    ------
    UserError
        The text says which files there are.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file: give a new folder for the run")
    if any((folder / name).exists() for name in (LAST, BEST)):
        raise UserError(f"there is a run in {str(folder)!r} already: resume it, or give another folder")
    names = {path.name for path in folder.iterdir()}
    own = _left_behind(folder)
    others = {name for name in names if name.removesuffix(UNFINISHED) not in _BEGUN and name not in own}
    if not others and LOCK not in names:
        others = names  # names like those of a run, but no run has been here
    if others:
        some = ", ".join(map(repr, sorted(others)[:3])) + (", ..." if len(others) > 3 else "")
        raise UserError(
            f"{str(folder)!r} has files that are no run's ({some}), which a run could overwrite: "
            "give a new folder"
        )


def _left_behind(folder: Path) -> set[str]:
    """Return names of what a run was killed in before its first checkpoint: half of that, and the model."""
    names = {path.name for path in folder.iterdir() if _HALF_SAVED.fullmatch(path.name)}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        settings = json.loads((folder / SETTINGS).read_bytes())
        if isinstance(settings, dict) and settings.get("init") and (folder / MODEL).is_dir():
            names.add(MODEL)  # written by the first evaluation, right before its checkpoint
    return names


class Lock:
    """The right to train into a folder, which one process has at a time.

    Parameters
    ----------
    folder : path
        Of a run; it exists.

    Raises
    ------
    UserError
        Another process has it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        self._file: IO[str] | None = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            process = self._file.read().strip()
            self.release()
            if process == str(os.getpid()):
                raise UserError(
                    f"another Trainer of this program has {str(folder)!r}: let it train, delete it (del), or "
                    "give another folder"
                ) from None
            raise UserError(
                f"another process{f' ({process})' if process else ''} trains into {str(folder)!r}: wait for "
                "it, stop it, or give another folder"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let another process have it; the file stays, since to take it away could take another's."""
        if self._file is not None:
            self._file.close()
            self._file = None


def is_training(folder: Path) -> bool:
    """Return whether a process trains into a folder now."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file
        return False
    return False


def claim(folder: Path) -> Lock:
    """Make the folder of a new run, and lock it.

    Raises
    ------
    UserError
        It has a run, files of somebody else, or another process trains into it.
    """
    check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder)
    try:
        check_new(folder)  # what another process did before this one had the lock
    except UserError:
        lock.release()
        raise
    for name in _left_behind(folder):  # before the settings, which say whose the model is
        if name == MODEL:
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    for name in _BEGUN - {LOCK}:
        (folder / name).unlink(missing_ok=True)
    return lock


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file, whole or not at all, also when the power fails.

    Raises
    ------
    UserError
        It cannot be written; the text has the path and the reason.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}") from None
