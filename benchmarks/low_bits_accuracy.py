"""Bits per byte of a trained model whose weights are packed in each form of few bits.

    python low_bits_accuracy.py FOLDER [--steps 800] [--tokens 200000]

FOLDER is where the run goes, which is gone on with where it is there.  The text is the demo's: Python's own
sources and the licence texts of the machine.  Sizes are multiples of 256, as Q4_K and Q6_K want them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples" / "python"))

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
    asked = parser.parse_args()
    trainer = trained(asked.folder, asked.steps)
    model: Any = trainer.model
    print(f"{'form':20} {'bits per byte':>13} {'over bf16':>10}")
    found: dict[str, float] = {}
    for form in ("none", "bf16", *(word for word in abi.PREPARED if word not in ("none", "f32", "bf16"))):
        model.prepare(form)
        found[form] = bits_per_byte(
            model, trainer.corpus.held_out, sequence_length=128, sequences=8, most_tokens=asked.tokens
        )
        over = 100 * (found[form] / found.get("bf16", found[form]) - 1)
        print(f"{form:20} {found[form]:13.4f} {over:9.2f}%", flush=True)


main()
