"""Gradients of experts by call: those that are wanted, where and how they are wanted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import libmoe
from expert_calls import KINDS, LAYOUTS, Case, Placed, assert_same, floats, stored


def backward(
    case: Case,
    gradients: libmoe.ExpertGradients | libmoe.ExpertWeights | None,
    layout: str = "fused",
    **more: Any,
) -> Any:
    weights = case.weights_in(layout)
    return libmoe.experts_backward(
        case.dy, case.x, case.indices, case.weights, weights, gradients=gradients, **case.options, **more
    )


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("n_tokens", [40, 700])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_added_and_overwritten(layout: str, n_tokens: int, dtype: str) -> None:
    """A gradient is the float32 sum from what was there, or from 0, rounded once."""
    case = Case(**KINDS["gpt-oss"], T=n_tokens, E=3)
    sums = case.by_layer()
    fresh = case.place(layout, np.nan, dict.fromkeys(case.values, dtype))
    backward(case, fresh.weights, overwrite=True)
    for name, found in fresh.floats().items():
        assert_same({name: found}, {name: floats(stored(sums[name], dtype), dtype)})
    # A power of 2 is a number of every type; to the largest sums it adds some digits.
    added = case.place(layout, 4.0, dict.fromkeys(case.values, dtype))
    backward(case, added.weights, overwrite=False)
    step = {"f32": 2.0**-20, "bf16": 2.0**-7, "f16": 2.0**-10}[dtype]
    for name, found in added.floats().items():
        expected = sums[name].astype(np.float64) + 4
        assert np.abs(found - expected).max() <= step * np.abs(expected).max(), name
        unused = sums[name][-1] == 0
        assert unused.all() and (found[-1] == 4).all(), f"{name}: of the expert without tokens"


def test_what_lies_between_is_left_alone() -> None:
    case = Case(**KINDS["swiglu"])
    for overwrite in (False, True):
        placed = case.place("gaps", 0.0)
        for view in placed.views.values():
            whole = view.base
            assert whole is not None
            whole[...] = 77
            view[...] = 0
        backward(case, placed.weights, overwrite=overwrite)
        for name, view in placed.views.items():
            whole = view.base
            assert whole is not None
            view[...] = 77
            assert (whole == 77).all(), name


def test_any_of_them_may_be_absent() -> None:
    case = Case(**KINDS["gpt-oss"])
    everything = case.by_call("apart")
    for count in range(len(case.values)):
        for names in itertools.combinations(case.values, count):
            arrays: dict[str, Any] = {name: np.full_like(case.values[name], np.nan) for name in names}
            wanted = libmoe.ExpertGradients(**arrays) if names else None
            for want_dx, want_dw in ((True, True), (False, count % 2 == 0)):
                dx, dw = backward(case, wanted, overwrite=True, dx=want_dx, d_expert_weights=want_dw)
                assert (dx is not None, dw is not None) == (want_dx, want_dw)
                found = {**arrays, **({"dx": dx} if want_dx else {}), **({"dw": dw} if want_dw else {})}
                assert_same(found, everything)


@pytest.mark.parametrize("matmul", ["native", "reference"])
def test_frozen_experts_cost_no_products(matmul: Any) -> None:
    """The profile counts what a backward multiplies: of frozen experts the products with weights alone."""
    case = Case(**KINDS["swiglu"], T=64, H=64, I=64)
    context = libmoe.Context(1, matmul)
    rows = int((case.known >= 0).sum())

    def flops(gradients: libmoe.ExpertGradients | libmoe.ExpertWeights | None, **more: Any) -> int:
        weights = case.weights_in("fused")
        saved = libmoe.experts_forward(
            case.x, case.indices, case.weights, weights, saved=True, context=context, **case.options
        ).saved
        with context.profile() as profile:
            libmoe.experts_backward(
                case.dy,
                case.x,
                case.indices,
                case.weights,
                weights,
                saved=saved,
                gradients=gradients,
                context=context,
                **case.options,
                **more,
            )
        return round(sum(each.gflops * each.seconds for each in profile.phases) * 1e9)

    matrix = 2 * rows * 64 * 64
    everything = case.place("fused", 0.0).weights
    assert flops(everything) == 6 * matrix
    assert flops(None) == 3 * matrix


@pytest.mark.parametrize("n_threads", [1, 2])
def test_lists_of_gradients(n_threads: int) -> None:
    case = Case(**KINDS["swiglu"])
    placed = case.place("listed", np.nan)
    assert isinstance(placed, Placed)
    backward(case, placed.weights, "listed and fused", overwrite=True, context=libmoe.Context(n_threads))
    assert_same(placed.floats(), case.by_layer())
