"""A model from a folder, read and computed or trained by libmoe: libmoe_generate.py WORK..."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from generate_work import JOBS, MODELS, RATE, GenerateWork
from protocol import Array, listen
from resident import growth

import libmoe

PART = 512  # tokens of a prompt before the run that are read at once


def main() -> None:
    """Answer with the last logits, then run when asked."""
    work = GenerateWork.of(sys.argv[1:])
    context = libmoe.Context(work.threads)
    if work.job == "train":
        train(work, context)
        return

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


def train(work: GenerateWork, context: libmoe.Context) -> None:
    """Answer with all logits and the gradients of the tokens' embeddings, then take steps when asked."""
    model = libmoe.Model.from_pretrained(
        work.files, weight_dtype=work.dtype, unallocated="expert_gradients", context=context
    )
    _, tokens = work.tokens(model.vocabulary_size)
    targets = np.full_like(tokens, -100)  # the last token has none
    targets[:, :-1] = tokens[:, 1:]
    logits: Any = model.forward(tokens, logits=True).logits
    answer = [logits[:, :-1]]
    del logits

    # Gradients that the model keeps have been written to while it was made; they are counted too.
    kept = context.memory()[0] - sum(parameter.data.nbytes for parameter in model.parameters.values())

    def step(optimizer: libmoe.SGD) -> libmoe.SGD:
        output = model.forward(tokens, targets, training=True, tape=True)
        model.backward(output, optimizer=optimizer)
        return optimizer

    more, optimizer = growth(
        lambda: step(libmoe.SGD(model.parameters, RATE, stochastic_rounding=True, context=context))
    )
    answer.append(model.parameters["embed.weight"].grad[tokens[:, :-1]])
    listen(
        work,
        {"version": f"libmoe {libmoe.__version__}", "bytes": more + kept},
        answer,
        lambda: step(optimizer),
    )


main()
