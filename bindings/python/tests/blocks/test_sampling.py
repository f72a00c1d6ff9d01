"""Drawing tokens: what the bounds of its numbers mean, and which prompts are taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe.blocks import sample

LOGITS = np.array([0.5, 2.0, -1.0, 2.0, 1.5], np.float32)


def drawn(count: int = 300, **options: Any) -> set[int]:
    return {sample(LOGITS, draw=draw, **options) for draw in range(count)}


def kept(
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    history: Sequence[int] = (),
) -> set[int]:
    """Tokens that can be drawn: after the penalty the k most likely, of these the fewest
    that reach p, of these the ones that are not too far below the best.
    """
    z = LOGITS.astype(float)
    for token in set(history):
        z[token] *= repetition_penalty if z[token] < 0 else 1 / repetition_penalty
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))
    p = np.exp(z / temperature)
    chosen = order[: top_k or len(order)]
    total = p[chosen].sum()
    left: list[int] = []
    for token in chosen:
        left.append(token)
        if p[left].sum() >= top_p * total:
            break
    return {token for token in left if p[token] >= min_p * p[order[0]]}


@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 5, 99, 2**62])
@pytest.mark.parametrize("top_p", [0, 1e-9, 0.3, 0.5, 0.9, 1])
def test_what_is_drawn_from(top_k: int, top_p: float) -> None:
    assert drawn(top_k=top_k, top_p=top_p) == kept(top_k=top_k, top_p=top_p)


@pytest.mark.parametrize("min_p", [0, 1e-9, 0.04, 0.1, 0.3, 0.61, 1])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.95), (3, 0.6)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_share_of_the_best(min_p: float, top_k: int, top_p: float, temperature: float) -> None:
    how: Any = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}
    assert drawn(600, **how) == kept(**how)


@pytest.mark.parametrize("history", [[], [1], [1, 3, 1, 1], [4, 2], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 3.0])
def test_what_has_been_is_penalised_once(history: list[int], penalty: float) -> None:
    """The sets, the best token, and the shares."""
    how: Any = {"history": history, "repetition_penalty": penalty}
    assert drawn(600, min_p=0.2, **how) == kept(min_p=0.2, **how)
    z = LOGITS.astype(float)
    for token in set(history):
        z[token] = z[token] / penalty if z[token] > 0 else z[token] * penalty
    assert sample(LOGITS, temperature=0, **how) == int(z.argmax())
    p = np.exp(z) / np.exp(z).sum()
    count = 2000
    counted = np.bincount([sample(LOGITS, draw=d, **how) for d in range(count)], minlength=5) / count
    np.testing.assert_allclose(counted, p, atol=4 * math.sqrt(0.25 / count))


def test_shares_without_the_unlikely() -> None:
    """By index, and from the best on: the same shares."""
    p = np.exp(LOGITS.astype(float))
    p[p < 0.3 * p.max()] = 0
    count = 2000
    for top_k in (0, 4):
        found = [sample(LOGITS, draw=d, min_p=0.3, top_k=top_k) for d in range(count)]
        counted = np.bincount(found, minlength=5) / count
        np.testing.assert_allclose(counted, p / p.sum(), atol=4 * math.sqrt(0.25 / count))


def test_penalties_leave_logits_as_they_are() -> None:
    """Minus infinity stays never, the caller's array stays, and nothing becomes infinite."""
    logits = np.array([-np.inf, 3e38, 1.0, -3e38], np.float32)
    before = logits.copy()
    for penalty in (1e-3, 1e3):
        for draw in range(20):
            token = sample(logits, repetition_penalty=penalty, history=[0, 1, 3], draw=draw)
            assert token == 1
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("history", "kind", "text"),
    [
        ([5], ValueError, r"sampling.history\[0\] = 5 is not one of vocabulary_size = 5"),
        ([0, -1], ValueError, r"sampling.history\[1\] = -1"),
        ([[1, 2]], ValueError, r"history: expected the tokens of one sequence"),
        ([0.5], TypeError, "history: expected integers"),
        ("ab", TypeError, "history: expected integers"),
    ],
)
def test_histories_are_tokens(history: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        sample(LOGITS, repetition_penalty=1.2, history=history)


WRONG_SHARES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"min_p": -1e-9}, ValueError, "min_p"),
    ({"min_p": 1.0001}, ValueError, "min_p"),
    ({"min_p": math.nan}, ValueError, "min_p"),
    ({"min_p": "0.1"}, TypeError, "min_p"),
    ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty"),
    ({"repetition_penalty": -1.0}, ValueError, "repetition_penalty"),
    ({"repetition_penalty": math.inf}, ValueError, "repetition_penalty"),
    ({"repetition_penalty": math.nan}, ValueError, "repetition_penalty"),
    ({"repetition_penalty": 1e-60}, ValueError, "repetition_penalty"),
    ({"repetition_penalty": 1e60}, ValueError, "repetition_penalty"),
    ({"repetition_penalty": None}, TypeError, "repetition_penalty"),
    ({"temperature": None}, TypeError, "temperature"),  # of generate it is the model's own
]


@pytest.mark.parametrize(("options", "kind", "name"), WRONG_SHARES)
def test_shares_out_of_bounds(options: dict[str, Any], kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=rf"^(sampling(: |\.))?{name}\b"):
        sample(LOGITS, **options)


def test_no_share_and_no_temperature_are_the_best_token() -> None:
    assert kept(top_p=0) == {1}  # the lowest index among equals
    assert drawn(top_p=0) == {1}
    assert drawn(top_p=0, temperature=50.0) == {1}
    assert drawn(temperature=0) == {1}
    assert drawn(temperature=0, top_p=0, top_k=1) == {1}


