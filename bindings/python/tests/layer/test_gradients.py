"""Forward, backward, losses and statistics against the float64 oracle, over many kinds and sizes of layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest

import libmoe
import oracle
from against_oracle import Arguments, compare, inputs
from comparison import assert_all_same_bits, assert_close, gradients_of

SIZES: Arguments = {"hidden_size": 7, "intermediate_size": 11, "n_experts": 5, "top_k": 2}
ROUTERS: list[Arguments] = [
    {"router_weights": "scores", "router_normalize": True},
    {"router_weights": "scores", "router_normalize": False},
    {"router_weights": "topk_softmax"},
]
ROUTER_NAMES = ["normalized", "unnormalized", "topk_softmax"]
GROUPS: Arguments = {"n_groups": 3, "top_groups": 2}
# Every option of token choice, alone and as models combine them; 12 experts.
CHOICES: dict[str, Arguments] = {
    "sigmoid": {"score": "sigmoid"},
    "sqrt_softplus": {"score": "sqrt_softplus", "router_normalize": False},
    "identity": {"score": "identity", "router_normalize": False},
    "identity, norm1": {"score": "identity", "router_normalize": "norm1"},
    "identity, norm2": {"score": "identity", "router_normalize": "norm2", "normalize_epsilon": 0.5},
    "norm2": {"router_normalize": "norm2"},
    "topk_sigmoid": {"router_weights": "topk_sigmoid", "router_normalize": False},
    "topk_sigmoid, sum": {"router_weights": "topk_sigmoid"},
    "topk_softmax, scaled": {"router_weights": "topk_softmax", "routed_scale": 1.5, "expert_scale": True},
    "softmax, bias, least": {"selection_bias": True, "normalize_epsilon": 0.2, "epsilon_form": "least"},
    "all below the least": {"normalize_epsilon": 2.0, "epsilon_form": "least"},
    "logits, bias": {"router_weights": "topk_softmax", "selection_bias": True},
    "expert_scale": {"expert_scale": True, "routed_scale": 0.7, "normalize_epsilon": 0.1},
    "groups by their best": {**GROUPS, "router_normalize": False, "routed_scale": 2.5},
    "groups, zero": {**GROUPS, "group_mask": "zero", "router_normalize": False},
    "groups, logits": {**GROUPS, "router_weights": "topk_sigmoid", "group_top_m": 3},
    "DeepSeek-V3": {
        **GROUPS,
        "score": "sigmoid",
        "selection_bias": True,
        "group_top_m": 2,
        "normalize_epsilon": 1e-20,
        "routed_scale": 2.5,
    },
}


@pytest.fixture(
    scope="module",
    params=[("reference", 1), ("reference", 2), ("openblas", 1), ("openblas", 2)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def context(request: pytest.FixtureRequest) -> Iterator[libmoe.Context]:
    """Every test that asks for it runs with both matrix products, alone and with a helping thread."""
    matmul, n_threads = request.param
    with libmoe.Context(n_threads=n_threads, matmul=matmul) as context:
        yield context


# ------------------------------------------------------------------------------------------------------------
# Token choice
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matmul", ["native", "reference", "openblas"])
@pytest.mark.parametrize("choice", CHOICES)
def test_choices(choice: str, matmul: Literal["native", "reference", "openblas"]) -> None:
    arguments: Arguments = {"hidden_size": 7, "intermediate_size": 11, "n_experts": 12, "top_k": 3}
    arguments |= CHOICES[choice]
    with libmoe.Context(n_threads=2, matmul=matmul) as context:
        layer = libmoe.Layer(**arguments, context=context)
        generator = np.random.default_rng(3)
        if "router.selection_bias" in layer.buffers:
            # Large enough to change choices, and negative too.
            layer.buffers["router.selection_bias"][:] = generator.normal(-0.1, 0.3, 12)
        if "router.expert_scale" in layer.parameters:
            layer.parameters["router.expert_scale"].data[:] = generator.normal(1, 0.3, 12)
        compare(layer, arguments, *inputs(40, 7))


# ------------------------------------------------------------------------------------------------------------
# Kinds, sizes, losses
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expert_bias", [False, True])
@pytest.mark.parametrize("router_bias", [False, True])
@pytest.mark.parametrize("activation", oracle.ACTIVATIONS)
@pytest.mark.parametrize("expert_kind", ["mlp", "gated"])
@pytest.mark.parametrize("router", ROUTERS, ids=ROUTER_NAMES)
def test_kinds(
    context: libmoe.Context,
    router: Arguments,
    expert_kind: str,
    activation: str,
    router_bias: bool,
    expert_bias: bool,
) -> None:
    arguments = {**SIZES, **router, "expert_kind": expert_kind, "activation": activation}
    layer = libmoe.Layer(**arguments, router_bias=router_bias, expert_bias=expert_bias, context=context)
    assert ("router.bias" in layer.parameters) == router_bias
    assert ("experts.down.bias" in layer.parameters) == expert_bias
    compare(layer, arguments, *inputs(37, SIZES["hidden_size"]))


@pytest.mark.parametrize("n_tokens", [0, 1, 37, 513])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("router", ROUTERS, ids=ROUTER_NAMES)
def test_linear_experts(context: libmoe.Context, router: Arguments, bias: bool, n_tokens: int) -> None:
    arguments = {**SIZES, **router, "expert_kind": "linear", "intermediate_size": 0, "hidden_size": 35}
    layer = libmoe.Layer(**arguments, expert_bias=bias, context=context)
    names = ["router.weight", "router.bias", "experts.weight", *(["experts.bias"] if bias else [])]
    assert list(layer.parameters) == names
    compare(layer, arguments, *inputs(n_tokens, 35))


@pytest.mark.parametrize(
    "clamps",
    [
        {"activation": "silu", "glu_limit": 0.4, "glu_alpha": 1.702, "glu_offset": 1.0},
        {"activation": "silu", "glu_limit": 0.4},
        {"activation": "silu", "glu_alpha": 0.7},
        {"activation": "gelu", "glu_offset": 0.5},
    ],
    ids=["gpt-oss", "limit", "alpha", "offset"],
)
@pytest.mark.parametrize("n_tokens", [1, 37, 513])
def test_clamps(context: libmoe.Context, clamps: Arguments, n_tokens: int) -> None:
    arguments = {**SIZES, **clamps, "expert_kind": "gated"}
    layer = libmoe.Layer(**arguments, expert_bias=True, context=context)
    truth = compare(layer, arguments, *inputs(n_tokens, SIZES["hidden_size"]))
    if "glu_limit" in clamps:  # whose limits many values are beyond
        for name in ("gate", "up"):
            values = np.concatenate([getattr(call, name).ravel() for call in truth.calls])
            assert 0.05 < np.mean(values > clamps["glu_limit"]) < 0.95


@pytest.mark.parametrize("expert_kind", ["mlp", "gated"])
@pytest.mark.parametrize(
    ("n_tokens", "hidden_size", "intermediate_size", "n_experts", "top_k"),
    [
        pytest.param(0, 7, 11, 5, 2, id="no tokens"),
        pytest.param(1, 7, 11, 5, 2, id="one token"),
        pytest.param(1, 1, 1, 1, 1, id="all ones"),
        pytest.param(37, 9, 13, 1, 1, id="one expert"),
        pytest.param(37, 9, 13, 5, 1, id="one choice"),
        pytest.param(37, 9, 13, 5, 5, id="every expert chosen"),
        pytest.param(5, 9, 13, 31, 2, id="experts without tokens"),
        pytest.param(37, 33, 3, 4, 3, id="narrow experts"),
        pytest.param(513, 65, 129, 6, 3, id="many tokens"),
    ],
)
def test_sizes(
    context: libmoe.Context,
    expert_kind: str,
    n_tokens: int,
    hidden_size: int,
    intermediate_size: int,
    n_experts: int,
    top_k: int,
) -> None:
    arguments: Arguments = {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
    arguments |= {"n_experts": n_experts, "top_k": top_k, "expert_kind": expert_kind}
    layer = libmoe.Layer(**arguments, context=context)
    compare(layer, arguments, *inputs(n_tokens, hidden_size))


@pytest.mark.parametrize("d_aux_loss", [0.0, 1.0, -2.5])
@pytest.mark.parametrize(("balance_coef", "z_coef"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.3), (0.01, 0.001)])
@pytest.mark.parametrize("router", ROUTERS, ids=ROUTER_NAMES)
def test_losses(
    context: libmoe.Context, router: Arguments, balance_coef: float, z_coef: float, d_aux_loss: float
) -> None:
    arguments = {**SIZES, **router, "balance_coef": balance_coef, "z_coef": z_coef}
    layer = libmoe.Layer(**arguments, context=context)
    compare(layer, arguments, *inputs(37, SIZES["hidden_size"]), d_aux_loss)


# ------------------------------------------------------------------------------------------------------------
# Routers at their limits
# ------------------------------------------------------------------------------------------------------------

NEVER = -np.inf


@pytest.mark.parametrize(
    ("router_bias", "tokens_per_expert"),
    [
        pytest.param([0, 0, 40, 0, 0], [None, None, 37, None, None], id="all tokens on one expert"),
        pytest.param([0, 40, 0, 80, 0], [0, 37, 0, 37, 0], id="all tokens on two experts"),
        pytest.param([0, NEVER, 0, 0, 0], [None, 0, None, None, None], id="one expert shut"),
        pytest.param([NEVER, 0, NEVER, NEVER, 0], [0, 37, 0, 0, 37], id="as many open as are chosen"),
    ],
)
@pytest.mark.parametrize("expert_kind", ["mlp", "gated"])
@pytest.mark.parametrize("router", ROUTERS, ids=ROUTER_NAMES)
def test_extreme_router_biases(
    context: libmoe.Context,
    router: Arguments,
    expert_kind: str,
    router_bias: list[float],
    tokens_per_expert: list[int | None],
) -> None:
    arguments = {**SIZES, **router, "expert_kind": expert_kind}
    layer = libmoe.Layer(**arguments, context=context)
    layer.parameters["router.bias"].data[...] = router_bias
    truth = compare(layer, arguments, *inputs(37, SIZES["hidden_size"]))
    for count, expected in zip(truth.report.tokens_per_expert, tokens_per_expert):
        assert expected is None or count == expected


def test_too_few_open_experts_are_an_error(context: libmoe.Context) -> None:
    layer = libmoe.Layer(**SIZES, context=context)
    layer.parameters["router.bias"].data[...] = [NEVER, NEVER, NEVER, 0, NEVER]
    x, _ = inputs(37, SIZES["hidden_size"])
    with pytest.raises(libmoe.NotFiniteError, match="token 0"):
        layer(x)


def test_equal_logits_choose_the_lowest_index(context: libmoe.Context) -> None:
    layer = libmoe.Layer(**SIZES, context=context)
    layer.parameters["router.weight"].data[...] = 0
    layer.parameters["router.bias"].data[...] = [1, 3, 3, 1, 3]
    x, _ = inputs(37, SIZES["hidden_size"])
    np.testing.assert_array_equal(layer.forward(x).report.expert_indices, np.tile([1, 2], (37, 1)))


@pytest.mark.parametrize("router", [ROUTERS[0], ROUTERS[2]], ids=[ROUTER_NAMES[0], ROUTER_NAMES[2]])
def test_a_single_weight_that_is_always_1_teaches_the_router_nothing(
    context: libmoe.Context, router: Arguments
) -> None:
    """Compared with 0 itself: there is no scale to be relative to."""
    layer = libmoe.Layer(**{**SIZES, **router, "top_k": 1}, balance_coef=0.0, z_coef=0.0, context=context)
    x, dy = inputs(37, SIZES["hidden_size"])
    tape = layer.tape()
    output = layer.forward(x, tape=tape)
    layer.backward(tape, dy)
    np.testing.assert_array_equal(output.report.expert_weights, 1)
    assert np.abs(layer.parameters["router.weight"].grad).max() <= 1e-6
    assert np.abs(layer.parameters["router.bias"].grad).max() <= 1e-6
    assert np.abs(layer.parameters["experts.up.weight"].grad).max() > 0.1


# ------------------------------------------------------------------------------------------------------------
# What backward does with memory
# ------------------------------------------------------------------------------------------------------------


def test_gradients_accumulate_until_they_are_zeroed(context: libmoe.Context) -> None:
    """Two batches, each with a tape of its own, and one of them twice."""
    layer = libmoe.Layer(**SIZES, context=context)
    batches = [inputs(37, SIZES["hidden_size"], seed=1), inputs(5, SIZES["hidden_size"], seed=2)]
    tapes = [layer.tape(), layer.tape()]
    for (x, _), tape in zip(batches, tapes):
        layer.forward(x, tape=tape)
    for i in (1, 0, 1):
        layer.backward(tapes[i], batches[i][1])

    expected = {name: np.zeros(parameter.data.shape) for name, parameter in layer.parameters.items()}
    for (x, dy), times in zip(batches, (1, 2)):
        truth = oracle.forward(oracle.Settings.of(SIZES), layer.state_dict(), x)
        assert truth.routing.margin() > 1e-5, "choose another seed"
        for name, gradient in oracle.backward(truth, dy)[1].items():
            expected[name] += times * gradient
    for name, parameter in layer.parameters.items():
        assert_close(name, parameter.grad, expected[name])

    layer.zero_grad()
    for name, parameter in layer.parameters.items():
        np.testing.assert_array_equal(parameter.grad, 0, err_msg=name)


def test_dx_is_overwritten(context: libmoe.Context) -> None:
    layer = libmoe.Layer(**SIZES, context=context)
    x, dy = inputs(37, SIZES["hidden_size"])
    tape = layer.tape()
    layer.forward(x, tape=tape)
    dx = layer.backward(tape, dy)
    mine = np.full_like(x, np.nan)
    assert layer.backward(tape, dy, out=mine) is mine
    np.testing.assert_array_equal(mine, dx)


def test_dx_is_optional(context: libmoe.Context) -> None:
    """And the gradients of the parameters do not depend on it."""
    layer = libmoe.Layer(**SIZES, context=context)
    x, dy = inputs(37, SIZES["hidden_size"])
    tape = layer.tape()
    layer.forward(x, tape=tape)
    with_dx = gradients_of(layer, layer.backward(tape, dy))
    layer.zero_grad()
    assert layer.backward(tape, dy, need_dx=False) is None
    for name, parameter in layer.parameters.items():
        np.testing.assert_array_equal(parameter.grad, with_dx[name], err_msg=name)


@pytest.mark.parametrize("matmul", ["reference", "openblas"])
def test_threads_change_no_bit(matmul: Any) -> None:
    """Sizes large enough to be shared out, odd enough to be shared out unevenly."""
    x, dy = inputs(513, 65)
    results = []
    for n_threads in (1, 2, 3):
        with libmoe.Context(n_threads=n_threads, matmul=matmul) as context:
            layer = libmoe.Layer(65, 129, 6, 3, dropout=0.1, context=context)
            tape = layer.tape()
            y = layer.forward(x, tape=tape, training=True).y
            dx = layer.backward(tape, dy)
            results.append({"y": y} | gradients_of(layer, dx))
    for other in results[1:]:
        assert_all_same_bits(other, results[0])
