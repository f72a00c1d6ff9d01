"""The training loop, evaluation and sampling."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import libmoe
from train_text.model import CONTEXT, N_EXPERTS, Activations, TextModel
from train_text.text import END_OF_FILE, Bytes, Corpus, contexts

BATCH = 1024  # tokens per step
STEPS = 2500  # some two minutes on two cores
LEARNING_RATE = 7e-3  # the highest
WARM_UP = 50  # steps
MOST_PASSES = 10  # over the training text: more would learn it by heart
RECORDS = 40  # points on the loss curve
EVALUATED = 4096  # held-out bytes per record


@dataclass(frozen=True)
class Record:
    """One point on the loss curve: means since the point before."""

    step: int
    tokens: int
    seconds: float
    training_bits: float  # per byte
    held_out_bits: float  # per byte, of a sample
    peak_load: float  # of the fullest expert over the mean: 1 is perfect balance


def default_steps(corpus: Corpus) -> int:
    """Return STEPS, or for a small text as many as MOST_PASSES over it take."""
    return min(STEPS, math.ceil(MOST_PASSES * len(corpus.training) / BATCH))


def learning_rate(step: int, steps: int) -> float:
    """Rate of a step: it warms up linearly, then falls along half a cosine to 0 at the last step."""
    return LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def train_step(
    model: TextModel, optimizer: libmoe.AdamW, text: Bytes, positions: NDArray[np.int64], step: int
) -> Activations:
    """Learn to predict the bytes of `text` at `positions` [T] from those before them, by one step."""
    model.zero_grad()
    a = model.forward(contexts(text, positions, CONTEXT), training=True, step=step)
    model.backward(a, text[positions])
    optimizer.step(max_norm=1.0)
    return a


def train(
    model: TextModel, corpus: Corpus, *, steps: int, seed: int, show: Callable[[float, str], None]
) -> tuple[list[Record], bool]:
    """Train for `steps`, or until Ctrl-C: the loss curve, and whether that came."""
    rng = np.random.default_rng(seed)
    optimizer = libmoe.AdamW(model.parameters, LEARNING_RATE, betas=(0.9, 0.99))
    sample = sample_positions(corpus.held_out, EVALUATED)
    records: list[Record] = []
    bits: list[float] = []  # since the latest record, like the load
    load = np.zeros(N_EXPERTS, np.int64)
    seconds = 0.0  # of training, without the evaluations
    try:
        for step in range(steps):
            start = time.monotonic()
            optimizer.learning_rate = learning_rate(step, steps)
            positions = rng.integers(len(corpus.training), size=BATCH)
            a = train_step(model, optimizer, corpus.training, positions, step)
            bits.append(bits_per_byte(a.probabilities, corpus.training[positions]))
            load += a.report.tokens_per_expert
            seconds += time.monotonic() - start

            done = (step + 1) / steps
            tokens = (step + 1) * BATCH
            loss = float(np.mean(bits))
            peak = float(load.max() / load.mean())
            show(done, f"loss {loss:.3f} bits/byte  {tokens / seconds:,.0f} tokens/s  peak load {peak:.2f}x")
            if done * RECORDS >= len(records) + 1:
                held_out_bits = evaluate(model, corpus.held_out, sample).bits
                records.append(Record(step + 1, tokens, seconds, loss, held_out_bits, peak))
                bits.clear()
                load.fill(0)
    except (
        KeyboardInterrupt
    ):  # every step is whole: the optimiser's is one call, which Ctrl-C does not cut short
        return records, True
    return records, False


def write_csv(records: Sequence[Record], path: Path) -> None:
    """Write the loss curve, one row per record."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Record)])
        writer.writeheader()
        writer.writerows(map(asdict, records))


@dataclass(frozen=True)
class Evaluation:
    """What the model makes of held-out bytes."""

    bits: float  # per byte
    experts: NDArray[np.int32]  # [T,K] the experts that each byte's context went to


def evaluate(model: TextModel, text: Bytes, positions: NDArray[np.int64]) -> Evaluation:
    """Predict the bytes at `positions` [T] from those before them."""
    bits, experts = [], []
    for part in np.array_split(positions, math.ceil(len(positions) / BATCH)):
        a = model.forward(contexts(text, part, CONTEXT))
        bits.append(bits_per_byte(a.probabilities, text[part]) * len(part))
        experts.append(a.report.expert_indices)
    return Evaluation(sum(bits) / len(positions), np.concatenate(experts))


def bits_per_byte(probabilities: NDArray[np.float32], targets: Bytes) -> float:
    """Mean of -log2 of the probability of each target: [T,256], [T]."""
    chosen = probabilities[np.arange(len(targets)), targets]
    return float(-np.log2(np.maximum(chosen, 1e-30)).mean())


def sample_positions(text: Bytes, most: int) -> NDArray[np.int64]:
    """At most `most` positions, spread evenly over the text."""
    return np.linspace(0, len(text) - 1, min(most, len(text))).astype(np.int64)


def generate(model: TextModel, prompt: Bytes, length: int, *, temperature: float, seed: int) -> bytes:
    """Continue the prompt byte by byte, up to an end of file."""
    rng = np.random.default_rng(seed)
    before = np.full(CONTEXT, END_OF_FILE, np.uint8)  # a short prompt stands at the beginning of a file
    window = np.concatenate([before, prompt])[None, -CONTEXT:]  # [1,CONTEXT]
    written = bytearray()
    while len(written) < length:
        p = model.forward(window).probabilities[0].astype(np.float64) ** (1 / temperature)
        byte = int(rng.choice(256, p=p / p.sum()))
        if byte == END_OF_FILE:
            break
        written.append(byte)
        window = np.append(window[:, 1:], np.array([[byte]], np.uint8), axis=1)
    return bytes(written)
