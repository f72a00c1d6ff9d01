"""What the model stands beside: two that only count, the model of train_text, and a dense transformer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from libmoe.train import Corpus, Settings, Trainer
from libmoe.train.bench import bench
from libmoe.train.data import Part
from train_text import text as counting
from train_text.model import TextModel
from train_text.progress import Progress
from train_text.training import STEPS, evaluate, sample_positions, train

EVALUATED = 200_000  # held-out bytes


def counting_bits(corpus: Corpus) -> tuple[float, float]:
    """Bits per byte of guessing by frequency, and by frequency after the byte before."""
    training, held_out = joined(corpus.training), joined(corpus.held_out)
    positions = sample_positions(held_out, EVALUATED)
    return (
        counting.unigram_bits(training, held_out, positions),
        counting.bigram_bits(training, held_out, positions),
    )


def window_bits(corpus: Corpus, seed: int, share: float) -> tuple[float, float]:
    """Train the model of train_text for a share of its steps: bits per byte, and seconds."""
    text = counting.Corpus(joined(corpus.training), joined(corpus.held_out), corpus.n_files, [], False)
    model = TextModel(counting.unigram(text.training), seed)
    with Progress() as progress:
        records, _ = train(model, text, steps=max(1, round(share * STEPS)), seed=seed, show=progress.show)
    positions = sample_positions(text.held_out, EVALUATED)
    return evaluate(model, text.held_out, positions).bits, records[-1].seconds


def dense_run(settings: Settings, seconds: float, folder: Path) -> Trainer:
    """Train a dense transformer of the same work per token for the same time.

    Its feed-forward networks are as wide as the experts of a token together.
    """
    dense = replace(settings, n_experts=0, moe={})
    tokens = seconds * bench(dense, rounds=3).training
    steps = max(1, round(tokens / dense.tokens_per_step))
    trainer = Trainer(replace(dense, steps=steps), folder)
    trainer.train()
    return trainer


def joined(part: Part) -> counting.Bytes:
    """All spans of one side, one after the other."""
    return np.concatenate(part.spans)
