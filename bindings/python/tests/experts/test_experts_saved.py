"""What a forward by call saves: plain bytes, planned to the last; and prepared weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import libmoe
from expert_calls import KINDS, Case, assert_same


def forward(case: Case, weights: libmoe.ExpertWeights, **more: Any) -> libmoe.ExpertsOutput:
    return libmoe.experts_forward(case.x, case.indices, case.weights, weights, **case.options, **more)


@pytest.mark.parametrize("matmul", ["native", "reference"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes(kind: str, dtype: str, matmul: Any) -> None:
    """The same bytes come whatever and wherever the memory was, and a copy of them is as good."""
    context = libmoe.Context(2, matmul)
    case = Case(**KINDS[kind], dtype=dtype)
    weights = case.weights_in("fused")
    plan = libmoe.experts_plan(
        weights, case.T, case.K, expert_indices=case.indices, saves=True, context=context
    )
    most = libmoe.experts_plan(weights, case.T, case.K, context=context)
    assert 0 < plan.tape_bytes <= most.tape_bytes
    found = []
    for fill, offset, size in ((0, 0, plan.tape_bytes), (255, 8, plan.tape_bytes), (90, 16, most.tape_bytes)):
        memory = np.full(size + 64, fill, np.uint8)[offset : offset + size]
        forward(case, weights, saved=memory, context=context)
        found.append(memory)
        assert (memory[plan.tape_bytes :] == 0).all()
    assert (found[0] == found[1]).all() and (found[0] == found[2][: plan.tape_bytes]).all()
    with pytest.raises(
        libmoe.InvalidArgumentError, match=f"saved_size = {plan.tape_bytes - 1}, but the call needs"
    ):
        forward(case, weights, saved=memory[: plan.tape_bytes - 1], context=context)

    def backward(saved: Any) -> Any:
        dx, dw = libmoe.experts_backward(
            case.dy, case.x, case.indices, case.weights, weights, saved=saved, context=context, **case.options
        )
        return {"dx": dx, "dw": dw}

    expected = backward(None)  # computed again
    for saved in found:
        moved = np.empty(len(saved) + 24, np.uint8)[24:]
        moved[:] = saved
        saved[:] = 1
        assert_same(backward(moved), expected)


def test_of_another_call() -> None:
    case = Case(**KINDS["swiglu"])
    weights = case.weights_in()
    saved = forward(case, weights, saved=True).saved
    call: dict[str, Any] = {"weights": weights, "expert_weights": case.weights, "saved": saved}

    def refused(match: str, **more: Any) -> None:
        options = {"dy": case.dy, "x": case.x, "expert_indices": case.indices, **call, **more}
        with pytest.raises(libmoe.BadStateError, match=match):
            libmoe.experts_backward(**options)

    others = case.indices.copy()
    others[case.known >= 0] = (case.known[case.known >= 0] + 1) % case.E
    refused("other expert_indices", expert_indices=others)
    refused("nothing that libmoe.experts_forward saved", saved=np.zeros_like(saved))
    refused("other kernels", context=libmoe.Context(1, "reference"))
    narrow = Case(**KINDS["swiglu"], I=13)
    refused("of 5 experts with hidden_size = 37 and intermediate_size = 45", weights=narrow.weights_in())


@pytest.mark.parametrize("form", ["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_prepared(kind: str, form: Any) -> None:
    """The bits of the weights, or of these in bfloat16; used by several threads, without the matrices."""
    for dtype in ("f32", "bf16", "f16"):
        if (dtype, form) == ("bf16", "f32"):
            continue
        case = Case(**KINDS[kind], dtype=dtype)
        rounded = Case(**KINDS[kind], dtype=dtype)
        if form == "bf16" and dtype != "bf16":
            rounded.dtype = "bf16"
            for name in ("gate", "up", "down"):
                if name in rounded.values:
                    rounded.values[name] = libmoe.from_bfloat16(libmoe.to_bfloat16(case.values[name]))
        expected = {"y": forward(rounded, rounded.weights_in()).y}
        weights = case.weights_in("interleaved")
        prepared = libmoe.experts_prepare(weights, form)
        assert prepared.nbytes > 0
        biases = weights.without_matrices()

        def compute(own: libmoe.ExpertWeights, case: Case = case, prepared: Any = prepared) -> Any:
            return forward(case, own, prepared=prepared).y

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(compute, (weights, biases, biases, weights)))
        for y in results:
            assert_same({"y": y}, expected)


def test_stale() -> None:
    case = Case(**KINDS["swiglu"])
    placed = case.place("transposed", case.values)
    prepared = libmoe.experts_prepare(placed.weights)
    forward(case, placed.weights, prepared=prepared)
    case.place("transposed", case.values)  # the same values elsewhere are as good
    forward(case, case.weights_in("listed"), prepared=prepared)
    used = int(case.known.max())
    placed.views["up"][used] *= 2
    with pytest.raises(
        libmoe.BadStateError,
        match=f"expert {used} are not those .* changed since libmoe.experts_prepare, or belong to",
    ):
        forward(case, placed.weights, prepared=prepared)
    unused = case.E - 1
    placed.views["up"][used] /= 2
    placed.views["down"][unused] = 5  # of an expert that this call does not use
    forward(case, placed.weights, prepared=prepared)


def test_prepared_of_other_experts() -> None:
    case = Case(**KINDS["swiglu"])
    weights = case.weights_in()
    with pytest.raises(libmoe.BadStateError, match="prepared is of 5 experts of expert_kind = 'gated'"):
        other = Case(**KINDS["swiglu"], I=13)
        forward(case, weights, prepared=libmoe.experts_prepare(other.weights_in()))
    with pytest.raises(libmoe.BadStateError, match="for forward alone"):
        forward(case, weights, prepared=libmoe.experts_prepare(weights, "bf16"), saved=True)
    with pytest.raises(libmoe.InvalidArgumentError, match="but the weights are bfloat16"):
        libmoe.experts_prepare(Case(dtype="bf16").weights_in())
    with pytest.raises(libmoe.BadStateError, match="read no packed weights"):
        libmoe.experts_prepare(weights, context=libmoe.Context(1, "reference"))
    prepared = libmoe.experts_prepare(weights)
    with pytest.raises(libmoe.BadStateError, match="do not read packed weights"):
        forward(case, weights, prepared=prepared, context=libmoe.Context(1, "openblas"))
    strangers = Case(**KINDS["swiglu"])
    strangers.values = {name: 2 * value for name, value in case.values.items()}
    with pytest.raises(libmoe.BadStateError, match="or belong to other experts; prepare these"):
        forward(case, strangers.weights_in(), prepared=prepared)
