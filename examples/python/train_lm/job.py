"""The whole job: train, draw, sample, compare, and say how to go on."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

import libmoe
from libmoe.train import Settings, Trainer, UserError, diagnose, open_run, plots, sample
from libmoe.train import log as logs
from libmoe.train.doctor import told
from libmoe.train.sample import printable
from train_lm import race, table
from train_lm.peers import EVALUATED, counting_bits, joined, window_bits
from train_lm.table import Row
from train_text.text import default_files


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the model and its training: experts in every layer, two of eight for each byte."""
    files = arguments.names or [str(path) for path in default_files()]
    return Settings(
        files=tuple(map(os.path.abspath, files)),
        hidden_size=128,
        n_layers=4,
        n_heads=4,
        n_experts=8,
        top_k=2,
        intermediate_size=256,
        sequence_length=128,
        sequences=8,
        steps=arguments.steps,
        learning_rate=2e-3,
        warmup_steps=min(100, arguments.steps // 10),
        evaluate_every=max(10, arguments.steps // 160 * 10),
        seed=arguments.seed,
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it all; return the exit status."""
    settings, output = settings_of(arguments), arguments.output
    for name in ("moe", "dense", "dense-as-long"):  # of an earlier demo
        shutil.rmtree(output / name, ignore_errors=True)
    experts = race.runner("experts", settings, output / "moe")
    runners = [experts]
    if not arguments.alone:
        runners.append(race.runner("dense, the same bytes", race.dense(settings), output / "dense"))
    describe(experts.trainer)

    with experts.trainer.context.profile(max_events=20_000) as profile:
        signal = race.by_turns(runners)
    if not signal and not arguments.alone:
        longer = race.as_long(race.dense(settings), runners[1].trainer, experts.trainer.seconds)
        runners.append(race.runner("dense, as many seconds", longer, output / "dense-as-long"))
        signal = race.by_turns(runners[2:])
    if signal:
        print(f"\ninterrupted; to go on: {command('train', '--resume', output / 'moe')}", file=sys.stderr)
        return 128 + signal
    print("\nWhere the experts' time went, evaluations included; the other model's turns are elsewhere:")
    print(f"\n{profile.table()}")
    profile.save_trace(experts.trainer.folder / "trace.json")
    return report(runners, output, arguments)


def describe(trainer: Trainer) -> None:
    """Say what is about to be trained, on what, with what."""
    corpus, settings = trainer.corpus, trainer.settings
    training, held_out = corpus.training.n_bytes, corpus.held_out.n_bytes
    print(f"{corpus.n_files:,} different files: {training:,} bytes to train on, {held_out:,} bytes held out")
    print(
        f"{table.weights(trainer):,} weights: {settings.n_layers} layers, H = {settings.hidden_size}, I = "
        f"{settings.intermediate_size}, {settings.n_experts} experts, {settings.top_k} per byte"
    )
    print(f"{trainer.context.build_info()}\n", flush=True)


def report(runners: list[race.Runner], output: Path, arguments: argparse.Namespace) -> int:
    """Draw and write, print the table and how to go on; return the exit status."""
    trainer = runners[0].trainer
    hints(trainer)
    write(trainer)
    rows = [table.row(each) for each in runners]
    corpus = trainer.corpus
    unigram, bigram = counting_bits(corpus)
    others = [Row("counting bytes", unigram), Row("counting pairs of bytes", bigram)]
    if not arguments.alone:
        print("\nThe model of train_text, one layer over a window of 16 bytes:", flush=True)
        bits, steps, seconds = window_bits(corpus, arguments.seed, rows[0].n_bytes)
        others.append(Row("window of 16 bytes", bits, steps, rows[0].n_bytes, seconds))
        table.draw(runners, output / "curves.png")
    read, before = min(EVALUATED, corpus.held_out.n_bytes), trainer.settings.evaluate_tokens
    print(f"\nHeld-out text: {read:,} bytes of it; lines above read up to {before:,}, `libmoe eval` all.")
    print(f"\n{table.HEADING}")
    for each in (*others, *reversed(rows)):
        print(each)
    if not arguments.alone:
        print(f"\n{table.conclusion(*rows)}")
    print(f"\nTo go on:\n    {command('inspect', trainer.folder, '--plots')}")
    print(f"    {command('sample', trainer.folder, '--prompt', 'def ')}")
    print(f"    {command('train', '--resume', trainer.folder, '--steps', str(2 * trainer.step))}")
    print(f"Pictures: {output}/*.png and {trainer.folder}/*.png; trace.json there is for Perfetto.")
    if rows[0].bits >= min(unigram, bigram):
        print("train_lm: the model did not beat both counting models", file=sys.stderr)
        return 1
    return 0


def hints(trainer: Trainer) -> None:
    """Draw the pictures of a run, where matplotlib is there; say what its log shows."""
    records = logs.read(trainer.folder)
    try:
        plots.draw(trainer.folder, records, trainer.model, trainer.corpus.held_out)
    except UserError as error:
        print(f"\nno pictures: {error}")
    found = diagnose(trainer.settings, records)
    if found:
        print(told(found))


def write(trainer: Trainer) -> None:
    """Let the best weights go on from a line of held-out text."""
    trained = open_run(trainer.folder)
    text = bytes(joined(trainer.corpus.held_out)[:4096])
    prompt = text[: text.find(b"\n") + 1] or text[:16]
    pieces = sample(trained, prompt, 600, temperature=0.7, seed=trainer.settings.seed)
    print("\nA sample, at temperature 0.7:\n")
    print("".join(printable([prompt, *pieces])))


def command(*words: str | Path) -> str:
    """Return a command of libmoe's as it can be typed here, with this Python and this library."""
    package = Path(libmoe.__file__).resolve().parents[1]
    words = (sys.executable, "-m", "libmoe", *words)
    return f"PYTHONPATH={shlex.quote(str(package))} " + shlex.join(map(str, words))
