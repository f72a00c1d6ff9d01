"""Sums of reports over many calls."""

from __future__ import annotations

import dataclasses
import gc
import re

import numpy as np
import pytest

import libmoe
from arrays import normal
from comparison import assert_close

E = 4


def summary(seed: int, n_valid: int) -> libmoe.Summary:
    """Return numbers as a call might give them."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 50, E)
    return libmoe.Summary(
        balance_loss=float(np.float32(random.random())),
        z_loss=float(np.float32(random.random())),
        aux_loss=float(np.float32(random.random())),
        entropy=float(np.float32(random.random())),
        n_dropped=int(random.integers(0, 9)),
        n_valid=n_valid,
        max_over_mean=0.0,
        variation=0.0,
        dead_share=0.0,
        tokens_per_expert=counts,
        mean_probability=random.random(E).astype(np.float32),
        dropped_per_expert=random.integers(0, 9, E),
    )


def assert_is_sum(actual: libmoe.Summary, calls: list[libmoe.Summary]) -> None:
    """Compare with the sums as numpy computes them, in float64."""
    tokens = [call.n_valid for call in calls]
    for name in ("balance_loss", "z_loss", "aux_loss", "entropy", "mean_probability"):
        values = np.array([getattr(call, name) for call in calls], np.float64)
        assert_close(name, getattr(actual, name), np.average(values, axis=0, weights=tokens))
    for name in ("n_valid", "n_dropped", "tokens_per_expert", "dropped_per_expert"):
        np.testing.assert_array_equal(getattr(actual, name), sum(getattr(call, name) for call in calls), name)
    counts = np.sum([call.tokens_per_expert for call in calls], axis=0)
    assert_close("max_over_mean", actual.max_over_mean, counts.max() / counts.mean())
    assert_close("variation", actual.variation, counts.std() / counts.mean())
    assert actual.dead_share == (counts == 0).mean()


def test_sums_and_means() -> None:
    statistics = libmoe.Statistics(E)
    calls = [summary(seed, n_valid) for seed, n_valid in enumerate((100, 7, 31))]
    for number, call in enumerate(calls):
        statistics.add(call)
        assert_is_sum(statistics.read(), calls[: number + 1])


def test_reports_of_a_layer() -> None:
    layer, statistics = libmoe.Layer(6, 8, E, 2), libmoe.Statistics(E)
    reports = [layer.forward(normal(tokens, 6, seed=tokens)).report for tokens in (5, 11, 2)]
    for report in reports:
        statistics.add(report)
    assert_is_sum(statistics.read(), list(reports))
    assert statistics.read().n_valid == 18


def test_dead_experts() -> None:
    statistics = libmoe.Statistics(E)
    statistics.add(dataclasses.replace(summary(0, 10), tokens_per_expert=np.array([9, 0, 3, 0])))
    assert statistics.read().dead_share == 0.5
    assert statistics.read().max_over_mean == 3


def test_statistics_add_up_themselves() -> None:
    """What two have read is one call to a third."""
    calls = [summary(seed, seed + 1) for seed in range(5)]
    parts = [libmoe.Statistics(E), libmoe.Statistics(E)]
    for number, call in enumerate(calls):
        parts[number % 2].add(call)
    whole = libmoe.Statistics(E)
    for part in parts:
        whole.add(part.read())
    assert_is_sum(whole.read(), calls)


def test_reset_forgets() -> None:
    statistics, empty = libmoe.Statistics(E), libmoe.Statistics(E).read()
    statistics.add(summary(0, 10))
    statistics.reset()
    assert_is_empty(empty)
    assert_is_empty(statistics.read())
    statistics.add(summary(1, 10))
    assert_is_sum(statistics.read(), [summary(1, 10)])


def assert_is_empty(actual: libmoe.Summary) -> None:
    for name, value in dataclasses.asdict(actual).items():
        if name != "dead_share":
            assert not np.any(value), name


def test_what_was_read_stays_as_it_is() -> None:
    statistics = libmoe.Statistics(E)
    statistics.add(summary(0, 10))
    before = statistics.read()
    statistics.add(summary(1, 10))
    assert_is_sum(before, [summary(0, 10)])


def test_wrong_reports() -> None:
    statistics = libmoe.Statistics(E)
    assert statistics.n_experts == E
    with pytest.raises(TypeError, match=r"^report: expected a libmoe.Report, got Output; use output.report$"):
        statistics.add(libmoe.Layer(6, 8, E, 2).forward(normal(3, 6)))  # type: ignore[arg-type]
    text = "report: expected 4 experts, got 5; use libmoe.Statistics(layer.n_experts)"
    with pytest.raises(ValueError, match=re.escape(text)):
        statistics.add(libmoe.Layer(6, 8, 5, 2).forward(normal(3, 6)).report)
    with pytest.raises(libmoe.InvalidArgumentError, match="tokens_per_expert"):
        statistics.add(dataclasses.replace(summary(0, 10), tokens_per_expert=np.array([1, 2, -3, 4])))
    assert_is_empty(statistics.read())


def test_wrong_sizes() -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="n_experts = 0"):
        libmoe.Statistics(0)
    with pytest.raises(TypeError, match="^n_experts: expected an int, got float"):
        libmoe.Statistics(4.0)  # type: ignore[arg-type]


def test_statistics_outlive_their_context_and_close() -> None:
    context = libmoe.Context(1)
    statistics = libmoe.Statistics(E, context=context)
    context.close()
    del context
    gc.collect()
    statistics.add(summary(0, 10))
    assert_is_sum(statistics.read(), [summary(0, 10)])
    statistics.close()
    for call in (statistics.read, statistics.reset, lambda: statistics.add(summary(0, 10))):
        with pytest.raises(libmoe.BadStateError, match="this Statistics is closed"):
            call()
