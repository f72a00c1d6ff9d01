"""Embeddings, the fused cross-entropy and sampling against float64, and the same bits in every way."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal
from block_checks import Arrays, check, rounded
from comparison import assert_close
from libmoe import blocks
from oracle import philox

Double = NDArray[np.float64]


def integers(high: int, *shape: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, high, shape, np.int32)


# ---- embeddings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize(("shape", "width"), [((3, 0), 4), ((1, 1), 1), ((3, 100), 67), ((1, 300), 256)])
def test_embedding(shape: tuple[int, int], width: int, with_positions: bool) -> None:
    tokens, table, dy = integers(11, *shape), normal(11, width), normal(*shape, width, seed=1)
    positions = normal(shape[1] + 5, width, seed=2) if with_positions else None
    y = table[tokens].astype(np.float64)
    dtable, dpositions = np.ones(table.shape), np.full((shape[1] + 5, width), 2.0)
    np.add.at(dtable, tokens, dy.astype(np.float64))
    dpositions[5:] += dy.sum(axis=0, dtype=np.float64)
    expected: Arrays = {"y": y, "dtable": dtable}
    if positions is not None:
        expected.update(y=y + positions[5:], dpositions=dpositions)

    def compute(context: libmoe.Context) -> Arrays:
        into: Arrays = {"dtable": np.ones(table.shape, np.float32)}
        if positions is not None:
            into["dpositions"] = np.full(positions.shape, 2, np.float32)
        y = blocks.embedding(tokens, table, positions, first_position=5, context=context)
        blocks.embedding_backward(tokens, dy, first_position=5, context=context, **into)
        return {"y": y, **into}

    check(compute, expected)


def test_positions_alone_have_a_gradient() -> None:
    tokens, dy = integers(4, 2, 3), normal(2, 3, 5)
    dpositions = np.zeros((3, 5), np.float32)
    blocks.embedding_backward(tokens, dy, dpositions=dpositions, n_rows=4)
    assert_close("dpositions", dpositions, dy.sum(axis=0, dtype=np.float64))


def test_bad_tokens() -> None:
    table = normal(4, 3)
    for token in (-1, 4):
        with pytest.raises(
            libmoe.InvalidArgumentError, match=rf"tokens\[2\] = {token} is not one of n_rows = 4"
        ):
            blocks.embedding(np.array([[0, 3, token]], np.int32), table)
    tokens = integers(4, 2, 3)
    with pytest.raises(libmoe.InvalidArgumentError, match="token 2 is at position 4, .* n_positions = 4"):
        blocks.embedding(tokens, table, normal(4, 3), first_position=2)
    with pytest.raises(libmoe.InvalidArgumentError, match="first_position = -1 is below 0"):
        blocks.embedding(tokens, table, normal(4, 3), first_position=-1)


# ---- cross-entropy ---------------------------------------------------------------------------------------


class Loss:
    """The whole matrix of logits in float64, rounded where bfloat16 is."""

    def __init__(self, x: Any, matrix: Any, targets: Any, smoothing: float, dtype: str) -> None:
        self.a, self.w = rounded(x, dtype), rounded(matrix, dtype)
        self.counts = targets != -100
        self.n = int(self.counts.sum())
        z = self.a @ self.w.T
        top = z.max(axis=1, keepdims=True)
        lse = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
        wanted = np.zeros_like(z)
        wanted[self.counts, targets[self.counts]] = 1
        wanted = (1 - smoothing) * wanted + smoothing / z.shape[1]
        self.token_losses = np.where(self.counts, (wanted * (lse - z)).sum(axis=1), 0)
        self.loss = self.token_losses.sum() / max(self.n, 1)
        self.dz = (np.exp(z - lse) - wanted) * self.counts[:, None] / max(self.n, 1)

    def gradients(self, d_loss: float, dtype: str) -> tuple[Double, Double]:
        dz = rounded((self.dz * d_loss).astype(np.float32), dtype)
        return dz @ self.w, dz.T @ self.a


# T, H, V; the last has more tokens than one chunk
SHAPES = [(0, 5, 7), (1, 1, 1), (9, 5, 2), (300, 33, 65), (1100, 21, 300)]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("tokens", "width", "vocabulary"), SHAPES)
def test_cross_entropy(
    tokens: int, width: int, vocabulary: int, ignored: bool, smoothing: float, dtype: str
) -> None:
    x, matrix = normal(tokens, width), normal(vocabulary, width, seed=1)
    targets = integers(vocabulary, tokens)
    if ignored:
        targets[np.random.default_rng(2).random(tokens) < 0.4] = -100
    weight: Any = matrix if dtype == "f32" else libmoe.to_bfloat16(matrix)
    exact = Loss(x, matrix, targets, smoothing, dtype)
    dx, dweight = exact.gradients(3.0, dtype)
    expected = {
        "loss": exact.loss,
        "token_losses": exact.token_losses,
        "dx": dx,
        "dweight": 1 + dweight,
    }

    def compute(context: libmoe.Context) -> Arrays:
        into: Arrays = {
            "dx": np.full(x.shape, np.nan, np.float32),
            "dweight": np.ones(matrix.shape, np.float32),
            "token_losses": np.full(tokens, np.nan, np.float32),
        }
        loss, counted = blocks.cross_entropy(
            x, weight, targets, label_smoothing=smoothing, d_loss=3.0, context=context, **into
        )
        assert counted == exact.n
        return {"loss": loss, **into}

    # A logit's gradient near the border between two bfloat16 may be rounded to the other one.
    check(compute, expected, 1e-5 if dtype == "f32" else 1e-3, pairs=dtype == "bf16")


def test_gradient_by_finite_differences() -> None:
    x, weight, targets = normal(13, 7), normal(30, 7, seed=1), integers(30, 13)
    dx, dweight = np.empty_like(x), np.zeros_like(weight)
    blocks.cross_entropy(x, weight, targets, label_smoothing=0.2, dx=dx, dweight=dweight)
    along, across = normal(13, 7, seed=2), normal(30, 7, seed=3)

    def loss(step: float) -> float:
        moved = Loss(
            x + step * along.astype(float), weight + step * across.astype(float), targets, 0.2, "f32"
        )
        return float(moved.loss)

    slope = (dx * along).sum(dtype=np.float64) + (dweight * across).sum(dtype=np.float64)
    assert_close("slope", slope, (loss(1e-5) - loss(-1e-5)) / 2e-5)


@pytest.mark.parametrize("cap", [0.0, 0.7, 30.0])
@pytest.mark.parametrize("scale", [1.0, -0.3])
@pytest.mark.parametrize("has_bias", [False, True])
def test_logits_biased_scaled_and_capped(has_bias: bool, scale: float, cap: float) -> None:
    x, matrix, targets = normal(300, 33), normal(65, 33, seed=1), integers(65, 300)
    bias = normal(65, seed=2) if has_bias else None
    a, w = x.astype(float), matrix.astype(float)
    z = scale * (a @ w.T + (0 if bias is None else bias.astype(float)))
    slope = np.full_like(z, scale)
    if cap:
        z, slope = cap * np.tanh(z / cap), scale / np.cosh(z / cap) ** 2
    lse = np.log(np.exp(z).sum(axis=1))
    dz = (np.exp(z - lse[:, None]) - np.eye(65)[targets]) * slope / 300
    expected = {"loss": (lse - z[np.arange(300), targets]).mean(), "dx": dz @ w, "dweight": 1 + dz.T @ a}
    if has_bias:
        expected["dbias"] = 1 + dz.sum(axis=0)

    def compute(context: libmoe.Context) -> Arrays:
        into: Arrays = {"dx": np.empty_like(x), "dweight": np.ones_like(matrix)}
        if has_bias:
            into["dbias"] = np.ones(65, np.float32)
        loss, _ = blocks.cross_entropy(
            x, matrix, targets, bias=bias, logit_scale=scale, logit_softcap=cap, context=context, **into
        )
        return {"loss": loss, **into}

    check(compute, expected, 1e-5)


def test_logit_options_are_checked() -> None:
    x, matrix, targets = normal(3, 5), normal(7, 5, seed=1), integers(7, 3)
    for options, message in (
        ({"logit_scale": 0.0}, "logit_scale = 0: all logits would be alike"),
        ({"logit_scale": 1e300}, "logit_scale = 1e300 is not finite in float32"),
        ({"logit_softcap": -1.0}, "logit_softcap = -1"),
        ({"bias": normal(6)}, "bias: expected shape"),
        ({"dbias": np.zeros(7, np.float32)}, "dbias is not None, but bias is"),
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match=message):
            blocks.cross_entropy(x, matrix, targets, **options)


def test_the_loss_of_a_sure_prediction() -> None:
    """A small loss beside large logits keeps its digits."""
    x, weight = np.ones((1, 1), np.float32), np.array([[1000], [990]], np.float32)
    loss, _ = blocks.cross_entropy(x, weight, np.zeros(1, np.int32))
    assert abs(loss / np.log1p(np.exp(-10)) - 1) < 2e-3  # 1 + e^-10 has 2^-23 behind the point


def test_all_tokens_ignored() -> None:
    x, weight = normal(5, 3), normal(7, 3)
    dx, dweight = np.ones_like(x), np.ones_like(weight)
    found = blocks.cross_entropy(x, weight, np.full(5, -1, np.int32), ignore_index=-1, dx=dx, dweight=dweight)
    assert found == (0.0, 0)
    assert not dx.any()
    assert (dweight == 1).all()


def test_minus_infinity_is_never() -> None:
    """A logit of minus infinity is legal but for the target's."""
    x, weight = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32), np.array([[1, 0], [0, 0], [0, 0]], np.float32)
    weight[2, 0] = -np.inf
    dx = np.empty_like(x)
    loss, _ = blocks.cross_entropy(x, weight, np.array([0, 1], np.int32))
    assert_close("loss", loss, np.log1p(np.exp(-1.0)) + 0.5)
    with pytest.raises(libmoe.NotFiniteError, match="token 1 "):
        blocks.cross_entropy(x, weight, np.array([0, 2], np.int32), dx=dx)


