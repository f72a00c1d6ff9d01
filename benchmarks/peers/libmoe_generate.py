"""A model from a folder, read and computed by libmoe: libmoe_generate.py WORK..."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from generate_work import JOBS, MODELS, GenerateWork
from protocol import Array, listen

import libmoe

PART = 512  # tokens of a prompt before the run that are read at once


def main() -> None:
    """Answer with the last logits, then run when asked."""
    work = GenerateWork.of(sys.argv[1:])
    context = libmoe.Context(work.threads)

    def load() -> libmoe.Model:
        return libmoe.Model.from_pretrained(
            work.files, weight_dtype=work.dtype, inference_only=True, prepared=work.dtype, context=context
        )

    model = load()
    run = reading(model, work)
    facts = {"version": f"libmoe {libmoe.__version__}", "traffic": traffic(model, work)}
    answer = run()
    if work.job == "load":
        del model, run
        listen(work, facts, [answer], load)
    else:
        listen(work, facts, [answer], run)


def reading(model: libmoe.Model, work: GenerateWork) -> Callable[[], Array]:
    """Return what reads the run's tokens behind those before."""
    before, tokens = work.tokens(model.vocabulary_size)
    sequences, count, _ = JOBS[work.job]
    cache = model.cache(sequences, count + tokens.shape[1])
    for start in range(0, count, PART):
        model.read(cache, before[:, start : start + PART].copy())

    def run() -> Array:
        cache.truncate(count)
        return model.read(cache, tokens)

    return run


def traffic(model: libmoe.Model, work: GenerateWork) -> float:
    """Return the bytes of weights that a run has to read: those of experts that random routing chooses."""
    sizes: dict[str, Any] = MODELS[work.model]
    experts = next(
        sizes[name] for name in ("num_experts", "n_routed_experts", "num_local_experts") if name in sizes
    )
    chosen = 1 - (1 - sizes["num_experts_per_tok"] / experts) ** work.amount
    info = libmoe.describe_pretrained(work.files, weight_dtype=work.dtype, inference_only=True)
    embedding = model.vocabulary_size * sizes["hidden_size"] * (2 if work.dtype == "bf16" else 4)  # looked up
    return float(info.parameter_bytes - info.expert_bytes - embedding + info.expert_bytes * chosen)


main()
