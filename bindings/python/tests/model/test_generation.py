"""Generation: ends, texts that end, prompts of any lengths, parts, caches that go on, logits, defaults."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from small_language_models import LANGUAGE, MOE, made

FOLDERS = Path(__file__).parents[1] / "pretrained" / "folders"
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [11]]


@pytest.fixture(scope="module")
def model() -> libmoe.Model:
    return made({**LANGUAGE, "moe": MOE}, libmoe.Context(1))


@pytest.fixture(scope="module")
def writer() -> libmoe.Model:
    """A model with as many tokens as the tokenizer of the folders."""
    made_model = made({**LANGUAGE, "vocabulary_size": 80, "moe": MOE}, libmoe.Context(1))
    made_model.tokenizer = libmoe.Tokenizer(FOLDERS / "mixtral")
    return made_model


def greedy(model: libmoe.Model, prompt: list[int], count: int) -> list[int]:
    """Tokens by whole forwards, one after the other."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model.forward(np.array([tokens], np.int32), logits=True).logits
        assert logits is not None
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_prompts_of_any_lengths_have_the_tokens_they_have_alone(model: libmoe.Model) -> None:
    drawn = np.stack(list(model.generate_batch(PROMPTS, 6, temperature=0)), axis=1)
    assert drawn.tolist() == [greedy(model, prompt, 6) for prompt in PROMPTS]
    assert [list(model.generate(prompt, 6, temperature=0)) for prompt in PROMPTS] == drawn.tolist()


def test_a_sequence_ends_by_itself_and_the_others_go_on(model: libmoe.Model) -> None:
    whole = [list(model.generate(prompt, 12, seed=5 + row)) for row, prompt in enumerate(PROMPTS)]
    ends = {whole[0][2], whole[1][7]}
    wanted = [list(before_and_with(tokens, ends)) for tokens in whole]
    assert len({len(tokens) for tokens in wanted}) > 1  # or nothing would be seen

    steps = list(model.generate_batch(PROMPTS, 12, seed=5, end_tokens=sorted(ends)))
    assert len(steps) == max(map(len, wanted))
    for row, tokens in enumerate(wanted):
        drawn = [int(step[row]) for step in steps]
        assert drawn == tokens + [-1] * (len(steps) - len(tokens))
        assert list(model.generate(PROMPTS[row], 12, seed=5 + row, end_tokens=sorted(ends))) == tokens


def before_and_with(tokens: list[int], ends: set[int]) -> list[int]:
    place = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: place + 1]


@pytest.mark.parametrize("part", [1, 2, 3, 100])
def test_parts_of_a_prompt_change_no_bit(model: libmoe.Model, part: int) -> None:
    once = list(model.generate_batch(PROMPTS, 4, seed=1, logits=True))
    parts = list(model.generate_batch(PROMPTS, 4, seed=1, logits=True, part_tokens=part))
    for (tokens, logits), (others, of_others) in zip(once, parts):
        np.testing.assert_array_equal(others, tokens)
        assert of_others.tobytes() == logits.tobytes()


def test_parts_with_padding_behind(model: libmoe.Model) -> None:
    tokens, valid = np.zeros((3, 7), np.int32), np.zeros((3, 7), np.bool_)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)], valid[row, : len(prompt)] = prompt, True
    steps = model.generate_batch(tokens, 5, valid_mask=valid, temperature=0, part_tokens=2)
    assert np.stack(list(steps), axis=1).tolist() == [greedy(model, prompt, 5) for prompt in PROMPTS]


def test_logits_are_those_of_forward(model: libmoe.Model) -> None:
    tokens = list(PROMPTS[0])
    for token, logits in model.generate(PROMPTS[0], 4, seed=3, logits=True):
        whole = model.forward(np.array([tokens], np.int32), logits=True).logits
        assert whole is not None and logits.tobytes() == whole[0, -1].tobytes()
        tokens.append(token)


def test_a_cache_goes_on(model: libmoe.Model) -> None:
    cache = model.cache(1, 20)
    first = list(model.generate([3, 1, 4], 4, temperature=0, cache=cache))
    assert cache.length == 3 + 4 - 1
    more = list(model.generate([first[-1], 7, 7], 4, temperature=0, cache=cache))
    assert more == greedy(model, [3, 1, 4, *first, 7, 7], 4)
    cache.truncate(3)
    assert list(model.generate([first[0]], 3, temperature=0, cache=cache)) == first[1:4]


def test_a_penalty_is_for_the_prompt_and_what_follows(model: libmoe.Model) -> None:
    """By hand, from the logits: positive ones are divided, negative ones multiplied."""
    so_far, penalty = list(PROMPTS[1]), 1.7
    for token, logits in model.generate(so_far, 6, temperature=0, repetition_penalty=penalty, logits=True):
        scores = logits.astype(np.float64)
        seen = sorted(set(so_far))
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        assert token == scores.argmax()
        so_far.append(token)


