"""Gradients over weights of few bits: those of experts that have the packed values, and keep them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import libmoe
from comparison import assert_all_close
from expert_calls import KINDS, LAYOUTS, Case, assert_same
from oracle.low_bits import unpacked

# Arguments in front of the weights are given as one.
experts_forward: Any = libmoe.experts_forward
experts_backward: Any = libmoe.experts_backward
gradients_of: Any = libmoe.ExpertGradients

MATRICES = ("gate", "up", "down")
CONTEXTS = [("native", "all", 2), ("native", "avx2", 1), ("reference", "all", 2), ("auto", "base", 1)]


def with_packed_values(case: Case, form: str) -> Case:
    """Experts of float32 whose weights are what the form keeps."""
    twin = dataclasses.replace(case, dtype="f32")
    for name, values in case.values.items():
        twin.values[name] = unpacked(values, form) if name in MATRICES else values
    return twin


def frozen(
    case: Case, form: Any, context: libmoe.Context, *, layout: str = "apart", saves: bool = True
) -> dict[str, Any]:
    """All that a call with packed weights gives: the matrices themselves are not there."""
    weights = case.weights_in(layout)
    biases = {name: np.full_like(values, np.nan) for name, values in case.values.items() if "bias" in name}
    with libmoe.experts_prepare(weights, form, context=context) as prepared:
        call: Any = (case.x, case.indices, case.weights, weights.without_matrices())
        more: Any = {"prepared": prepared, "context": context, **case.options}
        y, saved, _ = experts_forward(*call, saved=saves, **more)
        gradients = gradients_of(**biases) if biases else None
        dx, dw = experts_backward(case.dy, *call, saved=saved, gradients=gradients, overwrite=True, **more)
    return {"y": y, "dx": dx, "dw": dw, **biases}


@pytest.mark.parametrize(("matmul", "instructions", "threads"), CONTEXTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["int8", "int4", "int4_g64_a8", "nvfp4_a16", "int8_row_a8"])
def test_the_bits_of_experts_with_these_values(
    form: str, kind: str, matmul: Any, instructions: Any, threads: int
) -> None:
    case = Case(**KINDS[kind], H=101, I=75)
    twin = with_packed_values(case, form)
    with libmoe.Context(threads, matmul, instructions=instructions) as context:
        expected = {
            name: value for name, value in twin.by_call(context=context).items() if name not in MATRICES
        }
        del expected["rows"]
        assert_same(frozen(case, form, context), expected)
        assert_same(frozen(case, form, context, saves=False), expected | {"y": forward(case, form, context)})


def forward(case: Case, form: Any, context: libmoe.Context) -> Any:
    """What is put out where nothing is saved: of ``_a8`` by integers."""
    weights = case.weights_in("apart")
    call = (case.x, case.indices, case.weights, weights)
    with libmoe.experts_prepare(weights, form, context=context) as prepared:
        return experts_forward(*call, prepared=prepared, context=context, **case.options).y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_on_input", [False, True])
def test_against_float64(kind: str, weight_on_input: bool) -> None:
    case = Case(**KINDS[kind], weight_on_input=weight_on_input, H=70, I=45, T=300)
    twin = with_packed_values(case, "int4")
    with libmoe.Context(2) as context:
        found = frozen(case, "int4", context)
    expected = {name: value for name, value in twin.in_float64().items() if name in found}
    assert_all_close(found, expected, 1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_they_were_packed_from(layout: str, dtype: str) -> None:
    case = Case(**KINDS["gpt-oss"], dtype=dtype)
    with libmoe.Context(2) as context:
        expected = with_packed_values(case, "int8").by_call(context=context)
        found = frozen(case, "int8_a8", context, layout=layout)
    assert_same(found, {name: expected[name] for name in found})


def test_what_a_plan_promises() -> None:
    """Of bfloat16 weights too what is saved is float32: the plan has to be of these packed weights."""
    case = Case(**KINDS["swiglu"], dtype="bf16")
    with libmoe.Context(1) as context, libmoe.experts_prepare(case.weights_in(), "int4") as prepared:
        call: Any = (case.x, case.indices, case.weights, case.weights_in().without_matrices())
        plan = libmoe.experts_plan(
            case.weights_in(), case.T, case.K, expert_indices=case.indices, prepared=prepared, context=context
        )
        more: Any = {"prepared": prepared, "context": context, **case.options}
        out = experts_forward(*call, saved=np.empty(plan.tape_bytes, np.uint8), **more)
        experts_backward(case.dy, *call, saved=out.saved, **more)
        short = np.empty(plan.tape_bytes - 1, np.uint8)
        with pytest.raises(libmoe.InvalidArgumentError, match="saved_size"):
            experts_forward(*call, saved=short, **more)


def test_what_has_no_backward_is_said() -> None:
    case = Case(**KINDS["swiglu"])
    weights = case.weights_in()
    call: Any = (case.x, case.indices, case.weights)
    with libmoe.Context(1) as context:
        more: Any = {"context": context, **case.options}
        with libmoe.experts_prepare(weights, "int4", context=context) as prepared:
            saved = experts_forward(*call, weights, prepared=prepared, saved=True, **more).saved
            wanted = libmoe.ExpertGradients(down=np.zeros_like(case.values["down"]))
            with pytest.raises(libmoe.InvalidArgumentError, match="'down'.*'int4', which stay as they are"):
                experts_backward(case.dy, *call, weights, prepared=prepared, gradients=wanted, **more)
            with pytest.raises(libmoe.BadStateError, match="written by other kernels, or of other experts"):
                experts_backward(case.dy, *call, weights, saved=saved, **more)
        with libmoe.experts_prepare(weights, "bf16", context=context) as prepared:
            with pytest.raises(libmoe.BadStateError, match="for forward alone"):
                experts_backward(case.dy, *call, weights, prepared=prepared, **more)
        with libmoe.experts_prepare(weights, "f32", context=context) as prepared:
            alone = weights.without_matrices()
            with pytest.raises(libmoe.InvalidArgumentError, match="weights have no matrices"):
                experts_backward(case.dy, *call, alone, prepared=prepared, **more)


def test_weights_that_have_changed_are_noticed() -> None:
    case = Case(**KINDS["swiglu"])
    weights = case.weights_in()
    call: Any = (case.x, case.indices, case.weights)
    changed = dataclasses.replace(case)
    for values in changed.values.values():
        values *= 2
    with libmoe.Context(1) as context, libmoe.experts_prepare(weights, "int8", context=context) as prepared:
        with pytest.raises(libmoe.BadStateError, match="not those that were packed"):
            experts_backward(
                case.dy, *call, changed.weights_in(), prepared=prepared, context=context, **case.options
            )
