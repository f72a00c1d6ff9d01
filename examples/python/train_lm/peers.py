"""What the transformers stand beside: two models that only count, and the one of train_text."""

from __future__ import annotations

import numpy as np

from libmoe.train import Corpus
from libmoe.train.data import Part
from train_text import text as counting
from train_text.model import TextModel
from train_text.progress import Progress
from train_text.training import BATCH, evaluate, sample_positions, train

EVALUATED = 200_000  # held-out bytes


def counting_bits(corpus: Corpus) -> tuple[float, float]:
    """Bits per byte of guessing by frequency, and by frequency after the byte before."""
    training, held_out = joined(corpus.training), joined(corpus.held_out)
    positions = sample_positions(held_out, EVALUATED)
    return (
        counting.unigram_bits(training, held_out, positions),
        counting.bigram_bits(training, held_out, positions),
    )


def window_bits(corpus: Corpus, seed: int, n_bytes: int) -> tuple[float, int, float]:
    """Train the model of train_text on so many bytes: bits per byte, steps, and seconds."""
    text = counting.Corpus(joined(corpus.training), joined(corpus.held_out), corpus.n_files, [], False)
    model = TextModel(counting.unigram(text.training), seed)
    steps = max(1, n_bytes // BATCH)
    with Progress() as progress:
        records, _ = train(model, text, steps=steps, seed=seed, show=progress.show)
    positions = sample_positions(text.held_out, EVALUATED)
    return evaluate(model, text.held_out, positions).bits, steps, records[-1].seconds


def joined(part: Part) -> counting.Bytes:
    """All spans of one side, one after the other."""
    return np.concatenate(part.spans)
