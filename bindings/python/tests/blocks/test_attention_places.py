"""Windows, chunks, sinks and heads that share keys, in any combination; what is left out changes no bit."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal
from attention_calls import arrays, everything, options
from comparison import assert_close, assert_same_bits
from libmoe import blocks
from oracle.attention import Attention


@pytest.mark.parametrize("seed", range(40))
def test_against_float64(seed: int) -> None:
    random = np.random.default_rng(seed)

    def one_of(*choices: int) -> int:
        return choices[int(random.integers(0, len(choices)))]

    def below(end: int) -> int:
        return int(random.integers(0, end))

    few = seed % 2 == 0  # queries: heads that share keys are then computed together
    kv_heads, group = 1 + below(3), one_of(1, 2, 3, 8, 14, 40) if few else one_of(1, 2, 3)
    b, s = 1 + below(3), 1 + below(33 if few else 300)
    u = max(1, s // 2) if below(10) == 0 else s + one_of(0, 0, below(300))
    shape = (b, s, u, group * kv_heads, kv_heads, 1 + below(70), 1 + below(70))
    given: dict[str, Any] = {"causal": True}
    if below(10) < 7:
        given["window"] = one_of(1, 2, 31, 128, 2**31 - 1, 1 + below(u + 1))
    if below(10) < 5:
        given["chunk"] = one_of(1, 2, 64, 2**31 - 1, 1 + below(u + 1))
    if below(10) < 6:
        given["sinks"] = random.normal(0, 3, group * kv_heads).astype(np.float32)
    if below(10) < 5:
        given["valid_mask"] = random.random((b, u)) < one_of(3, 9) / 10
        given["valid_mask"][:, : below(u + 1)] &= below(2) == 0
    if below(10) < 3:
        given["mask"] = random.random((s, u)) < 0.8
    if below(10) < 3:
        given["added_mask"] = random.standard_normal((s, u)).astype(np.float32)
    if below(10) < 2:
        given |= {"dropout": 0.3, "seed": seed, "step": 7}
    query, key, value, doutput = arrays(shape)
    found = everything((query, key, value, doutput), None, given)
    expected = Attention(query, key, value, given)
    gradients = dict(zip(("dquery", "dkey", "dvalue"), expected.backward(doutput)))  # noqa: B905
    none = np.isinf(expected.log_sums)
    np.testing.assert_array_equal(np.isinf(found["log_sums"]), none)
    assert_close("log_sums", found["log_sums"][~none], expected.log_sums[~none])
    assert_close("output", found["output"], expected.output)
    for name, gradient in gradients.items():
        # With a key alone they are 0: differences of equal numbers.
        close = 3e-6 * max(1, np.abs(gradient).max()) + 2e-7 * expected.terms
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=close, err_msg=name)
    if "sinks" in given:
        np.testing.assert_allclose(
            found["dsinks"], expected.d_sinks, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected.d_sinks).max())
        )


def test_gradients_of_sinks_are_added() -> None:
    shape = (2, 40, 40, 4, 2, 8)
    given = options("near", shape)
    query, key, value, doutput = arrays(shape)
    output, sums = blocks.attention(query, key, value, **given)
    dsinks = np.array([1, 2, 3, 4], np.float32)
    blocks.attention_backward(query, key, value, output, sums, doutput, dsinks=dsinks, **given)
    alone = everything((query, key, value, doutput), None, given)["dsinks"]
    assert_close("dsinks", dsinks, np.array([1, 2, 3, 4], np.float32) + alone)
    pieces = np.array([1, 2, 3, 4], np.float32)
    for b in range(2):
        own = {name: v[b : b + 1] if name == "valid_mask" else v for name, v in given.items()}
        q, k, v, d = (np.ascontiguousarray(array[b : b + 1]) for array in (query, key, value, doutput))
        part, part_sums = blocks.attention(q, k, v, **own)
        blocks.attention_backward(q, k, v, part, part_sums, d, dsinks=pieces, **own)
    assert_same_bits(pieces, dsinks, "of one sequence after the other")


def test_a_sink_of_minus_infinity_is_none() -> None:
    query, key, value, _ = arrays((1, 50, 200, 4, 2, 24))
    expected, sums = blocks.attention(query, key, value, causal=True)
    found, found_sums = blocks.attention(
        query, key, value, causal=True, sinks=np.full(4, -np.inf, np.float32)
    )
    assert_same_bits(found, expected, "output")
    assert_same_bits(found_sums, sums, "log_sums")


@pytest.mark.parametrize("sinks", [np.nan, np.inf])
def test_sinks_that_are_not_finite(sinks: float) -> None:
    query, key, value, _ = arrays((1, 5, 5, 3, 3, 4))
    with pytest.raises(libmoe.NotFiniteError, match="the sink of head 1 is not finite"):
        blocks.attention(query, key, value, sinks=np.array([0, sinks, 0], np.float32))
    output, sums = blocks.attention(query, key, value)
    with pytest.raises(libmoe.InvalidArgumentError, match="dsinks is given, but sinks is None"):
        blocks.attention_backward(query, key, value, output, sums, query, dsinks=np.zeros(3, np.float32))
    with pytest.raises(libmoe.InvalidArgumentError, match=r"sinks: expected shape \(3,\)"):
        blocks.attention(query, key, value, sinks=np.zeros(4, np.float32))
    with pytest.raises(libmoe.InvalidArgumentError, match="window = 2 needs causal = True"):
        blocks.attention(query, key, value, window=2)


NEAR: list[dict[str, Any]] = [
    {},
    {"window": 1},
    {"window": 50},
    {"window": 200, "chunk": 150},
    {"chunk": 64, "sinks": normal(6, seed=9)},
    {"window": 129, "sinks": normal(6, seed=9)},
]


@pytest.mark.parametrize("given", NEAR)
def test_a_prefix_sees_what_the_whole_saw(given: dict[str, Any]) -> None:
    # Some tokens at a time over what came before, as in generation: the bits of the whole.
    query, key, value, _ = arrays((1, 420, 420, 6, 2, 24, 40))
    whole, sums = blocks.attention(query, key, value, causal=True, **given)
    for end, count in (
        (1, 1),
        (128, 1),
        (129, 2),
        (300, 1),
        (320, 5),
        (321, 11),
        (419, 31),
        (420, 33),
        (420, 200),
    ):
        rows = np.s_[:, end - count : end]
        parts = query[rows].copy(), key[:, :end].copy(), value[:, :end].copy()
        some, some_sums = blocks.attention(*parts, causal=True, **given)
        assert_same_bits(some, whole[rows], f"output {end} {count}")
        assert_same_bits(some_sums, sums[:, :, end - count : end], f"log_sums {end} {count}")


@pytest.mark.parametrize("given", NEAR)
@pytest.mark.parametrize("length", [3, 40, 200])
def test_padding_in_front_changes_no_bit(given: dict[str, Any], length: int) -> None:
    alone = arrays((1, length, length, 6, 2, 24, 40))
    expected = everything(alone, None, {"causal": True, **given})
    for front, behind in ((1, 0), (130, 0), (37, 5)):
        padding = ((0, 0), (front, behind), (0, 0), (0, 0))
        query, key, value, doutput = (np.pad(array, padding) for array in alone)
        seen = np.zeros((1, front + length + behind), bool)
        seen[:, front : front + length] = True
        found = everything((query, key, value, doutput), None, {"causal": True, "valid_mask": seen, **given})
        for name in ("output", "dquery", "dkey", "dvalue"):
            assert_same_bits(found[name][:, front : front + length], expected[name], f"{name} {front}")
        assert_same_bits(found["log_sums"][:, :, front : front + length], expected["log_sums"], "log_sums")
        if "sinks" in given:
            assert_same_bits(found["dsinks"], expected["dsinks"], "dsinks")


@pytest.mark.parametrize("group", [2, 3, 8, 13, 40, 70])
@pytest.mark.parametrize("queries", [1, 3, 9, 31])
def test_heads_that_share_keys_have_the_bits_of_heads_that_do_not(group: int, queries: int) -> None:
    b, u, kv_heads = 2, 150, 2
    shape = (b, queries, u, group * kv_heads, kv_heads, 20, 36)
    query, key, value, _ = arrays(shape)
    given = options("places", shape)
    expected = np.empty((b, queries, group * kv_heads, 36), np.float32)
    for head in range(group * kv_heads):
        one, of = np.s_[:, :, head : head + 1], np.s_[:, :, head // group : head // group + 1]
        own = {**given, "sinks": given["sinks"][head : head + 1].copy()}
        parts = query[one].copy(), key[of].copy(), value[of].copy()
        expected[one], _ = blocks.attention(*parts, **own)
    for threads in (1, 2, 9):
        with libmoe.Context(n_threads=threads) as context:
            found, _ = blocks.attention(query, key, value, context=context, **given)
        assert_same_bits(found, expected, f"{threads} threads")


@pytest.mark.parametrize("queries", [1, 3, 50, 200])
@pytest.mark.parametrize("given", [{"window": 20}, {"chunk": 30}])
def test_what_lies_before_a_window_reaches_nothing(given: dict[str, Any], queries: int) -> None:
    u = 200
    usual = arrays((1, queries, u, 2, 1, 16))
    first = u - queries  # key of the first query
    start = first - 19 if "window" in given else first // 30 * 30
    key, value = usual[1].copy(), usual[2].copy()
    key[:, : max(0, start)] = value[:, : max(0, start)] = np.nan
    found = everything((usual[0], key, value, usual[3]), None, {"causal": True, **given})
    expected = everything(usual, None, {"causal": True, **given})
    for name, array in expected.items():
        assert_same_bits(found[name], array, name)


def test_a_value_that_only_some_windows_hold() -> None:
    # Query 60 on does not see key 40, whose value is no number; some before do.
    query, key, value, doutput = arrays((1, 100, 100, 2, 2, 8))
    other = value.copy()
    other[:, 40] = np.nan
    given = {"causal": True, "window": 20}
    expected = everything((query, key, value, doutput), None, given)
    found = everything((query, key, other, doutput), None, given)
    hidden = np.r_[0:40, 60:100]
    assert_same_bits(found["output"][:, hidden], expected["output"][:, hidden], "output")
    assert_same_bits(found["dquery"][:, hidden], expected["dquery"][:, hidden], "dquery")
    assert np.isnan(found["output"][:, 40:60]).all()


def fastest(run: Any) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def test_a_window_costs_what_it_holds() -> None:
    query, key, value, doutput = arrays((1, 3072, 3072, 2, 1, 32))

    def run(**given: Any) -> float:
        def call() -> None:
            output, sums = blocks.attention(query, key, value, causal=True, context=context, **given)
            blocks.attention_backward(
                query, key, value, output, sums, doutput, causal=True, context=context, **given
            )

        return fastest(call)

    with libmoe.Context(n_threads=1) as context:
        assert run(window=64) < run() / 3
        assert run(chunk=64) < run() / 3
