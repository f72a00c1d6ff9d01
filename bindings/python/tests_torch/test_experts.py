"""libmoe.torch.experts against float64, and what torch asks of an operator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import libmoe
import libmoe.torch
from cases import Case, E, H, I, K, T, cases, fused, tokens
from comparison import assert_close
from experts64 import WEIGHTS, exact, experts64, leaf, leaves, mapped, wanted
from libmoe.torch._ops import experts as operator

CASES = cases()


def compare(case: Case, x: Tensor, ids: Tensor, weights: Tensor, tolerance: float = 2e-6) -> None:
    case, x, weights = wanted(case), leaf(x), leaf(weights)
    y = libmoe.torch.experts(x, ids, weights, **case)
    truth = exact(case)
    x64, w64 = x.detach().double().requires_grad_(), weights.detach().double().requires_grad_()
    y64 = experts64(x64, ids, w64, **truth)
    assert y.dtype == x.dtype
    assert_close("y", y.detach().double(), y64.detach(), tolerance)
    dy = torch.randn(y.shape)
    y.backward(dy.to(y.dtype))
    y64.backward(dy.double())
    pairs = [("x", x, x64), ("weights", weights, w64)]
    for name in WEIGHTS:
        pairs += [(name, a, b) for a, b in zip(leaves(case.get(name)), leaves(truth.get(name)))]
    for name, mine, theirs in pairs:
        assert mine.grad is not None and theirs.grad is not None, name
        assert mine.grad.dtype == mine.dtype
        assert_close(f"gradient of {name}", mine.grad.double(), theirs.grad, 3 * tolerance)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_against_float64(case: str) -> None:
    torch.manual_seed(2)
    compare(CASES[case], *tokens())


def test_the_reference_is_differentiated_rightly() -> None:
    torch.manual_seed(3)
    x, ids, weights = (t[:6] for t in tokens())
    for case in ("gpt-oss", "weight on input", "nemotron"):
        given = exact(wanted(CASES[case]))
        inputs = [x.double().requires_grad_(), weights.double().requires_grad_(), given["down"]]

        def run(x: Tensor, w: Tensor, down: Tensor, given: Case = given) -> Tensor:
            return experts64(x, ids, w, **{**given, "down": down})

        torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["fused", "gpt-oss", "lists", "columns first"])
def test_other_types_of_weights(case: str, dtype: torch.dtype) -> None:
    """x float32 and weights, biases and routing rounded: float64 computes with the rounded ones."""
    torch.manual_seed(2)
    given = {k: mapped(lambda t: t.to(dtype), v) for k, v in CASES[case].items()}
    given.pop("glu_limit", None)  # whose gradient jumps
    x, ids, weights = tokens()
    compare(given, x, ids, weights.to(dtype), 2e-2 if dtype is torch.bfloat16 else 2e-3)
    compare(given, x.bfloat16(), ids, weights.to(dtype), 2e-2)


@pytest.mark.parametrize("n_tokens", [0, 1, 300])
def test_numbers_of_tokens(n_tokens: int) -> None:
    torch.manual_seed(2)
    x, ids, weights = tokens(n_tokens)
    compare(CASES["fused"], x, ids, weights)
    compare(CASES["fused"], x, ids.int(), weights)
    compare(CASES["fused"], x, ids[:, :1], weights[:, :1])
    compare(CASES["fused"], x, torch.full_like(ids, E), weights)  # nobody's


def test_leading_dimensions_and_strides_of_tokens() -> None:
    x, ids, weights = tokens(24)
    case = CASES["fused"]
    flat = libmoe.torch.experts(x, ids, weights, **case)
    shaped = libmoe.torch.experts(x.view(2, 3, 4, H), ids.view(2, 3, 4, K), weights.view(2, 3, 4, K), **case)
    assert torch.equal(shaped, flat.view(2, 3, 4, H))
    turned = libmoe.torch.experts(x.T.contiguous().T, ids.T.contiguous().T, weights.T.contiguous().T, **case)
    assert torch.equal(turned, flat)


def test_experts_without_tokens_have_a_gradient_of_zero() -> None:
    case = wanted(fused())
    x, _, weights = tokens()
    libmoe.torch.experts(x, torch.ones(T, K, dtype=torch.long), weights, **case).sum().backward()
    for name in ("gate_up", "down"):
        grad = case[name].grad
        assert grad[1].any() and not grad[[0, 2, 3, 4]].any()


FROZEN = [("x",), ("weights",), ("gate_up",), ("down",), ("x", "down"), ("gate_up_bias", "down_bias")]


@pytest.mark.parametrize("names", FROZEN)
def test_what_is_frozen(names: tuple[str, ...]) -> None:
    torch.manual_seed(2)
    x, ids, weights = tokens()
    given = {"x": x, "weights": weights, **CASES["gpt-oss"]}
    given = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in given.items()}
    whole = {k: leaf(v.clone()) if isinstance(v, Tensor) else v for k, v in given.items()}
    for name in names:
        given[name].requires_grad_()
    libmoe.torch.experts(ids=ids, **given).square().sum().backward()
    libmoe.torch.experts(ids=ids, **whole).square().sum().backward()
    for name, value in given.items():
        if isinstance(value, Tensor):
            assert (value.grad is not None) == (name in names)
            assert value.grad is None or torch.equal(value.grad, whole[name].grad)


def test_one_expert_of_a_list_is_frozen() -> None:
    case = wanted(CASES["lists"])
    case["down"][2].requires_grad_(False)
    x, ids, weights = tokens()
    libmoe.torch.experts(x, ids, weights, **case).sum().backward()
    assert [w.grad is None for w in case["down"]] == [False, False, True, False, False]


def test_without_gradients() -> None:
    case = wanted(fused())
    x, ids, weights = tokens()
    y = libmoe.torch.experts(x, ids, weights, **case)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            z = libmoe.torch.experts(x, ids, weights, **case)
        assert not z.requires_grad and torch.equal(y, z)
    with torch.inference_mode():
        inner = {k: v.clone() for k, v in case.items()}
        assert torch.equal(libmoe.torch.experts(x.clone(), ids.clone(), weights.clone(), **inner), y)


def test_gradients_of_gradients_are_refused() -> None:
    x, ids, weights = tokens()
    y = libmoe.torch.experts(x.requires_grad_(), ids, weights, **fused()).sum()
    with pytest.raises(libmoe.InvalidArgumentError, match="create_graph"):
        torch.autograd.grad(y, x, create_graph=True)


def test_twice_in_one_graph_and_twice_through_it() -> None:
    case = wanted(fused())
    x, ids, weights = tokens()
    other = torch.randn(T, H)

    def run(x: Tensor) -> Tensor:
        return libmoe.torch.experts(x, ids, weights, **case).square().sum()

    ways = [case["gate_up"], case["down"]]
    apart = [a + b for a, b in zip(torch.autograd.grad(run(x), ways), torch.autograd.grad(run(other), ways))]
    torch.testing.assert_close(list(torch.autograd.grad(run(x) + run(other), ways)), apart)
    loss = run(x)
    first = torch.autograd.grad(loss, ways, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, ways)))


def test_checkpointing_gives_the_same_bits() -> None:
    case = wanted(fused())
    x, ids, weights = tokens()

    def run(x: Tensor) -> Tensor:
        return libmoe.torch.experts(x, ids, weights, **case)

    for reentrant in (True, False):
        z = x.clone().requires_grad_()
        (plain,) = torch.autograd.grad(run(z).square().sum(), z)
        torch.utils.checkpoint.checkpoint(run, z, use_reentrant=reentrant).square().sum().backward()
        assert z.grad is not None and torch.equal(z.grad, plain)


def test_what_is_saved_may_lie_elsewhere() -> None:
    case = wanted(fused())
    x, ids, weights = tokens()
    plain = torch.autograd.grad(libmoe.torch.experts(x, ids, weights, **case).square().sum(), case["down"])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
        y = libmoe.torch.experts(x, ids, weights, **case)
    assert torch.equal(torch.autograd.grad(y.square().sum(), case["down"])[0], plain[0])


def test_two_threads() -> None:
    case = wanted(CASES["gpt-oss"])
    given = [tokens(50) for _ in range(2)]

    def gradient(number: int) -> Tensor:
        y = libmoe.torch.experts(*given[number], **case)
        return torch.autograd.grad(y.square().sum(), case["gate_up"])[0]

    alone = [gradient(0), gradient(1)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda number: [gradient(number) for _ in range(20)], range(2)))
    for number in range(2):
        assert all(torch.equal(g, alone[number]) for g in found[number])


def test_threads_follow_torch_and_change_no_bit() -> None:
    x, ids, weights = tokens(300)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = libmoe.torch.experts(x, ids, weights, **CASES["fused"])
        assert libmoe.torch._by_call.context().threads == 1
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(libmoe.torch.experts(x, ids, weights, **CASES["fused"]), one)


@pytest.mark.parametrize("case", ["fused", "gpt-oss", "lists"])
@pytest.mark.parametrize("saves", [True, False])
def test_opcheck(case: str, saves: bool) -> None:
    seen = {}
    x, ids, weights = tokens()
    given = wanted(CASES[case])

    def watch(*arguments: Any) -> tuple[Tensor, Tensor]:
        seen["arguments"] = arguments
        return operator(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libmoe.torch._ops, "experts", watch)
        patch.setattr(libmoe.torch._ops, "is_watched", lambda *_: True)
        libmoe.torch.experts(x.requires_grad_(), ids, weights.requires_grad_(), **given)
    torch.library.opcheck(operator, (*seen["arguments"][:-1], saves))


@pytest.mark.parametrize(
    "case",
    ["fused", *(pytest.param(name, marks=pytest.mark.long) for name in ("gpt-oss", "lists", "nemotron"))],
)
def test_compile_has_it_in_one_graph(case: str) -> None:
    torch._dynamo.reset()
    given = wanted(CASES[case])

    def run(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return libmoe.torch.experts(2 * x, ids, weights.softmax(-1), **given).square()

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    ways = leaves([given[name] for name in WEIGHTS if name in given])
    for n_tokens in (5, 37, 8):
        x, ids, weights = tokens(n_tokens)
        x.requires_grad_(), weights.requires_grad_()
        torch.testing.assert_close(compiled(x, ids, weights), run(x, ids, weights))
        mine = torch.autograd.grad(compiled(x, ids, weights).sum(), [x, weights, *ways])
        plain = torch.autograd.grad(run(x, ids, weights).sum(), [x, weights, *ways])
        torch.testing.assert_close(mine, plain)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, ids, weights), run(x, ids, weights))


def test_inductor() -> None:
    torch._dynamo.reset()
    given = wanted(CASES["fused"])
    x, ids, weights = tokens()
    run = torch.compile(
        lambda x: libmoe.torch.experts(x.sin(), ids, weights, **given).cos().sum(), fullgraph=True
    )
    z = x.clone().requires_grad_()
    plain = libmoe.torch.experts(z.sin(), ids, weights, **given).cos().sum()
    torch.testing.assert_close(run(z), plain)
    torch.testing.assert_close(torch.autograd.grad(run(z), z), torch.autograd.grad(plain, z))


def test_autocast_leaves_the_routing_weights_alone() -> None:
    x, ids, weights = tokens()
    case = {k: mapped(lambda t: t.bfloat16(), v) for k, v in fused().items()}
    weights = weights.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = libmoe.torch.experts(x.requires_grad_(), ids, weights, **case)
    assert y.dtype == torch.bfloat16
    y.backward(y.detach())
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert weights.grad is not None and weights.grad.dtype == torch.float32
    expected = libmoe.torch.experts(x.bfloat16(), ids, weights, **case)
    assert torch.equal(y, expected)
    rounded = libmoe.torch.experts(x.bfloat16(), ids, weights.bfloat16(), **case)
    assert not torch.equal(y, rounded)
    assert torch.equal(torch.autograd.grad(expected, weights, y.detach())[0], weights.grad)


def test_a_weight_that_changes_before_backward() -> None:
    case = wanted(fused())
    y = libmoe.torch.experts(*tokens(), **case)
    with torch.no_grad():
        case["down"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def refused() -> dict[str, tuple[Any, str]]:
    x, ids, weights = tokens()
    c = fused()
    run = libmoe.torch.experts
    gate_up, down = c["gate_up"], c["down"]
    return {
        "x": (lambda: run(x.numpy(), ids, weights, **c), "x: expected a torch.Tensor, got ndarray"),
        "double": (lambda: run(x.double(), ids, weights, **c), "x: expected torch.float32 or bfloat16"),
        "half": (lambda: run(x.half(), ids, weights, **c), "use x.float"),
        "width": (lambda: run(x[:, :5], ids, weights, **c), rf"x: expected shape \[..., {H}\]"),
        "ids": (lambda: run(x, ids.float(), weights, **c), "ids: expected torch.int64 or int32"),
        "rows": (lambda: run(x, ids[:-1], weights, **c), "ids, weights: expected shape"),
        "k": (lambda: run(x, ids[:, :2], weights, **c), "ids, weights: expected shape"),
        "weights": (lambda: run(x, ids, weights.double(), **c), "weights: expected torch.float32"),
        "meta": (lambda: run(x, ids, weights, gate_up.to("meta"), down), "gate_up: is on 'meta'"),
        "none": (lambda: run(x, ids, weights, None, down), "gate_up: expected a tensor"),
        "no down": (lambda: run(x, ids, weights, gate_up, None), "down: expected a tensor"),
        "shape": (
            lambda: run(x, ids, weights, gate_up[:, 1:], down),
            rf"gate_up: expected shape \[{E}, {2 * I}, {H}\]",
        ),
        "transposed": (lambda: run(x, ids, weights, **c, transposed=True), "gate_up: expected shape"),
        "types": (
            lambda: run(x, ids, weights, gate_up.half(), down),
            "down: is torch.float32, and the matrix",
        ),
        "bias": (lambda: run(x, ids, weights, **c, down_bias=torch.zeros(E)), "down_bias: expected shape"),
        "experts": (lambda: run(x, ids, weights, list(gate_up)[:-1], down), "gate_up: expected a list of 5"),
        "kind": (
            lambda: run(x, ids, weights, **c, expert_kind="dense"),
            "expert_kind: expected gated, mlp or linear",
        ),
        "tuple": (lambda: run(x, ids, weights, (gate_up, down, down), down), "a tuple is .gate, up."),
        "activation": (lambda: run(x, ids, weights, **c, activation="tanh"), "activation"),
        "names": (
            lambda: run(x, ids, weights, **c, activaton="silu", glulimit=1.0),
            "experts: unknown names .'activaton', 'glulimit'.; for 'activaton' did you mean activation.; for "
            "'glulimit' did you mean glu_limit",
        ),
        "a list of types": (
            lambda: run(x, ids, weights, [*gate_up[:-1], gate_up[-1].half()], down),
            r"gate_up\[4\]: is torch.float16, but gate_up\[0\] is torch.float32; use",
        ),
        "a list of shapes": (
            lambda: run(x, ids, weights, [*gate_up[:-1], gate_up[-1][1:]], down),
            r"gate_up\[4\]: expected shape",
        ),
        "letters": (lambda: run(x, ids[:-1], weights[:-1], **c), r"expected shape \[\d+, K\] of both"),
        "limit": (lambda: run(x, ids, weights, **c, glu_limit=-1.0), "glu_limit"),
    }


@pytest.mark.parametrize("what", refused())
def test_what_is_refused(what: str) -> None:
    call, text = refused()[what]
    with pytest.raises(libmoe.MoeError, match=text):
        call()


def transforms() -> dict[str, Any]:
    """Of torch.func, over a function of one tensor."""
    return {
        "grad": lambda f, x: torch.func.grad(lambda t: f(t).sum())(x),
        "vjp": lambda f, x: torch.func.vjp(f, x),
        "jacrev": lambda f, x: torch.func.jacrev(f)(x),
        "vmap": lambda f, x: torch.func.vmap(f)(x[None]),
    }


@pytest.mark.parametrize("how", transforms())
@pytest.mark.parametrize("what", ["experts", "module"])
def test_transforms_are_refused_with_what_to_do(how: str, what: str) -> None:
    (x, ids, weights), case = tokens(), fused()
    moe = libmoe.torch.MoE(H, I, n_experts=E, top_k=K)
    run = moe if what == "module" else lambda t: libmoe.torch.experts(t, ids, weights, **case)
    with pytest.raises(libmoe.InvalidArgumentError, match="torch.func: .*use backward"):
        transforms()[how](run, x)


def misused() -> dict[str, Any]:
    """The operators called by themselves, with what would read beyond the tensors."""
    x, ids, weights = tokens()
    word = "gated silu concatenated 0 0 gate_up,down 00"
    gate_up, down = fused()["gate_up"], fused()["down"]
    run, back = torch.ops.libmoe.experts, torch.ops.libmoe.experts_backward
    glu, told = [0.0] * 3, (word, [E, I], [0.0] * 3)
    need = [True] * 4
    none = torch.empty(0, dtype=torch.uint8)
    return {
        "rows": lambda: run(x, ids[:-1], weights[:-1], [gate_up, down], *told, 0, False),
        "features": lambda: run(x[:, :-1], ids, weights, [gate_up, down], *told, 0, False),
        "dimensions": lambda: run(x[0], ids, weights, [gate_up, down], *told, 0, False),
        "number": lambda: run(x, ids, weights, [gate_up], *told, 0, False),
        "sizes": lambda: run(x, ids, weights, [gate_up, down], word, [E + 1, I], glu, 0, False),
        "shape": lambda: run(x, ids, weights, [gate_up[:, :-2], down], *told, 0, False),
        "prepared": lambda: run(x, ids, weights, [gate_up, down], *told, 10**6, False),
        "dy": lambda: back(x[:-1], none, x, ids, weights, [gate_up, down], *told, 0, need),
        "type of dy": lambda: back(x.double(), none, x, ids, weights, [gate_up, down], *told, 0, need),
        "flags": lambda: back(x, none, x, ids, weights, [gate_up, down], *told, 0, need[:-1]),
    }


@pytest.mark.parametrize("what", misused())
def test_operators_called_by_themselves(what: str) -> None:
    with pytest.raises(libmoe.MoeError):
        misused()[what]()


@pytest.mark.parametrize("case", ["fused", "gpt-oss"])
def test_derivatives_forwards_are_refused(case: str) -> None:
    """Where they would come out as 0: of x, the routing weights and the experts' own."""
    c = CASES[case]
    x, ids, weights = tokens()
    gate_up = c["gate_up"]
    ways = {
        "x": (lambda v: libmoe.torch.experts(v, ids, weights, **c), x),
        "weights": (lambda v: libmoe.torch.experts(x, ids, v, **c), weights),
        "gate_up": (lambda v: libmoe.torch.experts(x, ids, weights, **{**c, "gate_up": v}), gate_up),
    }
    for name, (run, value) in ways.items():
        with pytest.raises(libmoe.InvalidArgumentError, match="jvp: .*use backward"):
            torch.func.jvp(run, (value.detach(),), (torch.ones_like(value),))
        wanted = value.detach().requires_grad_()
        assert torch.autograd.grad(run(wanted).sum(), wanted)[0].abs().max() > 0, name