def test_what_is_not_finite_is_named() -> None:
    x, weight = normal(600, 3), normal(7, 3)
    x[517] = np.nan
    with pytest.raises(libmoe.NotFiniteError, match="token 517 "):
        blocks.cross_entropy(x, weight, integers(7, 600))


def test_bad_losses() -> None:
    x, weight, targets = normal(3, 2), normal(5, 2), np.zeros(3, np.int32)
    for target in (-1, 5):
        with pytest.raises(
            libmoe.InvalidArgumentError, match=rf"targets\[1\] = {target} .* vocabulary_size = 5"
        ):
            blocks.cross_entropy(x, weight, np.array([0, target, 0], np.int32))
    for smoothing in (-0.1, 1.1, float("nan")):
        with pytest.raises(libmoe.InvalidArgumentError, match="label_smoothing = "):
            blocks.cross_entropy(x, weight, targets, label_smoothing=smoothing)
    for d_loss, text in ((float("nan"), "nan"), (1e300, "1e300")):  # the second leaves float32's range
        with pytest.raises(libmoe.InvalidArgumentError, match=f"d_loss = {text} is not finite"):
            blocks.cross_entropy(x, weight, targets, d_loss=d_loss)
    with pytest.raises(libmoe.InvalidArgumentError, match="dx overlaps x"):
        blocks.cross_entropy(x, weight, targets, dx=x)