def test_shares_are_those_of_the_softmax() -> None:
    count = 4000
    counted = (
        np.bincount([sample(LOGITS, draw=d, temperature=2.0) for d in range(count)], minlength=5) / count
    )
    p = np.exp(LOGITS / 2)
    np.testing.assert_allclose(counted, p / p.sum(), atol=4 * math.sqrt(0.25 / count))


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"top_p": -1e-9}, ValueError, "top_p"),
    ({"top_p": 1.0001}, ValueError, "top_p"),
    ({"top_p": math.nan}, ValueError, "top_p"),
    ({"top_p": "0.9"}, TypeError, "top_p"),
    ({"top_p": True}, TypeError, "top_p"),
    ({"temperature": -0.1}, ValueError, "temperature"),
    ({"temperature": math.nan}, ValueError, "temperature"),
    ({"temperature": math.inf}, ValueError, "temperature"),
    ({"top_k": -1}, ValueError, "top_k"),
    ({"top_k": 2.0}, TypeError, "top_k"),
    ({"top_k": 2**63}, ValueError, "top_k"),
    ({"seed": -1}, ValueError, "seed"),
    ({"seed": 2**64}, ValueError, "seed"),
    ({"seed": 1.5}, TypeError, "seed"),
]


@pytest.mark.parametrize(("options", "kind", "name"), WRONG)
def test_numbers_out_of_bounds(options: dict[str, Any], kind: type[Exception], name: str) -> None:
    model = small()
    for call in (lambda: sample(LOGITS, **options), lambda: model.generate([1], 3, **options)):
        with pytest.raises(kind, match=rf"^(sampling: )?{name}\b") as error:
            call()
        assert isinstance(error.value, libmoe.MoeError)


def test_draws_are_numbered() -> None:
    assert isinstance(sample(LOGITS, draw=2**64 - 1), int)
    for draw in (-1, 2**64):
        with pytest.raises(libmoe.InvalidArgumentError, match="^draw = "):
            sample(LOGITS, draw=draw)


@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (), (1, 1, 5)])
def test_logits_are_those_of_one_token(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        libmoe.InvalidArgumentError, match=r"^logits: expected those of one token, shape \[V\]"
    ):
        sample(np.zeros(shape, np.float32))


def small() -> libmoe.Model:
    return libmoe.Model(8, 1, 2, vocabulary_size=7, dense_intermediate_size=8)


@pytest.mark.parametrize(
    "prompt",
    [
        [1, 2, 3],
        (1, 2, 3),
        range(1, 4),
        b"\x01\x02\x03",
        bytearray([1, 2, 3]),
        np.array([1, 2, 3], np.int64),
        np.array([1, 2, 3], np.uint8),
        np.array([[1, 2, 3]], np.int32),
        np.arange(1, 7)[::2] // 2 + 1,
    ],
)
def test_prompts(prompt: Any) -> None:
    model = small()
    expected = list(model.generate(np.array([1, 2, 3], np.int32), 4, seed=5))
    assert list(model.generate(prompt, 4, seed=5)) == expected


WRONG_PROMPTS: list[tuple[Any, type[Exception], str]] = [
    (np.zeros((2, 3), np.int32), ValueError, r"prompt: expected one sequence of tokens, got shape \(2, 3\)"),
    ([[1, 2], [3, 4]], ValueError, r"prompt: expected one sequence of tokens, got shape \(2, 2\)"),
    ([[1, 2], [3]], ValueError, "prompt: expected integers in rows of one length"),
    (np.int32(3), ValueError, r"prompt: expected one sequence of tokens, got shape \(\)"),
    ([1.7, 2.0], TypeError, "prompt: expected integers, got float64"),
    (np.array([1.0]), TypeError, "prompt: expected integers, got float64"),
    ([True, False], TypeError, "prompt: expected integers, got bool"),
    ([1, None], TypeError, "prompt: expected integers"),
    (["1"], TypeError, "prompt: expected integers, got text"),
    ("abc", TypeError, "prompt: expected integers, got a str; encode the text first"),
    ([2**32 + 5], ValueError, r"prompt\[0\] = 4294967301 is out of range"),
    ([1, 2**31], ValueError, r"prompt\[1\] = 2147483648 is out of range"),
    (np.array([1, 2**63], np.uint64), ValueError, r"prompt\[1\] = 9223372036854775808 is out of range"),
    ([1, 2**70], ValueError, r"prompt\[1\] = 1180591620717411303424 is out of range"),
    ([-(2**40)], ValueError, r"prompt\[0\] = -1099511627776 is out of range"),
    ([], ValueError, "prompt: is empty"),
    (np.zeros((1, 0), np.int32), ValueError, "prompt: is empty"),
    (None, TypeError, "prompt: expected integers"),
]


@pytest.mark.parametrize(("prompt", "kind", "text"), WRONG_PROMPTS)
def test_wrong_prompts_are_refused_at_once(prompt: Any, kind: type[Exception], text: str) -> None:
    """Before the first token is asked for."""
    with pytest.raises(kind, match=f"^{text}") as error:
        small().generate(prompt, 3)
    assert isinstance(error.value, libmoe.MoeError)


def test_how_many_tokens() -> None:
    model = small()
    assert list(model.generate([1], 0)) == []
    three: Any = np.int64(3)
    assert len(list(model.generate([1], three))) == 3
    for wrong, kind in (
        (-1, ValueError),
        (2.0, TypeError),
        (True, TypeError),
        ("3", TypeError),
        (2**64, ValueError),
    ):
        with pytest.raises(kind, match="^n_tokens"):
            model.generate([1], wrong)  # type: ignore[arg-type]


def test_a_token_beyond_the_vocabulary() -> None:
    for wrong in (7, -1):
        with pytest.raises(libmoe.InvalidArgumentError, match=str(wrong)):
            list(small().generate([1, wrong], 3))
