"""Train a small Mixture-of-Experts transformer on bytes of text, and see what it is worth.

    python train_lm [FILES OR FOLDERS...] [--steps N] [--seed N] [--output FOLDER] [--alone]

Without names it reads Python's own sources and the licence texts of the machine.  It prints a sample and the
held-out bits per byte beside those of two models that only count, of the model of ../train_text, and of a
dense transformer of the same work per token, trained for the same time; --alone leaves the last two out.  In
the output folder it leaves the runs moe/ and dense/, which ``python -m libmoe inspect`` and ``sample`` read,
and pictures of the former.

The exit status is 0 when the model beats both counting models, 1 when it does not or something is wrong, and
130 after Ctrl-C, which keeps what was learnt.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

# numpy's share of the work is small, and its own BLAS threads would take the processor from libmoe's.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if not __package__:  # run as a folder: the modules are found as those of a package all the same
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import libmoe
from libmoe.train import Settings, Trainer, UserError, diagnose, open_run, plots, sample
from libmoe.train import log as logs
from libmoe.train.doctor import told
from libmoe.train.evaluate import bits_per_byte
from libmoe.train.sample import printable
from train_lm.peers import EVALUATED, counting_bits, dense_run, joined, window_bits
from train_text.text import default_files

STEPS = 4000  # some four minutes on two cores


def main() -> int:
    """Do the whole job and return the exit status."""
    arguments = parse_arguments()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    started = time.monotonic()
    try:
        status = run(arguments)
    except (libmoe.MoeError, OSError, UserError) as error:
        print(f"train_lm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntrain_lm: interrupted", file=sys.stderr)
        return 130
    print(f"({time.monotonic() - started:.0f} seconds in all)")
    return status


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("train_lm", description="Train a small MoE transformer with libmoe.")
    parser.add_argument(
        "names", nargs="*", metavar="FILE OR FOLDER", help="text to read; default: Python's own sources"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"default {STEPS}: some four minutes on two cores"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("build/demo"), help="folder for the results (default build/demo)"
    )
    parser.add_argument(
        "--alone",
        action="store_true",
        help="without the dense transformer and the earlier model: half the time",
    )
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps must be above 0")
    return arguments


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
        evaluate_every=max(10, arguments.steps // 120 * 10),
        seed=arguments.seed,
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, draw, sample, compare; return the exit status."""
    settings, output = settings_of(arguments), arguments.output
    for name in ("moe", "dense"):  # of an earlier demo
        shutil.rmtree(output / name, ignore_errors=True)
    trainer = Trainer(settings, output / "moe")
    describe(trainer)
    with trainer.context.profile(max_events=20_000) as profile:
        outcome = trainer.train()
    if outcome.signal:
        print(f"\ninterrupted: python -m libmoe train --resume {output / 'moe'}", file=sys.stderr)
        return 128 + outcome.signal
    print(f"\nWhere the time went, evaluations included:\n\n{profile.table()}")
    profile.save_trace(trainer.folder / "trace.json")
    draw(trainer)
    write(trainer)

    corpus = trainer.corpus
    unigram, bigram = counting_bits(corpus)
    table = [("unigram model", unigram, ""), ("bigram model", bigram, "")]
    if not arguments.alone:
        print("\nThe model of train_text, one layer over a window of 16 bytes:", flush=True)
        bits, seconds = window_bits(corpus, arguments.seed, arguments.steps / STEPS)
        table.append(("window of 16 bytes", bits, f"{seconds:.0f} s"))
        print("\nA dense transformer, as much work for each byte, for as long:", flush=True)
        dense = dense_run(settings, trainer.seconds, output / "dense")
        table.append(row("dense transformer", dense))
    ours = row("libmoe transformer", trainer)
    print(f"\nHeld-out bits per byte, over {min(EVALUATED, corpus.held_out.n_bytes):,} bytes:")
    for name, bits, more in (*table, ours):
        print(f"    {name:20}  {bits:.3f}  {more}")
    print(f"\nIn {output}: moe/ with the weights, the log, pictures, and trace.json for Perfetto")
    if ours[1] >= min(unigram, bigram):
        print("train_lm: the model did not beat both counting models", file=sys.stderr)
        return 1
    return 0


def describe(trainer: Trainer) -> None:
    """Say what is about to be trained, on what, with what."""
    corpus, settings = trainer.corpus, trainer.settings
    training, held_out = corpus.training.n_bytes, corpus.held_out.n_bytes
    print(f"{corpus.n_files:,} different files: {training:,} bytes to train on, {held_out:,} bytes held out")
    print(
        f"{weights(trainer):,} weights: {settings.n_layers} layers, H = {settings.hidden_size}, I = "
        f"{settings.intermediate_size}, {settings.n_experts} experts, {settings.top_k} per byte"
    )
    print(f"{trainer.context.build_info()}\n", flush=True)


def draw(trainer: Trainer) -> None:
    """Draw the pictures, where matplotlib is there; say what the log shows."""
    records = logs.read(trainer.folder)
    try:
        drawn = plots.draw(trainer.folder, records, trainer.model, trainer.corpus.held_out)
        print("\ndrawn:", *drawn)
    except UserError as error:
        print(f"\nno pictures: {error}")
    hints = diagnose(trainer.settings, records)
    if hints:
        print(told(hints))


def write(trainer: Trainer) -> None:
    """Let the best weights go on from a line of held-out text."""
    trained = open_run(trainer.folder)
    text = bytes(joined(trainer.corpus.held_out)[:4096])
    prompt = text[: text.find(b"\n") + 1] or text[:16]
    pieces = sample(trained, prompt, 600, temperature=0.7, seed=trainer.settings.seed)
    print("\nA sample, at temperature 0.7:\n")
    print("".join(printable([prompt, *pieces])))


def row(name: str, trainer: Trainer) -> tuple[str, float, str]:
    """One line of the table: bits per byte of a run's best weights."""
    settings = trainer.settings
    bits = bits_per_byte(
        open_run(trainer.folder).model,
        trainer.corpus.held_out,
        sequence_length=settings.sequence_length,
        sequences=settings.sequences,
        most_tokens=EVALUATED,
    )
    return name, bits, f"{trainer.seconds:.0f} s, {weights(trainer):,} weights"


def weights(trainer: Trainer) -> int:
    """Count the model's parameters."""
    return sum(parameter.data.size for parameter in trainer.model.parameters.values())


if __name__ == "__main__":
    sys.exit(main())