# ---- sampling --------------------------------------------------------------------------------------------


def probabilities(z: Any, temperature: float) -> Double:
    scaled = z.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    return np.asarray(p / p.sum())


def left(z: Any, temperature: float, top_k: int, top_p: float) -> Double:
    """The distribution by definition: sorted, cut, cut again."""
    p = probabilities(z, temperature)
    order = np.argsort(-z, kind="stable")[: top_k or None]
    share = np.cumsum(p[order]) / p[order].sum()
    order = order[: int(np.searchsorted(share, top_p - 1e-9)) + 1]
    kept = np.zeros_like(p)
    kept[order] = p[order]
    return np.asarray(kept / kept.sum())


def expected_token(z: Any, seed: int, draw: int, temperature: float, top_k: int, top_p: float) -> int:
    words = philox.blocks(seed, 24, 0, np.array([draw], np.uint64))[0]
    u = ((int(words[1]) << 32 | int(words[0])) >> 11) / 2**53
    p = left(z, temperature, top_k, top_p)
    order = np.argsort(-z, kind="stable") if (top_k and top_k < len(z)) or top_p < 1 else np.arange(len(z))
    return int(order[np.searchsorted(np.cumsum(p[order]), u, side="right")])


CUTS = [(0, 1.0), (1, 1.0), (5, 1.0), (0, 0.6), (8, 0.7), (50, 1.0), (0, 1e-9)]


