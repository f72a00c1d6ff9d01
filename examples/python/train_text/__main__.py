"""Train a language model of bytes whose body is a libmoe layer, on any text.

    python train_text [FILES OR FOLDERS...] [--steps N] [--seed N] [--output FOLDER]

Without names it reads Python's own sources and the licence texts of the machine.  It prints a sample and the
held-out bits per byte beside those of two models that only count, and leaves in the output folder the weights
(weights.npz), the loss curve (loss.csv, loss.png) and a picture of which experts take which kinds of bytes
(experts.png).  Ctrl-C ends the training early and keeps the weights.

The same text, steps and seed give the same result on one machine, whatever the number of threads; on another
processor numpy's matrix products may round differently, and the models part ways slowly.

The exit status is 0 when the model beats both counting models, 1 when it does not or something is wrong, and
130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# numpy's share of the work is small, and its own BLAS threads, which spin for a while after every product,
# would take the processor from libmoe's.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if not __package__:  # run as a folder: the modules are found as those of a package all the same
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

import libmoe
from train_text.kinds import kinds
from train_text.model import CONTEXT, HIDDEN, INTERMEDIATE, N_EXPERTS, TOP_K, TextModel
from train_text.pictures import expert_picture, loss_picture
from train_text.progress import Progress
from train_text.text import Corpus, TextError, bigram_bits, load, unigram, unigram_bits
from train_text.training import (
    BATCH,
    default_steps,
    evaluate,
    generate,
    sample_positions,
    train,
    write_csv,
)

EVALUATED = 200_000  # held-out bytes at the end


def main() -> int:
    """Do the whole job and return the exit status."""
    arguments = parse_arguments()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    started = time.monotonic()
    try:
        make_folder(arguments.output)
        corpus = load(arguments.names, arguments.output)
        status = run(corpus, arguments.steps, arguments.seed, arguments.output)
    except (libmoe.MoeError, OSError, TextError) as error:
        print(f"train_text: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntrain_text: interrupted", file=sys.stderr)
        return 130
    print(f"({time.monotonic() - started:.0f} seconds in all)")
    return status


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "train_text", description="Train a byte-level language model with libmoe."
    )
    parser.add_argument(
        "names", nargs="*", metavar="FILE OR FOLDER", help="text to read; default: Python's own sources"
    )
    parser.add_argument(
        "--steps",
        type=int,
        help=f"steps of {BATCH:,} bytes; default: as many as two processor cores do in some two minutes",
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("build/demo"), help="folder for the results (default build/demo)"
    )
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.steps < 1:
        parser.error("--steps must be above 0")
    if not 0 <= arguments.seed < 1 << 64:
        parser.error("--seed must be from 0 to 2^64 - 1")
    return arguments


def make_folder(path: Path) -> None:
    """Make the folder, or say now rather than after minutes that nothing can be left there."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write in the folder {str(path)!r}")


def run(corpus: Corpus, steps: int | None, seed: int, output: Path) -> int:
    """Train, keep the weights, evaluate, sample and draw; return the exit status."""
    describe_corpus(corpus)
    model = TextModel(unigram(corpus.training), seed)
    describe_model(model)

    steps = steps or default_steps(corpus)
    with Progress() as progress:
        records, interrupted = train(model, corpus, steps=steps, seed=seed, show=progress.show)
    model.save(output / "weights.npz")
    write_csv(records, output / "loss.csv")
    if interrupted:
        print(f"\ninterrupted: what was learnt so far is in {output / 'weights.npz'}", file=sys.stderr)
        return 130

    positions = sample_positions(corpus.held_out, EVALUATED)
    result = evaluate(model, corpus.held_out, positions)
    by_unigram = unigram_bits(corpus.training, corpus.held_out, positions)
    by_bigram = bigram_bits(corpus.training, corpus.held_out, positions)
    latest = kinds(corpus.held_out)[np.maximum(positions - 1, 0)]  # kind of the latest byte read
    loss_picture(records, by_unigram, by_bigram, output / "loss.png")
    expert_picture(latest, result.experts, N_EXPERTS, output / "experts.png")

    print("\nA sample, at temperature 0.7:\n")
    first_line = bytes(corpus.held_out).find(b"\n", CONTEXT) + 1
    prompt = corpus.held_out[: max(first_line, CONTEXT)]
    print(printable(generate(model, prompt, 600, temperature=0.7, seed=seed)))
    print(f"\nHeld-out bits per byte, over {len(positions):,} bytes:")
    for name, bits in (
        ("unigram model", by_unigram),
        ("bigram model", by_bigram),
        ("libmoe model", result.bits),
    ):
        print(f"    {name:13}  {bits:.3f}")
    print(f"\nIn {output}: weights.npz, loss.csv, loss.png, experts.png")
    if result.bits >= min(by_unigram, by_bigram):
        print("train_text: the model did not beat both counting models", file=sys.stderr)
        return 1
    return 0


def describe_corpus(corpus: Corpus) -> None:
    """Say what was read and what was not."""
    training, held_out = len(corpus.training), len(corpus.held_out)
    print(f"{corpus.n_files:,} different files: {training:,} bytes to train on, {held_out:,} bytes held out")
    if corpus.passed_over:
        some = ", ".join(repr(str(path)) for path in corpus.passed_over[:3]) + (
            ", ..." if len(corpus.passed_over) > 3 else ""
        )
        print(f"passed over {len(corpus.passed_over):,} files, unreadable or binary: {some}")
    if corpus.truncated:
        print("there was more text: the rest was not read")


def describe_model(model: TextModel) -> None:
    """Say what is about to be trained, and with what."""
    n_weights = sum(parameter.data.size for parameter in model.parameters)
    print(
        f"{n_weights:,} weights: {CONTEXT} bytes of context, H = {HIDDEN}, I = {INTERMEDIATE}, "
        f"{N_EXPERTS} experts, {TOP_K} per byte"
    )
    print(libmoe.default_context().build_info())
    print(f"memory of the layer's steps: {model.moe.plan(BATCH, training=True)}")
    print("peak load = tokens of the fullest expert over the mean; 1x is perfect balance\n", flush=True)


def printable(text: bytes) -> str:
    """Replace what would steer a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for c in text.decode(errors="replace")
    )


if __name__ == "__main__":
    sys.exit(main())
