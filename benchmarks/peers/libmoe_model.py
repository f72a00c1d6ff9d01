"""libmoe's language model, by the rules of model_work.py.

    libmoe_model.py LIMIT train|generate FOLDER ...

LIMIT is bytes of scratch and tape, 0 for none.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from model_work import (
    CHECKED,
    EPSILON,
    EXPERTS,
    GENERATED,
    HEADS,
    HIDDEN,
    INNER,
    LAYERS,
    PROMPT,
    THETA,
    TOP_K,
    VOCABULARY,
    ModelWork,
)
from protocol import listen
from resident import growth

import libmoe
from libmoe import words


def model_of(
    context: libmoe.Context, dtype: words.WeightDType, *, inference_only: bool = False
) -> libmoe.Model:
    """Return the model with its initial parameters."""
    return libmoe.Model(
        HIDDEN,
        LAYERS,
        HEADS,
        vocabulary_size=VOCABULARY,
        moe={
            "n_experts": EXPERTS,
            "top_k": TOP_K,
            "intermediate_size": INNER,
            "expert_kind": "gated",
            "activation": "silu",
            "router_bias": False,
            "balance_coef": 0.0,
            "z_coef": 0.0,
        },
        rope_theta=THETA,
        norm_epsilon=EPSILON,
        weight_dtype=dtype,
        inference_only=inference_only,
        context=context,
    )


def main() -> None:
    """Measure, answer, run when asked."""
    limit = int(sys.argv[1])
    work = ModelWork.of(sys.argv[2:])
    context = libmoe.Context(work.threads)
    dtype: words.WeightDType = "bf16" if work.dtype == "bf16" else "f32"
    model = model_of(context, dtype, inference_only=work.part == "generate")
    for name, values in work.parameters().items():
        data = model.parameters[name].data
        data[...] = values if data.dtype == np.float32 else libmoe.to_bfloat16(values)
    if work.part == "train":
        train(work, model, context, limit)
    else:
        generate(work, model)


def train(work: ModelWork, model: libmoe.Model, context: libmoe.Context, limit: int) -> None:
    """Run steps whose learning rate is 0, so that all do the same work."""
    optimizer = libmoe.AdamW(model.parameters, learning_rate=0.0, context=context)
    tokens = work.tokens()
    x, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()

    def step(x: Any, targets: Any, tape: libmoe.ModelTape) -> None:
        model.zero_grad()
        model.backward(model.forward(x, targets, training=True, tape=tape, memory_limit=limit))
        optimizer.step()

    step(x[:1, :8].copy(), targets[:1, :8].copy(), model.tape())  # moments have been written to
    tape = model.tape()
    grown, _ = growth(lambda: step(x, targets, tape))
    facts = {
        "version": libmoe.__version__,
        "resident": grown,
        "promised": model.plan(*x.shape, memory_limit=limit).total_bytes,
    }
    gradient = model.parameters["embed.weight"].grad
    logits = model.forward(x, logits=True).logits
    listen(work, facts, [logits, gradient], lambda: step(x, targets, tape))


def generate(work: ModelWork, model: libmoe.Model) -> None:
    """Read the prompt and generate from it."""
    tokens = work.tokens()[:1].copy()
    cache = model.cache(1, PROMPT + CHECKED)
    model.read(cache, tokens[:, :PROMPT].copy())
    following = tokens[:, PROMPT : PROMPT + CHECKED].T.reshape(CHECKED, 1, 1).copy()
    logits = np.stack([model.read(cache, token) for token in following])
    prompt = tokens[0, :PROMPT]

    def run() -> list[int]:
        return list(model.generate(prompt, GENERATED, temperature=0.0))

    listen(work, {"version": libmoe.__version__}, [logits], run)


if __name__ == "__main__":
    main()
