"""libmoe's attention, by the rules of model_work.py."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from model_work import AttentionWork
from protocol import Array, listen
from resident import growth

import libmoe
from libmoe import blocks


def main() -> None:
    """Measure the first run, answer with it, run when asked."""
    work = AttentionWork.of(sys.argv[1:])
    context = libmoe.Context(work.threads)
    arrays = work.load()
    how: dict[str, Any] = {"causal": work.causal, "compute_dtype": work.dtype, "context": context}
    query, key, value, doutput = arrays
    output, gradients = np.zeros_like(query), np.zeros_like(arrays[:3])  # written to, and so resident

    def step(tokens: int) -> tuple[Array, Array]:
        into = (gradients[0][:, :tokens], gradients[1][:, :tokens], gradients[2][:, :tokens])
        q, k, v, y, dy = (array[:, :tokens] for array in (query, key, value, output, doutput))
        _, log_sums = blocks.attention(q, k, v, out=y, **how)
        blocks.attention_backward(q, k, v, y, log_sums, dy, into=into, **how)
        return output, gradients

    step(1)  # loads the code that a step runs
    grown, answer = growth(lambda: step(work.tokens))
    facts = {"version": libmoe.__version__, "resident": grown}
    listen(work, facts, answer, lambda: step(work.tokens))


main()