@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_every_draw_is_the_definitions(temperature: float, top_k: int, top_p: float) -> None:
    z = normal(50) * 2
    for draw in [*range(40), 2**63, 2**64 - 1]:
        found = blocks.sample(z, temperature=temperature, top_k=top_k, top_p=top_p, seed=9, draw=draw)
        assert found == expected_token(z, 9, draw, temperature, top_k, top_p), draw


@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
def test_frequencies(top_k: int, top_p: float) -> None:
    """Chi-square over all draws, and nothing outside the set."""
    z, n = normal(12, seed=4) * 1.5, 4000
    counts = Counter(blocks.sample(z, top_k=top_k, top_p=top_p, seed=3, draw=draw) for draw in range(n))
    p = left(z, 1.0, top_k, top_p)
    assert all(p[token] > 0 for token in counts)
    kept = np.flatnonzero(p)
    chi = sum((counts[int(i)] - n * p[i]) ** 2 / (n * p[i]) for i in kept)
    assert chi < len(kept) + 5 * np.sqrt(2 * len(kept))


def test_greedy_takes_the_first_of_the_largest() -> None:
    z = np.array([1, 3, 2, 3], np.float32)
    assert blocks.sample(z, temperature=0) == 1
    assert {blocks.sample(z, temperature=1e-300, draw=draw) for draw in range(40)} == {1, 3}
    assert {blocks.sample(z, top_k=1, draw=draw) for draw in range(40)} == {1}


def test_minus_infinity_is_never_drawn() -> None:
    z = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    assert {blocks.sample(z, draw=draw) for draw in range(40)} == {1, 3}
    assert {blocks.sample(z, top_k=3, draw=draw) for draw in range(40)} == {1, 3}


def test_sampling_gives_the_same_token_everywhere() -> None:
    z = normal(1000) * 3
    found = set()
    ways: list[Any] = ["avx2", "avx512", "all"]
    for way in ways:
        with libmoe.Context(instructions=way) as context:
            drawn = [blocks.sample(z, top_p=0.9, draw=draw, context=context) for draw in range(50)]
            found.add(tuple(drawn))
    assert len(found) == 1


def test_bad_sampling() -> None:
    z = normal(5)
    bad_values: list[tuple[str, Any]] = [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1)]
    for name, value in bad_values:
        with pytest.raises(libmoe.InvalidArgumentError, match=f"sampling: {name} = "):
            blocks.sample(z, **{name: value})
    for top_p in (-0.1, 1.1, float("nan")):
        with pytest.raises(libmoe.InvalidArgumentError, match="sampling: top_p = "):
            blocks.sample(z, top_p=top_p)
    for bad in (np.nan, np.inf):
        with pytest.raises(libmoe.NotFiniteError, match=r"logits\[2\] = "):
            blocks.sample(np.array([0, 1, bad], np.float32))
    with pytest.raises(libmoe.NotFiniteError, match="none is above minus infinity"):
        blocks.sample(np.full(3, -np.inf, np.float32))
    with pytest.raises(libmoe.InvalidArgumentError, match="vocabulary_size = 0 is below 1"):
        blocks.sample(np.empty(0, np.float32))
