"""What libmoe.blocks.sample draws from, beside the processors that transformers' generate puts together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from libmoe.blocks import sample

VOCABULARY = 40


def processed(logits: np.ndarray[Any, Any], history: list[int], how: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The probabilities that transformers draws from, its processors in the order of its generate."""
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(how["repetition_penalty"])])
    if how["temperature"] > 0:
        processors.append(TemperatureLogitsWarper(how["temperature"]))
        if how["top_k"]:
            processors.append(TopKLogitsWarper(how["top_k"]))
        if how["top_p"] < 1:
            processors.append(TopPLogitsWarper(how["top_p"]))
        if how["min_p"] > 0:
            processors.append(MinPLogitsWarper(how["min_p"]))
    scores = processors(torch.tensor([history]), torch.from_numpy(logits)[None].double())
    return scores[0].softmax(0).numpy()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "how",
    [
        {"min_p": 0.1},
        {"min_p": 0.02, "top_k": 9, "temperature": 1.7},
        {"top_p": 0.8, "min_p": 0.2, "temperature": 1.3},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 1.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05, "temperature": 1.5},
        {"repetition_penalty": 0.7, "min_p": 0.3},
        {"repetition_penalty": 1.5, "temperature": 0.0},
    ],
)
def test_what_is_drawn(how: dict[str, Any], seed: int) -> None:
    how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0} | how
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, VOCABULARY).astype(np.float32)
    history = random.integers(0, VOCABULARY, 15).tolist()
    p = processed(logits, history, how)
    if how["temperature"] == 0:
        assert sample(logits, history=history, **how) == int(p.argmax())
        return
    count = 3000
    drawn = np.bincount(
        [sample(logits, history=history, seed=seed, draw=d, **how) for d in range(count)],
        minlength=VOCABULARY,
    )
    assert not drawn[p == 0].any()
    # Five deviations of a count.
    assert (np.abs(drawn - count * p) <= 5 * np.sqrt(count * p * (1 - p)) + 1).all()
    assert drawn[p > 20 / count].all()


def test_the_order_is_that_of_generate() -> None:
    """The list above is put together by hand; this is how transformers puts it together."""
    config = GenerationConfig(
        do_sample=True, temperature=1.5, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.8, max_length=3
    )
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    names: list[str] = []

    real = model._get_logits_processor

    def noting(*arguments: Any, **others: Any) -> Any:
        found = real(*arguments, **others)
        names.extend(type(each).__name__ for each in found)
        return found

    model._get_logits_processor = noting  # type: ignore[method-assign]
    model.generate(torch.tensor([[1]]), config, pad_token_id=0)
    assert names == [
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]