def test_min_p_leaves_the_likely_tokens(model: libmoe.Model) -> None:
    for token, logits in model.generate(PROMPTS[0], 40, min_p=0.5, logits=True, seed=2):
        assert logits[token] >= logits.max() + np.log(0.5) - 1e-5


def test_defaults_are_the_models(model: libmoe.Model) -> None:
    other = copy.deepcopy(model)
    end = greedy(model, PROMPTS[0], 3)[-1]
    other.sampling = libmoe.Sampling(temperature=0, n_tokens=9, end_tokens=(end,))
    wanted = before_and_with(greedy(model, PROMPTS[0], 9), {end})
    assert list(other.generate(PROMPTS[0])) == wanted
    assert [int(step[0]) for step in other.generate_batch([PROMPTS[0]])] == wanted
    assert list(other.generate(PROMPTS[0], end_tokens=())) == greedy(model, PROMPTS[0], 9)
    assert list(other.generate(PROMPTS[0], 2)) == greedy(model, PROMPTS[0], 2)
    drawn = list(model.generate(PROMPTS[0], 9, seed=4))
    assert list(other.generate(PROMPTS[0], temperature=1, seed=4, end_tokens=())) == drawn
    assert pickle.loads(pickle.dumps(other)).sampling == other.sampling == copy.deepcopy(other).sampling


def test_a_text_that_ends_a_sequence(writer: libmoe.Model) -> None:
    tokenizer = writer.tokenizer
    prompt = tokenizer.encode("the cat")
    tokens = list(writer.generate(prompt, 40, seed=3))
    text = tokenizer.decode(tokens)
    for place in (3, 10, 20):
        stop = text[place : place + 2]
        with_it = list(writer.generate(prompt, 40, seed=3, stop=stop))
        assert with_it == tokens[: len(with_it)] and stop in tokenizer.decode(with_it)
        assert stop not in tokenizer.decode(with_it[:-1])
        rows = list(writer.generate_batch([prompt, prompt[:1]], 40, seed=3, stop=[stop]))
        assert [int(row[0]) for row in rows if row[0] >= 0] == with_it


def test_written_text_ends_before_its_end(writer: libmoe.Model) -> None:
    whole = "".join(writer.write("the cat", 40, seed=3))
    prompt = writer.tokenizer.encode("the cat")
    tokens = [*prompt, *writer.generate(prompt, 40, seed=3)]
    assert writer.tokenizer.decode(tokens) == writer.tokenizer.decode(prompt) + whole
    for place, length in itertools.product((1, 5, 17), (1, 3, 6)):
        stop = whole[place : place + length]
        found = "".join(writer.write("the cat", 40, seed=3, stop=[stop, "never seen"]))
        assert found == whole[: whole.index(stop)]
    last = tokens[len(prompt) + 5]
    before = tokens[: tokens.index(last, len(prompt))]
    found = "".join(writer.write("the cat", 40, seed=3, end_tokens=last))
    assert writer.tokenizer.decode(before) == writer.tokenizer.decode(prompt) + found


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.generate([1, 2]), "n_tokens: say how many"),
        (lambda m: m.generate([[1, 2], [3, 4]], 3), "use generate_batch"),
        (lambda m: m.generate_batch([[1, 2], []], 3), r"prompts\[1\]: is empty"),
        (lambda m: m.generate_batch([[1, 2], [99]], 3), r"prompts\[1\]: 99 is no token"),
        (lambda m: m.generate_batch([], 3), "prompts: are none"),
        (lambda m: m.generate_batch([[1]], 3, valid_mask=np.ones((1, 1), np.bool_)), "a list of prompts has"),
        (lambda m: m.generate([1], 3, min_p=1.5), "min_p"),
        (lambda m: m.generate([1], 3, repetition_penalty=0), "repetition_penalty"),
        (lambda m: m.generate([1], 3, stop="x"), "came from no folder; set model.tokenizer"),
        (lambda m: m.generate([1], 3, stop=""), "an empty text"),
        (lambda m: m.generate([1], 3, stop=[7]), "tokens are end_tokens"),
        (lambda m: m.generate([1], 3, cache=m.cache(2, 9)), "2 sequences, but there are 1 prompts"),
        (lambda m: m.generate([1, 2], 3, cache=m.cache(1, 3)), "room for 3 more tokens.* take 4"),
        (lambda m: m.write("the", 3), "came from no folder"),
    ],
)
def test_what_is_wrong_is_said_at_once(model: libmoe.Model, call: Any, says: str) -> None:
    with pytest.raises(libmoe.MoeError, match=says):
        call(model)


def test_nothing_is_read_before_it_is_asked_for(model: libmoe.Model) -> None:
    cache = model.cache(1, 9)
    steps = model.generate([1, 2], 3, cache=cache)
    assert cache.length == 0
    next(steps)
    assert cache.length == 2


def test_long_batches_are_arrays_too(model: libmoe.Model) -> None:
    tokens: NDArray[np.int32] = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    assert np.stack(list(model.generate_batch(tokens, 4, temperature=0)), axis=1).tolist() == [
        greedy(model, row, 4) for row in tokens.tolist()
    ]
