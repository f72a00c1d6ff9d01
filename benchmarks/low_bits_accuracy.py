"""Bits per byte of a trained model with weights packed in each form of few bits, plainly and by calibration.

    python low_bits_accuracy.py FOLDER [--steps 800] [--tokens 200000] [--calibration 32768]

FOLDER is where the run goes, which is gone on with where it is there.  The text is the demo's: Python's own
sources and the licence texts of the machine; calibration reads what was trained on, never what is held out.
Sizes are multiples of 256, as Q4_K and Q6_K want them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples" / "python"))

import libmoe  # noqa: E402
from libmoe._native import abi  # noqa: E402
from libmoe.train import Settings, Trainer  # noqa: E402
from libmoe.train.evaluate import bits_per_byte  # noqa: E402
from train_text.text import default_files  # noqa: E402


def trained(folder: Path, steps: int) -> Trainer:
    """Train until there are so many steps, and return the model with its text."""
    settings = Settings(
        files=tuple(map(str, default_files())),
        hidden_size=256,
        n_layers=4,
        n_heads=4,
        n_experts=8,
        top_k=2,
        intermediate_size=512,
        sequence_length=128,
        sequences=8,
        steps=steps,
        learning_rate=2e-3,
        warmup_steps=100,
        evaluate_every=max(10, steps // 10),
    )
    trainer = Trainer(settings, folder, resume=folder.exists())
    if trainer.train().signal:  # a model that has not learnt says nothing about its weights
        sys.exit(1)
    return trainer


def main() -> None:
    """Train, then print a line for each form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--tokens", type=int, default=200_000, help="of held-out text")
    parser.add_argument("--calibration", type=int, default=32_768, help="tokens of training text")
    parser.add_argument("--forms", nargs="+", default=[], help="by default all")
    asked = parser.parse_args()
    trainer = trained(asked.folder, asked.steps)
    model: Any = trainer.model
    begun = time.monotonic()
    windows = trainer.corpus.training.spread(asked.calibration // 128, 128)
    calibration = libmoe.calibrate(model, windows, sequences=8)
    print(f"calibrated with {calibration.n_tokens:,} tokens in {time.monotonic() - begun:.1f} s")
    few = [word for word in abi.PREPARED if word not in ("none", "f32", "bf16") and "stored" not in word]
    whole = 0.0  # bits per byte of bfloat16

    def told(how: dict[str, Any], form: str) -> str:
        """Bits per byte, how much that is above bfloat16's, and the time of packing."""
        nonlocal whole
        begun = time.monotonic()
        model.prepare(form, **how)
        seconds = time.monotonic() - begun
        bits = bits_per_byte(
            model, trainer.corpus.held_out, sequence_length=128, sequences=8, most_tokens=asked.tokens
        )
        whole = whole or (bits if form == "bf16" else 0.0)
        return f"{bits:10.4f} {100 * (bits / (whole or bits) - 1):7.2f}% {seconds:6.1f} s"

    print(f"{'form':16} {'plain':>10} {'over':>8} {'packed':>8} {'calibrated':>12} {'over':>8} {'packed':>8}")
    for form in ("none", "bf16", *(asked.forms or few)):
        line = told({}, form)
        if form in few:
            line += "  " + told({"calibration": calibration}, form)
        print(f"{form:16} {line}", flush=True)


main()
