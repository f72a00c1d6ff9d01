"""Calls of a model over ranks that are divided for their memory have the bits of calls that are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from ranked_models import Made, alone, batch, require_same, steps, together

import libmoe
from ranked_layers import Part
from small_language_models import DENSE, LANGUAGE, MOE
from thread_ranks import ThreadRanks

LENGTH = 64
PARTS = [5, 0, 8]
MIXED: dict[str, Any] = {
    **LANGUAGE,
    **DENSE,
    "moe": {**MOE, "n_experts": 5, "n_shared_experts": 1, "dropout": 0.1},
    "layers": [{}, {"dense": True}, {}],
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
KINDS = {
    "mixed": MIXED,
    "capacity": {**LANGUAGE, "moe": {**MOE, "capacity_formula": "megatron", "drop": "position"}},
    "bfloat16": {
        **LANGUAGE,
        "hidden_size": 24,
        "moe": {**MOE, "intermediate_size": 32},
        "weight_dtype": "bf16",
    },
}

Options = Callable[[libmoe.Model, Part], dict[str, Any]]


def same(
    config: dict[str, Any], options: Options, placed: dict[str, Any] | None = None, **of_one: Any
) -> None:
    """Compare divided steps over ranks with those of one process."""
    of = partial(steps, config=config, count=sum(PARTS), length=LENGTH)

    def use(model: libmoe.Model, part: Part) -> Made:
        return of(model, part, **options(model, part))

    wanted = alone(config, sum(PARTS), partial(of, **of_one))
    placed = placed or {}
    replicated = placed.get("strategy") == "replicated"
    require_same(together(config, PARTS, use, **placed), wanted, config, replicated=replicated)


def limit(model: libmoe.Model, share: float) -> int:
    """Return bytes of a step: 1 lets all tokens be computed at once, 0 in chunks; below, less is kept."""
    least = model.plan(max(PARTS), LENGTH, chunk_tokens=256).total_bytes
    most = model.plan(max(PARTS), LENGTH, memory_limit=1 << 50).total_bytes
    return int(least + share * (most - least))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_no_bit(kind: str) -> None:
    """With bfloat16 weights chunks go by pairs of rows, with ranks and without."""
    same(KINDS[kind], lambda model, part: {"chunk_tokens": 256}, chunk_tokens=256 * (kind == "bfloat16"))


@pytest.mark.parametrize("share", [1.0, 0.4, -0.1])
def test_limits_change_no_bit(share: float) -> None:
    same(MIXED, lambda model, part: {"memory_limit": limit(model, share)})


@pytest.mark.parametrize("placed", [{"strategy": "replicated"}, {"hot_experts": 2}, {"hot_experts": [3, 0]}])
def test_other_ways_to_divide_experts(placed: dict[str, Any]) -> None:
    same(MIXED, lambda model, part: {"memory_limit": limit(model, 0.2)}, placed)


def test_one_rank_alone_has_a_limit_or_chunks() -> None:
    def options(model: libmoe.Model, part: Part) -> dict[str, Any]:
        return [{}, {"chunk_tokens": 300}, {"memory_limit": limit(model, 0.1)}][part.rank]

    same(MIXED, options, {"experts_per_rank": [1, 1, 3]})


@pytest.mark.parametrize("share", [1.0, 0.3, -0.1])
def test_a_call_takes_no_more_than_its_limit(share: float) -> None:
    def use(model: libmoe.Model, part: Part) -> None:
        most = limit(model, share)
        tokens, targets = (part.of(array).copy() for array in batch(MIXED, sum(PARTS), LENGTH))
        before, _ = model._context.memory()
        output = model.forward(tokens, targets, tape=True, training=True, memory_limit=most)
        model.backward(output)
        _, peak = model._context.memory()
        assert peak - before <= most + 10_000  # and the tape itself

    together(MIXED, PARTS, use)


def test_too_little_on_one_rank_is_the_error_of_all_and_names_what_would_do() -> None:
    def use(model: libmoe.Model, part: Part) -> tuple[str, Any]:
        tokens, targets = (part.of(array).copy() for array in batch(MIXED, sum(PARTS), LENGTH))

        def forward(most: int) -> libmoe.ModelOutput:
            given = most if part.rank == 2 else None
            return model.forward(tokens, targets, tape=True, memory_limit=given)

        with pytest.raises(libmoe.InvalidArgumentError) as raised:
            forward(10_000)
        words = str(raised.value)
        model.backward(forward(int(words.split()[-1])))
        return words, None

    found = together(MIXED, PARTS, use)
    assert found == found[:1] * 3
    assert "rank 2: memory_limit = 10000 bytes, but 8 sequences of 64 tokens need at least" in found[0][0]


def limited(size: int, share: float, use: Callable[[libmoe.Model], Any]) -> list[Any]:
    """Use a model over ranks whose contexts have a limit."""
    most = max(together(MIXED, [0] * size, lambda model, part: limit(model, share)))

    def one(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(1, memory_limit=most) as context:
            return use(libmoe.Model(**MIXED, context=context, communicator=communicator))

    return ThreadRanks(size, patience=20).run(one)


def test_a_context_has_a_limit() -> None:
    of = partial(steps, config=MIXED, count=4, length=LENGTH)
    found = limited(1, 0.0, lambda model: of(model, Part(0, 4)))
    require_same(found, alone(MIXED, 4, lambda model, part: of(model, part)), MIXED)


def test_reading_and_writing_in_chunks() -> None:
    prompt = np.arange(300, dtype=np.int32) % 17

    def use(model: libmoe.Model) -> Any:
        logits = model.read(model.cache(1, 300), prompt[None, :])
        return logits, list(model.generate(prompt, 5, temperature=0.9, seed=2))

    logits, written = alone(MIXED, 0, lambda model, _: use(model))
    for own, tokens in limited(2, 0.0, use):
        np.testing.assert_array_equal(own, logits)
        assert tokens == written
