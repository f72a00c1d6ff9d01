"""Train a language model of bytes whose body is a libmoe layer, on any text.

    python train_text [FILES OR FOLDERS...] [--minutes M | --steps N] [--out build/demo]

Without names it reads Python's own sources and the licence texts of the machine.  It prints a sample and the
held-out bits per byte beside those of two models that only count, and leaves in the output folder the weights
(weights.npz), the loss curve (loss.csv, loss.png) and a picture of which experts take which kinds of bytes
(experts.png).

The exit status is 1 when the model does not beat both counting models.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# numpy's share of the work is small, and its own BLAS threads, which spin for a while after every product,
# would take the processor from libmoe's.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import libmoe
import numpy as np

from kinds import kinds
from model import CONTEXT, HIDDEN, INTERMEDIATE, N_EXPERTS, TOP_K, TextModel
from pictures import expert_picture, loss_picture
from progress import Progress
from text import Corpus, TooLittleTextError, bigram_bits, load, unigram_bits
from training import evaluate, generate, sample_positions, train, write_csv

SEED = 1
EVALUATED = 200_000  # held-out bytes at the end


def main() -> int:
    """Do the whole job and return the exit status."""
    arguments = parse_arguments()
    started = time.monotonic()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        corpus = load(arguments.names)
        beaten = run(corpus, arguments)
    except (libmoe.MoeError, OSError, TooLittleTextError) as error:
        print(f"train_text: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntrain_text: interrupted", file=sys.stderr)
        return 130
    print(f"({time.monotonic() - started:.0f} seconds in all)")
    if not beaten:
        print("train_text: the model did not beat both counting models", file=sys.stderr)
    return 0 if beaten else 1


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "train_text", description="Train a byte-level language model with libmoe."
    )
    parser.add_argument(
        "names", nargs="*", metavar="FILE OR FOLDER", help="text to read; default: Python's own sources"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=2.5, help="how long to train (default 2.5)")
    length.add_argument(
        "--steps", type=int, help="train so many steps instead: every run gives the same bits"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder for the results (default build/demo)"
    )
    arguments = parser.parse_args()
    if not arguments.minutes > 0 or (arguments.steps is not None and arguments.steps < 1):
        parser.error("--minutes and --steps must be above 0")
    return arguments


def run(corpus: Corpus, arguments: argparse.Namespace) -> bool:
    """Train, evaluate, sample and leave the files; whether the model beat both counting models."""
    describe_corpus(corpus)
    model = TextModel(corpus.training, SEED)
    describe_model(model)

    progress = Progress()
    try:
        seconds = 60 * arguments.minutes
        records = train(model, corpus, seconds=seconds, steps=arguments.steps, seed=SEED, show=progress.show)
    finally:
        progress.close()

    positions = sample_positions(corpus.held_out, EVALUATED)
    result = evaluate(model, corpus.held_out, positions)
    unigram = unigram_bits(corpus.training, corpus.held_out, positions)
    bigram = bigram_bits(corpus.training, corpus.held_out, positions)

    print("\nA sample, at temperature 0.7:\n")
    first_line = bytes(corpus.held_out).find(b"\n", CONTEXT) + 1
    prompt = corpus.held_out[: max(first_line, CONTEXT)]
    print(printable(generate(model, prompt, 600, temperature=0.7, seed=SEED)))
    print(f"\nHeld-out bits per byte, over {len(positions):,} bytes:")
    for name, bits in (("unigram model", unigram), ("bigram model", bigram), ("libmoe model", result.bits)):
        print(f"    {name:13}  {bits:.3f}")

    out: Path = arguments.out
    weights: dict[str, Any] = model.state_dict()
    np.savez(out / "weights.npz", **weights)
    write_csv(records, out / "loss.csv")
    loss_picture(records, unigram, bigram, out / "loss.png")
    latest = kinds(corpus.held_out)[np.maximum(positions - 1, 0)]  # kind of the latest byte read
    expert_picture(latest, result.experts, N_EXPERTS, out / "experts.png")
    print(f"\nIn {out}: weights.npz, loss.csv, loss.png, experts.png")
    return result.bits < min(unigram, bigram)


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
    print("peak load = tokens of the fullest expert over the mean; 1x is perfect balance\n")


def printable(text: bytes) -> str:
    """Replace what would steer a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for c in text.decode(errors="replace")
    )


if __name__ == "__main__":
    sys.exit(main())
