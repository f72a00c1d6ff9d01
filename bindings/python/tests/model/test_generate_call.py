"""moe_generate of the C interface: prompts of different lengths beside each alone, read token by token."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from libmoe._native import abi
from libmoe._native.library import lib
from libmoe.blocks import sample
from small_language_models import LANGUAGE, MOE, made

PROMPTS = [[3], [5, 1, 16, 2, 9, 9, 4], [0, 8, 8], [7, 7, 7, 7, 7]]
N = 9
GO_ON, END_SEQUENCE, END_ALL = (abi.NEXT[word] for word in ("go_on", "end_sequence", "end_all"))

Answer = Callable[[int, int, int], int]


@pytest.fixture(scope="module")
def model() -> libmoe.Model:
    return made({**LANGUAGE, "moe": MOE, "n_heads": 6, "n_kv_heads": 2, "head_size": 4}, libmoe.Context(2))


class Told:
    """What on_token was told."""

    def __init__(self, vocabulary: int, answer: Answer = lambda *_: GO_ON) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.logits: dict[tuple[int, int], NDArray[Any]] = {}

        def on_token(_: Any, sequence: int, number: int, token: int, logits: int) -> int:
            row = (ctypes.c_float * vocabulary).from_address(logits)
            self.logits[sequence, number] = np.array(row, np.float32)
            self.calls.append((sequence, number, token))
            return answer(sequence, number, token)

        self.function = abi.moe_generation_on_token(on_token)


def generated(
    model: libmoe.Model,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    *,
    told: Told | None = None,
    sampling: dict[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    eos: Sequence[int] = (),
    cache: libmoe.Cache | None = None,
    **options: Any,
) -> list[list[int]]:
    """Call moe_generate; what is behind the counts is looked at too."""
    how = abi.moe_generation(**{"max_new_tokens": N, **options})
    ends, given = np.array(eos, np.int32), np.array(seeds or [0], np.uint64)
    how.eos, how.n_eos = ends.ctypes.data, ends.size
    how.seeds = given.ctypes.data if seeds else None
    history = np.array((sampling or {}).get("history", ()), np.int32)
    if sampling is not None:
        drawn = abi.moe_sampling(**{**sampling, "history": history.ctypes.data, "n_history": history.size})
        how.sampling = ctypes.pointer(drawn)
    if cache is not None:
        how.cache = cache._handle._as_parameter_
    if told is not None:
        how.on_token = told.function
    tokens = np.concatenate([np.array(prompt, np.int32) for prompt in prompts])
    offsets = np.cumsum([0, *map(len, prompts)]).astype(np.int64)
    columns = min(how.max_new_tokens, 1000)  # where there are more it is refused
    found = np.full((len(prompts), columns), 77, np.int32)
    counts = np.full(len(prompts), 77, np.int64)
    lib.moe_generate(
        model._handle,
        ctypes.byref(how),
        tokens.ctypes.data,
        offsets.ctypes.data,
        len(prompts),
        found.ctypes.data,
        counts.ctypes.data,
    )
    assert all((row[count:] == -1).all() for row, count in zip(found, counts))
    return [row[:count].tolist() for row, count in zip(found, counts)]


def alone(
    model: libmoe.Model, prompt: Sequence[int], count: int = N, seed: int = 0, **how: Any
) -> tuple[list[int], list[NDArray[Any]]]:
    """One prompt, read token by token, and what is drawn by moe_sample."""
    cache = model.cache(1, len(prompt) + count - 1)
    for token in prompt:
        logits = model.read(cache, np.array([[token]], np.int32))[0]
    tokens: list[int] = []
    rows = []
    before = how.pop("history", [])
    for number in range(count):
        if number:
            logits = model.read(cache, np.array([[tokens[-1]]], np.int32))[0]
        rows.append(logits)
        history = [*before, *prompt, *tokens]
        tokens.append(sample(logits, **{"temperature": 0.0, **how}, history=history, seed=seed, draw=number))
    return tokens, rows


@pytest.mark.parametrize("chunk_tokens", [0, 1, 4, 8, 13, 1000])
def test_greedy(model: libmoe.Model, chunk_tokens: int) -> None:
    told = Told(model.vocabulary_size)
    found = generated(model, told=told, chunk_tokens=chunk_tokens)
    for b, prompt in enumerate(PROMPTS):
        tokens, rows = alone(model, prompt)
        assert found[b] == tokens
        for number, row in enumerate(rows):
            np.testing.assert_array_equal(told.logits[b, number], row)
    expected = [(b, i, found[b][i]) for i in range(N) for b in range(len(PROMPTS))]
    assert told.calls == expected


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.5, "repetition_penalty": 1.4},
    {"repetition_penalty": 3.0, "history": [1, 2, 3]},
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seeds", [None, [5, 2**64 - 1, 5, 0]])
def test_drawn(model: libmoe.Model, sampling: dict[str, Any], seeds: list[int] | None) -> None:
    seed = 2**64 - 2
    found = generated(model, sampling={**sampling, "seed": seed}, seeds=seeds)
    for b, prompt in enumerate(PROMPTS):
        own = seeds[b] if seeds else (seed + b) % 2**64
        assert found[b] == alone(model, prompt, seed=own, **sampling)[0]


def test_ends(model: libmoe.Model) -> None:
    """A sequence ends with any of the tokens; the others do not notice."""
    sampling = {"temperature": 1.0, "seed": 3}
    whole = generated(model, sampling=sampling)
    ends = [whole[0][2], whole[1][0]]
    for b, (found, all_of_it) in enumerate(zip(generated(model, sampling=sampling, eos=ends), whole)):
        first = next((i for i, token in enumerate(all_of_it) if token in ends), N - 1)
        assert found == all_of_it[: first + 1], b


def test_the_callback_ends_a_sequence_or_all(model: libmoe.Model) -> None:
    whole = generated(model)

    def after_two(sequence: int, number: int, _: int) -> int:
        return END_SEQUENCE if sequence == 1 and number == 1 else GO_ON

    found = generated(model, told=Told(model.vocabulary_size, after_two))
    assert found == [whole[0], whole[1][:2], whole[2], whole[3]]
    for other in (END_ALL, 3, -1):

        def at_once(sequence: int, number: int, _: int, other: int = other) -> int:
            return other if sequence == 2 and number == 3 else GO_ON

        found = generated(model, told=Told(model.vocabulary_size, at_once))
        assert found == [whole[0][:4], whole[1][:4], whole[2][:4], whole[3][:3]]
    every = Told(model.vocabulary_size, lambda *_: END_SEQUENCE)
    assert generated(model, told=every) == [row[:1] for row in whole]
    assert len(every.calls) == len(PROMPTS)


def test_going_on_in_a_cache(model: libmoe.Model) -> None:
    """The last token of each has not been read: the next prompts begin with it."""
    whole = generated(model)
    cache = model.cache(len(PROMPTS), 7 + 2 + 1 + 5)
    first = generated(model, cache=cache, max_new_tokens=3)
    second = generated(model, [row[-1:] for row in first], cache=cache, max_new_tokens=6)
    assert [one + other for one, other in zip(first, second)] == whole


def test_a_failed_call_leaves_the_cache_as_it_was() -> None:
    """When a token is read that it has drawn, and when one is to be drawn from logits that are no numbers."""
    model = made({**LANGUAGE, "moe": MOE, "tied_output": False}, libmoe.Context(1))
    cache = model.cache(2, 40)
    first, second = np.array([[1], [3]], np.int32), np.array([[2], [4]], np.int32)
    model.read(cache, first)
    expected = model.read(cache, second)
    cache.truncate(1)
    drawn = generated(model, [[2], [4]], cache=cache, max_new_tokens=5)
    cache.truncate(1)
    bad = drawn[0][2]
    for name, text in (
        ("embed.weight", "layers.0"),
        ("output.weight", rf"sequence 0: logits\[{bad}\] = nan"),
    ):
        values = model.parameters[name].data
        kept = values[bad].copy()
        values[bad] = np.nan
        with pytest.raises(libmoe.NotFiniteError, match=text):
            generated(model, [[2], [4]], cache=cache, max_new_tokens=5)
        values[bad] = kept
        np.testing.assert_array_equal(model.read(cache, second), expected)
        cache.truncate(1)


def test_a_limit_makes_smaller_chunks(model: libmoe.Model) -> None:
    """Every limit that is enough for single tokens is kept to, with the same tokens."""
    prompt = np.random.default_rng(0).integers(0, 17, 400).tolist()
    free = generated(model, [prompt, [3, 4]])
    least = 1
    for limit in (1 << 14, 1 << 16, 1 << 18, 1 << 22):
        try:
            assert generated(model, [prompt, [3, 4]], memory_limit=limit) == free
        except libmoe.InvalidArgumentError as error:
            assert "2 sequences of 1 tokens need at least" in str(error)
            least = int(str(error).split("at least ")[1].split()[0])
    assert generated(model, [prompt, [3, 4]], memory_limit=least) == free or least == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens = 0 is below 1"),
    ({"eos": [2, 17]}, r"eos\[1\] = 17 is not one of vocabulary_size = 17"),
    ({"chunk_tokens": -1}, "chunk_tokens = -1 is below 0"),
    ({"sampling": {"min_p": 2.0}}, "sampling.min_p = 2 is not in"),
    ({"sampling": {"repetition_penalty": 1.0, "history": [99]}}, r"sampling.history\[0\] = 99"),
    ({"prompts": [[1], [17]]}, r"prompts\[1\] = 17 is not one of vocabulary_size = 17"),
    (
        {"prompts": [[1], []]},
        r"offsets\[2\] = 1 is not above offsets\[1\] = 1: every prompt has one token at least",
    ),
    ({"memory_limit": 1}, "memory_limit = 1 bytes"),
    ({"max_new_tokens": 2**30}, r"n_sequences \* max_length"),
    ({"max_new_tokens": 2**31 - 1}, "max_length = 2147483653 exceeds"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_is_refused(model: libmoe.Model, options: dict[str, Any], text: str) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match=text):
        generated(model, **options)


def test_caches_that_do_not_fit(model: libmoe.Model) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="n_sequences = 4, but cache is one of 3"):
        generated(model, cache=model.cache(3, 50))
    with pytest.raises(libmoe.InvalidArgumentError, match="need 15 places, but cache has 14 behind its 0"):
        generated(model, cache=model.cache(4, 14))
    other = made({**LANGUAGE, "moe": MOE}, libmoe.Context(1))
    with pytest.raises(libmoe.BadStateError, match="cache belongs to another model"):
        generated(model, cache=other.cache(4, 50))


def test_places_are_counted() -> None:
    """Of a model with learned positions there are only so many."""
    arguments = {**LANGUAGE, "moe": MOE, "max_positions": 9, "rope_theta": 0.0}
    model = made(arguments, libmoe.Context(1))
    assert generated(model, [[1, 2], [3]], max_new_tokens=8) == [
        alone(model, prompt, 8)[0] for prompt in ([1, 2],)
    ] + [generated(model, [[3]], max_new_tokens=8)[0]]
    with pytest.raises(libmoe.InvalidArgumentError, match="max_new_tokens = 9 exceed max_positions = 9"):
        generated(model, [[1, 2]], max_new_tokens=9)
