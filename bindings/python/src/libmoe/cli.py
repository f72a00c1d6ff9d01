"""The command line: train a language model on text, evaluate it, let it write, look into it, time it.

Models in folders, as people have them, can be talked with and written anew too.

The exit status is 0, or 1 for an error, 2 for a wrong command line, and after a signal 128 and its number:
130 after Ctrl-C, 143 after SIGTERM, 129 after a terminal that was closed, 141 where nobody reads what is
printed, or its disk is full.  Training goes on without a reader.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import libmoe

from . import _folder_commands as folder_commands
from . import _scale_command as scale_command
from ._folder_options import option, refuse_reading
from ._options import given_settings, parse
from .train import log, texts
from .train.bench import bench
from .train.config import Settings
from .train.data import load_recorded, whole
from .train.doctor import diagnose, told
from .train.errors import UserError
from .train.evaluate import bits_per_byte, what_is_read
from .train.inspection import Inspection
from .train.interrupt import AtOnce
from .train.output import Watched, counted, drop, say
from .train.ranks import Ranks, started
from .train.record import Record
from .train.run import count_weights, memory_limit, open_run, threads_note
from .train.sample import printable, sample
from .train.trainer import Trainer

EVENTS = 20_000  # of a time line, the first ones: what a browser still shows with ease


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused where it is used
    asked = parse(arguments, COMMANDS)
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=RuntimeWarning, module="libmoe")
        warnings.showwarning = lambda message, *_: say(f"libmoe {asked.command}: {message}", error=True)
        output = Watched(sys.stdout)
        with contextlib.redirect_stdout(output):
            return _status(asked, output)


def _status(asked: argparse.Namespace, output: Watched) -> int:
    """Run a command and return its exit status; what is wrong is said in a line.

    Of the ranks that mpiexec has started the first one speaks, and one that fails ends all.
    """
    asked.processes = ranks = Ranks()
    try:
        if asked.command in OVER_RANKS:
            asked.processes = ranks = Ranks.of_mpi()
        elif started():
            raise UserError(f"{asked.command} is for one process: start it without mpiexec")
        if not ranks.is_first:
            drop()
            warnings.simplefilter("ignore")  # the first one warns
        if asked.command != "train":  # whose runs compare their settings
            _require_same(asked, ranks)
        status = int(asked.run(asked))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has seen enough; nothing more can be flushed to it
        drop()
        return 128 + signal.SIGPIPE
    except (UserError, libmoe.MoeError, OSError) as error:
        if error is output.failure:  # a full disk under the output
            drop()
            return 128 + signal.SIGPIPE
        ranks.wait_for_first()
        say(f"libmoe {asked.command}: {ranks.named(error)}", error=True)
        return ranks.end(1)
    except KeyboardInterrupt as interrupt:
        ranks.wait_for_first()
        say(f"\nlibmoe {asked.command}: {ranks.named('interrupted')}", error=True)
        return ranks.end(128 + (interrupt.signal if isinstance(interrupt, AtOnce) else signal.SIGINT))
    except BaseException:
        if ranks.communicator is not None:
            traceback.print_exc()
            ranks.end(1)
        raise


def _require_same(asked: argparse.Namespace, ranks: Ranks) -> None:
    """Refuse options that differ among ranks, which would wait for one another; paths and threads may."""
    for name, value in sorted(vars(asked).items()):
        if name not in OF_EACH_RANK:
            ranks.require_same(f"--{name.replace('_', '-')}", value)


# ------------------------------------------------------------------------------------------------------------
# The commands
# ------------------------------------------------------------------------------------------------------------


def _train(asked: argparse.Namespace) -> int:
    given = given_settings(asked)
    if asked.resume is not None:
        if asked.output is not None:
            raise UserError("--output: a resumed run stays where it is")
        folder = asked.resume
        settings = _resumed(Settings.load(folder), given)
    else:
        folder = asked.output or Path("run")
        settings = Settings(**given)
        if not settings.files:
            raise UserError("no text: name files or folders, or a run to --resume")
    trainer = Trainer(
        settings, folder, resume=asked.resume is not None, communicator=asked.processes.communicator
    )
    _describe(trainer)
    measuring: contextlib.AbstractContextManager[libmoe.Profile | None] = contextlib.nullcontext()
    if asked.profile:
        measuring = trainer.context.profile(EVENTS)
    try:
        with measuring as profile:
            outcome = trainer.train()
        if profile is not None and asked.processes.is_first:  # the folder is that of all ranks
            say(profile.table())
            (folder / "profile.json").write_text(profile.json() + "\n")
            profile.save_trace(folder / "trace.json")
        say(f"{outcome}; in {folder}")
        if trainer.result:
            say(trainer.result)
    finally:
        if asked.processes.is_first:
            _print_hints(folder, settings)
    return 128 + outcome.signal if outcome.signal else 0


def _resumed(settings: Settings, given: dict[str, Any]) -> Settings:
    """Other settings for the rest of a run: not those that its weights and its text depend on."""
    for each in fields(Settings):
        if each.name in given and each.metadata["group"] in ("text", "model"):
            name = "FILE" if each.name == "files" else option(each.name)
            raise UserError(f"{name}: cannot change in a run that goes on")
    return settings.changed(given)


def _describe(trainer: Trainer) -> None:
    corpus = trainer.corpus
    training, held_out = corpus.training, corpus.held_out
    tokens = f" ({training.n_tokens:,} tokens)" if trainer.settings.tokenizer else ""
    say(
        f"{training.n_bytes:,} bytes{tokens} to train on, {held_out.n_bytes:,} held out, "
        f"of {counted(corpus.n_files, 'file')}"
    )
    for note in trainer.notes:
        say(note)
    say(f"{count_weights(trainer.model):,} weights; {trainer.context.build_info()}")
    if trainer.ranks.size > 1:
        say(f"{trainer.ranks.size} ranks")
    if trainer.step:
        say(f"goes on after step {trainer.step}")


def _print_hints(folder: Path, settings: Settings) -> None:
    hints = diagnose(settings, log.read(folder))
    if hints:
        say(told(hints), error=True)


def _eval(asked: argparse.Namespace) -> int:
    if folder_commands.is_model_folder(asked.folder):
        return folder_commands.evaluate(asked)
    refuse_reading(asked)
    trained = open_run(asked.folder, asked.weights or "best", asked.processes)
    settings, length = trained.settings, trained.settings.sequence_length
    if asked.files:
        found, passed_over = texts.find(asked.files, utf8=bool(settings.tokenizer))
        part, name = whole(found, trained.tokenizer), "the files"
        notes = [texts.told(passed_over), *_trained_on(asked.folder, found)]
    else:
        corpus = load_recorded(asked.folder, settings)
        part, name = corpus.held_out, "held-out text"
        notes = [corpus.added]
    for note in filter(None, notes if asked.processes.is_first else []):
        say(note, error=True)
    most = asked.tokens or part.n_tokens
    bits = bits_per_byte(
        trained.model,
        part,
        sequence_length=length,
        sequences=settings.sequences,
        most_tokens=most,
        memory_limit=memory_limit(settings),
        ranks=asked.processes,
    )
    unit = "tokens" if settings.tokenizer else "bytes"
    of = what_is_read(part, most, length, unit) or f"{part.n_bytes:,} bytes"
    print(f"{bits:.4f} bits per byte of {name}, {of}")
    return 0


def _trained_on(folder: Path, found: Sequence[texts.Text]) -> list[str]:
    """Say which of these files the run was trained on: what is known by heart is no test."""
    try:
        record = Record.load(folder)
    except UserError:
        return []
    places = {os.path.realpath(file.name) for file in record.files}
    same = [repr(text.name) for text in found if text.sha256 in record.by_sum]
    changed = [
        repr(text.name)
        for text in found
        if text.sha256 not in record.by_sum and os.path.realpath(text.name) in places
    ]
    notes = []
    if same:
        notes.append(f"this run was trained on most of {', '.join(same)}: that is no held-out text")
    if changed:
        names = ", ".join(changed)
        notes.append(
            f"this run was trained on {names} as it was then: only what is new there is held-out text"
        )
    return notes


def _sample(asked: argparse.Namespace) -> int:
    trained = open_run(asked.folder, asked.weights, asked.processes)
    pieces = sample(
        trained,
        asked.prompt.encode("utf-8", "surrogateescape"),
        asked.tokens,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        seed=asked.seed,
    )
    print(asked.prompt, end="")
    for piece in printable(pieces):
        print(piece, end="", flush=True)
    print(flush=True)
    return 0


def _inspect(asked: argparse.Namespace) -> int:
    if folder_commands.is_model_folder(asked.folder):
        if asked.plots:
            raise UserError("--plots: is of runs; a model's folder has nothing to draw")
        for line in folder_commands.inspect(asked.folder):
            print(line)
        return 0
    run = Inspection(asked.folder)
    for line in run.lines():
        print(line)
    if asked.plots:
        print("drawn:", *run.draw())
    return 0


def _bench(asked: argparse.Namespace) -> int:
    settings = Settings().changed(given_settings(asked))
    if threads_note(settings):
        say(threads_note(settings), error=True)
    speed = bench(settings, asked.rounds)
    print(f"{speed.weights:,} weights, {settings.sequences} x {settings.sequence_length} tokens a forward")
    print(f"training    {speed.training:12,.0f} tokens/s, activations {speed.step_bytes / 2**20:.1f} MiB")
    print(f"evaluation  {speed.evaluation:12,.0f} tokens/s")
    print(f"generation  {speed.generation:12,.0f} tokens/s, one sequence")
    if asked.profile:
        print(f"\ntraining, phase by phase:\n{speed.profile.table()}")
    return 0


OVER_RANKS = ("train", "eval", "sample", "generate")
OF_EACH_RANK = ("run", "processes", "folder", "files", "threads")

COMMANDS = {
    "train": _train,
    "eval": _eval,
    "sample": _sample,
    "inspect": _inspect,
    "generate": folder_commands.generate,
    "chat": folder_commands.chat,
    "convert": folder_commands.convert,
    "bench": _bench,
    "scale": scale_command.scale,
}
