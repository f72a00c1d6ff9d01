"""Learning rates by step, adaptive clipping. test_parity.py has PyTorch's and transformers' rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal


def test_warm_up_and_decay_to_a_fraction() -> None:
    constant, linear, cosine = (
        libmoe.Schedule(kind, 0.5, warmup_steps=5, total_steps=25, final_fraction=0.2)
        for kind in ("constant", "linear", "cosine")
    )
    for step in range(5):
        assert constant(step) == linear(step) == cosine(step) == 0.5 * (step / 5)
    for step in range(5, 40):
        way = min(1.0, (step - 5) / 20)
        assert constant(step) == 0.5
        assert linear(step) == pytest.approx(0.5 - 0.4 * way, rel=1e-15)
        assert cosine(step) == pytest.approx(0.1 + 0.2 * (1 + math.cos(math.pi * way)), rel=1e-15)


def test_the_cosine() -> None:
    """Against one of more digits; exact at its ends and in the middle."""
    n = 10_000
    schedule = libmoe.Schedule("cosine", 2.0, total_steps=n)
    actual = np.array([schedule(step) for step in range(n + 1)]) - 1
    way = (np.arange(n + 1) / n).astype(np.longdouble)
    expected = np.cos(4 * np.arctan(np.longdouble(1)) * way)
    assert np.abs(actual - expected).max() < 4e-16  # one rounding of it is of the sum with 1
    assert (actual[[0, n // 2, n]] == [1, 0, -1]).all()


def test_one_cycle_stays_where_it_ends() -> None:
    for kind in ("one_cycle", "one_cycle_linear"):
        schedule = libmoe.Schedule(kind, 1.0, total_steps=20)
        assert schedule(0) == pytest.approx(1 / 25, rel=1e-15)
        assert schedule(5) == 1.0  # 0.3 * 20 - 1
        assert schedule(19) == pytest.approx(1 / 25 / 1e4, rel=1e-12)
        assert schedule(19) == schedule(20) == schedule(10**12)


def test_an_optimiser_follows() -> None:
    schedule = libmoe.Schedule("linear", 0.5, warmup_steps=2, total_steps=4)
    parameter = libmoe.Parameter(np.zeros(1, np.float32), np.ones(1, np.float32))
    optimizer = libmoe.SGD([parameter])
    for step in range(5):
        optimizer.learning_rate = schedule(step)
        optimizer.step()
    assert parameter.data[0] == -(0 + 0.25 + 0.5 + 0.25 + 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "step"}, "kind = 'step'; choose one of 'constant'"),
        ({"kind": "linear"}, "total_steps = 0 is below 1"),
        ({"kind": "linear", "total_steps": 3, "warmup_steps": 4}, "warmup_steps = 4 exceeds total_steps = 3"),
        ({"kind": "one_cycle", "total_steps": 3, "warmup_steps": 1}, "warmup_steps = 1"),
        ({"kind": "one_cycle", "total_steps": 3, "div_factor": 0.0}, "div_factor = 0 is not"),
        ({"learning_rate": math.inf}, "learning_rate = inf"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match=message):
        libmoe.Schedule(**arguments)
    with pytest.raises(libmoe.InvalidArgumentError, match="step = -1"):
        libmoe.Schedule()(-1)


class TestAdaptiveClip:
    """Against the header's formulas, in the order in which the paper has them."""

    @staticmethod
    def zclip(norms: list[float], decay: float, threshold: float, warmup: int) -> list[float]:
        """Largest norms allowed."""
        mean, variance = float(np.mean(norms[:warmup])), float(np.var(norms[:warmup]))
        found = [math.inf] * warmup
        for norm in norms[warmup:]:
            deviation = math.sqrt(variance)
            z = (norm - mean) / deviation
            limit = mean + threshold * deviation / (z / threshold) if z > threshold else math.inf
            counted = min(norm, mean + threshold * deviation)
            mean = decay * mean + (1 - decay) * counted
            variance = decay * variance + (1 - decay) * (counted - mean) ** 2
            found.append(limit)
        return found

    def test_follows_the_formulas(self) -> None:
        rng = np.random.default_rng(3)
        # A level that falls and rises, and a spike now and then.
        level = 2 + np.cos(np.arange(400) / 60)
        norms = level * rng.lognormal(0, 0.1, 400) * np.where(rng.random(400) < 0.03, 8, 1)
        clip = libmoe.AdaptiveClip(decay=0.9, threshold=2.0, warmup_steps=20)
        actual = [clip.max_norm(norm) for norm in norms]
        expected = self.zclip(list(norms), 0.9, 2.0, 20)
        np.testing.assert_allclose(actual, expected, rtol=1e-9)
        assert 8 < np.isfinite(actual).sum() < 60

    def test_another_level_is_no_spike_for_long(self) -> None:
        rng = np.random.default_rng(1)
        clip = libmoe.AdaptiveClip()
        for norm in rng.lognormal(0, 0.1, 200):
            clip.max_norm(norm)
        limits = np.array([clip.max_norm(norm) for norm in 5 * rng.lognormal(0, 0.1, 200)])
        assert limits[0] < 1.5
        assert np.isfinite(limits).sum() < 60 and np.isinf(limits[60:]).mean() > 0.9

    def test_nothing_poisons_it(self) -> None:
        clip = libmoe.AdaptiveClip(warmup_steps=3)
        for norm in (1.0, 2.0, 1.5, 1.2):
            before = clip.state_dict()
            for wrong in (math.nan, math.inf, 1e300):
                with pytest.raises(libmoe.NotFiniteError, match="norm"):
                    clip.max_norm(wrong)
            with pytest.raises(libmoe.InvalidArgumentError, match="norm = -1"):
                clip.max_norm(-1.0)
            assert clip.state_dict() == before
            clip.max_norm(norm)
        assert clip.max_norm(1e150) < 2.5  # a spike of any size counts as one just beyond the threshold
        assert clip.mean < 2 and clip.variance < 1

    def test_equal_norms_allow_any(self) -> None:
        clip = libmoe.AdaptiveClip(warmup_steps=2)
        assert [clip.max_norm(norm) for norm in (1.0, 1.0, 1.0, 1.1)] == [math.inf] * 4

    def test_in_a_step(self) -> None:
        parameters = [[libmoe.Parameter(normal(40, 5, seed=i)) for i in range(2)] for _ in range(2)]
        one, other = (libmoe.AdamW(mine, learning_rate=0.1) for mine in parameters)
        clips = libmoe.AdaptiveClip(warmup_steps=5), libmoe.AdaptiveClip(warmup_steps=5)
        spikes = 0
        for step in range(12):
            for i, (a, b) in enumerate(zip(*parameters)):  # noqa: B905
                a.grad[...] = b.grad[...] = normal(40, 5, seed=10 * step + i) * (50 if step == 8 else 1)
            norm = one.step(max_norm=clips[0])
            limit = clips[1].max_norm(libmoe.clip_grad_norm(parameters[1], math.inf))
            assert other.step(max_norm=limit) == norm
            spikes += limit < norm
            for a, b in zip(*parameters):  # noqa: B905
                np.testing.assert_array_equal(a.data, b.data)
        assert spikes >= 1
        assert clips[0].state_dict() == clips[1].state_dict()

        before = clips[0].state_dict()
        parameters[0][1].grad[3, 2] = math.nan
        with pytest.raises(libmoe.NotFiniteError):
            one.step(max_norm=clips[0])
        assert clips[0].state_dict() == before

    def test_goes_on_from_its_state(self) -> None:
        norms = np.random.default_rng(0).lognormal(0, 0.5, 60)
        whole, first, second = (libmoe.AdaptiveClip(0.9, 1.5, 10) for _ in range(3))
        expected = [whole.max_norm(norm) for norm in norms]
        actual = [first.max_norm(norm) for norm in norms[:30]]
        second.load_state_dict(first.state_dict())
        assert actual + [second.max_norm(norm) for norm in norms[30:]] == expected
        with pytest.raises(ValueError, match="missing names .'mean'., unknown names"):
            second.load_state_dict({k: v for k, v in first.state_dict().items() if k != "mean"})
        before = second.state_dict()
        with pytest.raises(libmoe.InvalidArgumentError, match="variance = -1"):
            second.load_state_dict({**before, "variance": -1.0})
        assert second.state_dict() == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"decay": 1.0}, "decay = 1"),
            ({"threshold": 1.0}, "threshold = 1"),
            ({"warmup_steps": 0}, "warmup_steps = 0 is below 1"),
        ],
    )
    def test_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(libmoe.InvalidArgumentError, match=message):
            libmoe.AdaptiveClip(**arguments)
