"""libmoe.torch.experts over packed weights: the same values, frozen in few bits, and no stale ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import libmoe
import libmoe.torch
from cases import E, I, cases, fused, tokens
from experts64 import WEIGHTS, leaf, mapped, wanted
from libmoe.torch._ops import experts as operator
from oracle.low_bits import unpacked

CASES = cases()
PACKED = ("gate_up", "down", "transposed", "interleaved", "expert_kind")


@pytest.mark.parametrize("case", ["fused", "gpt-oss", "nemotron", "lists"])
def test_prepared(case: str) -> None:
    torch.manual_seed(2)
    given = CASES[case]
    packed = libmoe.torch.prepare(**{k: v for k, v in given.items() if k in PACKED})
    x, ids, weights = tokens()
    y = libmoe.torch.experts(x, ids, weights, **given)
    assert torch.equal(libmoe.torch.experts(x, ids, weights, **given, prepared=packed), y)
    alone = {**given, "gate_up": None, "down": None}
    assert torch.equal(libmoe.torch.experts(x, ids, weights, **alone, prepared=packed), y)
    assert repr(packed) == "Prepared(5 experts, 'f32')"
    half = libmoe.torch.prepare(form="bf16", **{k: v for k, v in given.items() if k in PACKED})
    rounded = {
        k: mapped(lambda t: t.bfloat16(), v) if k in ("gate_up", "down") else v for k, v in given.items()
    }
    z = libmoe.torch.experts(x, ids, weights, **alone, prepared=half)
    assert torch.equal(z, libmoe.torch.experts(x, ids, weights, **rounded))


@pytest.mark.parametrize("form", ["int8", "int4_g64_a8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["fused", "gpt-oss"])
def test_frozen_weights_of_few_bits(case: str, dtype: torch.dtype, form: str) -> None:
    """Autograd goes through them as through float32 tensors with their values."""
    given = CASES[case] | {k: CASES[case][k].to(dtype) for k in ("gate_up", "down")}
    packed = libmoe.torch.prepare(form=form, **{k: v for k, v in given.items() if k in PACKED})
    alone = {**given, "gate_up": None, "down": None}
    values = {**given, **{k: few_bits(given[k], form, given.get("transposed", False)) for k in WEIGHTS[:2]}}
    x, ids, weights = tokens()

    def gradients(run: Any, **more: Any) -> tuple[Tensor, ...]:
        given, routing = leaf(x), leaf(weights)
        y = run(given, ids, routing, **more)
        return y, *torch.autograd.grad(y.square().sum(), (given, routing))

    expected = gradients(libmoe.torch.experts, **values)
    for more in ({**alone, "prepared": packed}, {**given, "prepared": packed}):
        found = gradients(libmoe.torch.experts, **more)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        torch._dynamo.reset()
        compiled = torch.compile(libmoe.torch.experts, fullgraph=True, backend="aot_eager")
        found = gradients(compiled, **more)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
    with pytest.raises(libmoe.BadStateError, match=r"are frozen.*requires_grad_\(False\)"):
        libmoe.torch.experts(x, ids, weights, **wanted(given), prepared=packed)


def few_bits(tensor: Tensor, form: str, transposed: bool) -> Tensor:
    """The values that a form keeps of matrices."""
    values = tensor.float().mT if transposed else tensor.float()
    kept = torch.from_numpy(unpacked(values.contiguous().numpy(), form))
    return kept.mT if transposed else kept


def test_opcheck_over_frozen_weights() -> None:
    x, ids, weights = tokens()
    packed = libmoe.torch.prepare(**fused(), form="int4")
    told = "gated silu concatenated 0 0  ", [E, I], [0.0] * 3
    torch.library.opcheck(operator, (leaf(x), ids, leaf(weights), [], *told, packed.number, True))


def stale() -> dict[str, Any]:
    """What happens to weights between two calls."""

    def adam(w: Tensor) -> None:
        w.grad = torch.ones_like(w)
        torch.optim.AdamW([w], fused=True).step()

    def in_place(w: Tensor) -> None:
        with torch.no_grad():
            w[2, 3, 4] += 1

    def by_numpy(w: Tensor) -> None:
        w.detach().numpy()[:] += 1

    return {"in place": in_place, "fused AdamW": adam, "numpy": by_numpy, "data": lambda w: w.data.add_(1)}


@pytest.mark.parametrize("how", stale())
def test_prepared_weights_that_have_changed(how: str) -> None:
    case = wanted(fused())
    x, ids, weights = tokens()
    packed = libmoe.torch.prepare(**case)
    with torch.no_grad():
        libmoe.torch.experts(x, ids, weights, **case, prepared=packed)
        stale()[how](case["down"])
        with pytest.raises(libmoe.BadStateError, match="changed"):
            libmoe.torch.experts(x, ids, weights, **case, prepared=packed)


def test_prepared_weights_after_a_backward() -> None:
    case = wanted(fused())
    x, ids, weights = tokens()
    packed = libmoe.torch.prepare(**case)
    libmoe.torch.experts(x, ids, weights, **case, prepared=packed).sum().backward()
    with pytest.raises(libmoe.BadStateError, match="backward"):
        libmoe.torch.experts(x, ids, weights, **case, prepared=packed)


def test_the_graph_keeps_the_prepared_weights() -> None:
    """Weights packed for one call, whose backward comes after."""
    case = wanted(fused())
    x, ids, weights = tokens()
    libmoe.torch.experts(x, ids, weights, **case).sum().backward()
    plain = [case[name].grad.clone() for name in ("gate_up", "down")]
    for name in ("gate_up", "down"):
        case[name].grad = None
    libmoe.torch.experts(x, ids, weights, **case, prepared=libmoe.torch.prepare(**case)).sum().backward()
    assert all(torch.equal(case[name].grad, g) for name, g in zip(("gate_up", "down"), plain))


def test_prepared_weights_are_not_copied_alone() -> None:
    packed = libmoe.torch.prepare(**fused())
    with pytest.raises(libmoe.BadStateError, match="cannot be copied; use them as they are"):
        copy.deepcopy(packed)
    assert copy.copy(packed) is packed
    assert copy.deepcopy({"packed": packed}) == {"packed": None}  # as within a module
