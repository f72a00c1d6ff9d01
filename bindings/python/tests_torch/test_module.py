"""libmoe.torch.MoE computes what the layer's oracle says, forwards and backwards."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch

import libmoe
import libmoe.torch
import oracle
from against_oracle import SCALARS, WHOLE, Arguments, oracle_of, unsettle
from comparison import assert_all_close, assert_close
from libmoe.torch import _layer_op
from oracle.low_bits import unpacked
from schemes import SCHEMES, SIZES, E, H, K

T = 40

RANDOM = np.random.default_rng(8)
EXTERNAL: Arguments = {
    "expert_indices": RANDOM.permuted(np.tile(np.arange(E, dtype=np.int32), (T, 1)), axis=1)[:, :K].copy(),
    "expert_weights": RANDOM.normal(size=(T, K)).astype(np.float32),
}
CASES = {**copy.deepcopy(SCHEMES), "external": ({"router": "external"}, EXTERNAL)}
CASES["losses"][1]["sequence_length"] = 10
CASES["padding"] = ({}, {"valid_mask": np.arange(T) % 5 != 0})
TABLE = RANDOM.permuted(np.tile(np.arange(E, dtype=np.int32), (7, 1)), axis=1)[:, :K].copy()
CASES["hash"] = ({"router": "hash", "hash_table": TABLE}, {"token_ids": np.arange(T, dtype=np.int64) % 7})
CASES["hierarchical"][0]["router_normalize"] = False  # else the groups' gate has next to no gradient
CASES["gated"] = ({k: v for k, v in CASES.pop("gated, dropout")[0].items() if k != "dropout"}, {})


def module_of(arguments: Arguments) -> libmoe.torch.MoE:
    """A module with random values in every parameter, made without what other tests changed."""
    moe = libmoe.torch.MoE(**{**SIZES, **arguments})
    unsettle(moe.layer)
    return moe


def tensors_of(call: Arguments) -> dict[str, Any]:
    """The options of a call as the module takes them; ids in torch's own type."""
    made = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in call.items()}
    made.pop("training", None)
    if "expert_indices" in made:
        made["expert_indices"] = made["expert_indices"].long()
    return made


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_layer_against_float64(case: str) -> None:
    arguments, call = CASES[case]
    moe = module_of(arguments).train(call.get("training", False))
    layer = moe.layer
    random = np.random.default_rng(1)
    x, dy = random.standard_normal((2, T, H), dtype=np.float32)
    truth = oracle_of(layer, {**SIZES, **arguments}, x, call)
    given = tensors_of(call)
    if "expert_weights" in given:
        given["expert_weights"].requires_grad_()
    x_t = torch.from_numpy(x).requires_grad_()
    y, report = moe(x_t, report=True, **given)

    assert_close("y", y.detach(), truth.y)
    for name in WHOLE:
        np.testing.assert_array_equal(getattr(report, name), getattr(truth.report, name), err_msg=name)
    for name in SCALARS + ["mean_probability"]:
        assert_close(name, torch.as_tensor(getattr(report, name)).detach(), getattr(truth.report, name))
    assert_all_close(report.losses, truth.report.losses)

    own = np.linspace(-1, 1, E, dtype=np.float32) if truth.routing.has_gate else np.zeros(E, np.float32)
    loss = (y * torch.from_numpy(dy)).sum() - 1.5 * report.aux_loss
    (loss + (report.mean_probability * torch.from_numpy(own)).sum()).backward()
    d_weights = np.zeros((T, K)) if "expert_weights" in given else None
    own_loss = own if truth.routing.has_gate else None
    d_x, gradients = oracle.backward(truth, dy, -1.5, own_loss, d_weights)
    found = {name: p.grad for name, p in moe.named_parameters()}
    assert x_t.grad is not None
    assert_all_close({"x": x_t.grad, **found}, {"x": d_x, **gradients})  # type: ignore[dict-item]
    if d_weights is not None:
        assert_close("d_weights", given["expert_weights"].grad, d_weights)


def test_names_are_the_layers() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2, selection_bias=True, expert_bias=True, n_shared_experts=1)
    assert list(moe.state_dict()) != []
    assert set(moe.state_dict()) == set(libmoe.Layer(**moe._options).state_dict())
    assert {name for name, _ in moe.named_buffers()} == {"router.selection_bias"}
    for name, parameter in moe.named_parameters():
        np.testing.assert_array_equal(parameter.detach(), libmoe.Layer(**moe._options).parameters[name].data)


def test_every_argument_of_a_layer_is_taken() -> None:
    wanted = inspect.signature(libmoe.Layer)
    assert list(inspect.signature(libmoe.torch.MoE).parameters) == list(wanted.parameters)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "n_experts": 4, "top_k": 2}
    given = {name: p.default for name, p in wanted.parameters.items() if name not in sizes}
    x = torch.randn(5, 16)
    assert torch.equal(libmoe.torch.MoE(**sizes, **given)(x), libmoe.torch.MoE(*sizes.values())(x))
    forward = inspect.signature(libmoe.Layer.forward).parameters.keys() - {"tape", "training", "out"}
    assert forward <= inspect.signature(libmoe.torch.MoE.forward).parameters.keys()


def test_the_memory_is_one() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2)
    x = torch.randn(5, 16)
    moe(x).sum().backward()
    for name, parameter in moe.named_parameters():
        assert parameter.data_ptr() == moe.layer.parameters[name].data.ctypes.data
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() == moe.layer.parameters[name].grad.ctypes.data
    before = moe.experts.up.weight.detach().clone()
    libmoe.SGD(moe.layer.parameters, 0.5).step()
    torch.testing.assert_close(moe.experts.up.weight, before - 0.5 * moe.experts.up.weight.grad)
    with torch.no_grad():
        moe.experts.up.weight.zero_()
    assert not moe.layer.parameters["experts.up.weight"].data.any()


def sums(parameters: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for p in parameters]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_add_up_as_torchs_do(set_to_none: bool) -> None:
    """Two calls in one graph, two backwards in a row, zero_grad of both kinds, gradients held elsewhere."""
    moe = libmoe.torch.MoE(16, 24, 4, 2, expert_kind="gated")
    one, two = torch.randn(5, 16), torch.randn(7, 16)

    def alone(x: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(moe(x).square().sum(), list(moe.parameters())))

    first, second = alone(one), alone(two)
    assert all(p.grad is None for p in moe.parameters())
    both = [a + b for a, b in zip(first, second)]
    (moe(one).square().sum() + moe(two).square().sum()).backward()
    torch.testing.assert_close(sums(moe.parameters()), both)
    moe.zero_grad(set_to_none=set_to_none)
    assert all((p.grad is None) == set_to_none for p in moe.parameters())
    moe(one).square().sum().backward()
    torch.testing.assert_close(sums(moe.parameters()), first)
    held = [p.grad for p in moe.parameters()]
    kept = sums(moe.parameters())
    moe(two).square().sum().backward()
    torch.testing.assert_close(sums(moe.parameters()), both)
    moe.zero_grad()
    y = moe(two).square().sum()
    y.backward(retain_graph=True)
    y.backward()
    torch.testing.assert_close(sums(moe.parameters()), [2 * g for g in second])
    moe.zero_grad()
    moe(two).square().sum().backward()
    torch.testing.assert_close(held, both)  # torch added to them, and nobody wrote into them since
    torch.testing.assert_close(kept, first)


def test_a_backward_uses_the_memory_of_the_one_before() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2)
    addresses = []
    for _ in range(3):
        moe(torch.randn(5, 16)).sum().backward()
        addresses.append([p.grad.data_ptr() for p in moe.parameters()])  # type: ignore[union-attr]
        moe.zero_grad()
    assert addresses[0] == addresses[1] == addresses[2]


def test_frozen_parameters_and_inputs_have_no_gradient() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2)
    moe.experts.requires_grad_(False)
    x = torch.randn(5, 16)
    moe(x).sum().backward()
    got = {name for name, p in moe.named_parameters() if p.grad is not None}
    assert got == {"router.weight", "router.bias"}
    moe.requires_grad_(False)
    assert not moe(x).requires_grad
    x.requires_grad_()
    (dx,) = torch.autograd.grad(moe(x).square().sum(), x)
    whole = libmoe.torch.MoE(16, 24, 4, 2)
    whole.load_state_dict(moe.state_dict())
    torch.testing.assert_close(dx, torch.autograd.grad(whole(x).square().sum(), x)[0])


def test_only_the_loss_or_only_a_report() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2, balance_coef=0.5)
    x = torch.randn(9, 16)
    _, report = moe(x, report=True)
    report.aux_loss.backward()
    by_loss = moe.router.weight.grad.clone()
    assert by_loss.abs().sum() > 0 and not moe.experts.up.weight.grad.any()
    moe.zero_grad()
    _, report = moe(x, report=True, sequence_length=3)
    logits = x @ moe.router.weight.T + moe.router.bias
    share = logits.softmax(-1).reshape(3, 3, 4).mean(1)
    torch.testing.assert_close(report.sequence_probability, share)
    seen = torch.randn(3, 4)
    (got,) = torch.autograd.grad((report.sequence_probability * seen).sum(), moe.router.weight)
    (wanted,) = torch.autograd.grad((share * seen).sum(), moe.router.weight)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients(off: Any) -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2)
    x = torch.randn(2, 5, 16)
    with off():
        y, report = moe(x, report=True)
    assert not y.requires_grad and not report.aux_loss.requires_grad
    torch.testing.assert_close(y, moe(x), rtol=0, atol=0)
    assert (
        moe.layer.parameters["router.weight"]._now()[1] is not None
    )  # the router's; the experts' have none yet
    assert moe.layer.parameters["experts.up.weight"]._now()[1] is None


def test_bfloat16() -> None:
    moe = libmoe.torch.MoE(32, 48, 4, 2, weight_dtype="bf16", io_dtype="bf16", expert_kind="gated")
    assert moe.experts.up.weight.dtype == torch.bfloat16 and moe.router.weight.dtype == torch.float32
    x = torch.randn(9, 32).bfloat16()
    y = moe(x.requires_grad_())
    assert y.dtype == torch.bfloat16
    y.backward(y)
    exact = libmoe.torch.MoE(32, 48, 4, 2, expert_kind="gated")
    exact.load_state_dict({name: value.float() for name, value in moe.state_dict().items()})
    assert_close("y", y.detach().float(), exact(x.detach().float()).detach(), 3e-2)
    layer = libmoe.Layer(**moe._options)  # whose values are the same, and whose gradients are float32
    tape, bits = layer.tape(), x.detach().view(torch.uint16).numpy()
    dy = layer.forward(bits, tape=tape, training=True).y
    dx = layer.backward(tape, dy, d_aux_loss=0.0)
    np.testing.assert_array_equal(y.detach().view(torch.uint16), dy)
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.view(torch.uint16), dx)
    for name, p in moe.named_parameters():
        assert p.grad is not None and p.grad.dtype == p.dtype, name
        assert torch.equal(p.grad, torch.from_numpy(layer.parameters[name].grad).to(p.dtype)), name
    torch.optim.AdamW(moe.parameters()).step()
    for p in moe.parameters():
        p.grad = None
        p.grad_dtype = torch.float32  # what the layer computes, unrounded
    moe(x).float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in moe.parameters())  # type: ignore[union-attr]
    assert moe(x.detach().float()).dtype == torch.float32


def test_under_autocast() -> None:
    moe = torch.nn.Sequential(torch.nn.Linear(16, 16), libmoe.torch.MoE(16, 24, 4, 2), torch.nn.Linear(16, 3))
    x = torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = moe(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None for p in moe.parameters())


def test_random_numbers_come_from_torchs_generator() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2, dropout=0.5)
    x = torch.randn(50, 16, requires_grad=True)
    torch.manual_seed(4)
    one, two = moe(x), moe(x)
    torch.manual_seed(4)
    again = moe(x)
    assert torch.equal(one, again) and not torch.equal(one, two)
    assert torch.equal(moe(x, step=3), moe(x, step=3))
    torch.manual_seed(4)
    (plain,) = torch.autograd.grad(moe(x).square().sum(), x)
    torch.manual_seed(4)
    y = torch.utils.checkpoint.checkpoint(moe, x, use_reentrant=False)
    (again,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(plain, again)
    moe.eval()
    assert torch.equal(moe(x), moe(x))


def test_warm_up_counts_steps() -> None:
    moe = libmoe.torch.MoE(16, 24, 8, 1, warmup_steps=10, warmup_experts=2)
    x = torch.randn(50, 16)
    with pytest.raises(libmoe.InvalidArgumentError, match="moe.x, step="):
        moe(x)
    _, report = moe(x, report=True, step=0)
    assert report.expert_indices.max() < 2 and moe.router.active_experts == 2


def test_gradients_of_gradients_are_refused() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2)
    x = torch.randn(5, 16, requires_grad=True)
    for y in (moe(x).square().sum(), moe(x).sum()):  # of the sum the gradient that comes in is a constant
        with pytest.raises(libmoe.InvalidArgumentError, match="create_graph"):
            torch.autograd.grad(y, x, create_graph=True)


def test_derivatives_forwards_are_refused() -> None:
    """Where they would come out as 0."""
    moe = libmoe.torch.MoE(16, 24, 4, 2).eval()
    x = torch.randn(5, 16)
    for trained in (True, False):
        moe.requires_grad_(trained)
        for way in (
            lambda: torch.func.jvp(moe, (x,), (torch.ones_like(x),)),
            lambda: torch.func.jacfwd(moe)(x),
            lambda: dual(moe, x),
        ):
            with pytest.raises(libmoe.InvalidArgumentError, match="jvp: .*use backward"):
                way()
    with torch.autograd.forward_ad.dual_level():
        assert moe(x).shape == x.shape  # nothing has a tangent here


def dual(module: Any, x: torch.Tensor) -> Any:
    with torch.autograd.forward_ad.dual_level():
        return module(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


def test_a_parameter_that_changes_before_backward() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2)
    y = moe(torch.randn(5, 16))
    with torch.no_grad():
        moe.experts.up.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_prepared_weights_are_the_parameters_or_an_error() -> None:
    moe = libmoe.torch.MoE(32, 64, 4, 2).eval()
    x = torch.randn(3, 32)
    with torch.no_grad():
        y = moe(x)
        moe.prepare()
        assert torch.equal(moe(x), y)
        moe.experts.up.weight[1, 7, 7] += 1
        with pytest.raises(libmoe.BadStateError, match="call prepare again"):
            moe(x)
        moe.prepare("none")
        z = moe(x)
        moe.prepare()
        assert torch.equal(moe(x), z)
        moe.load_state_dict(moe.state_dict())
        with pytest.raises(libmoe.BadStateError, match="call prepare again"):
            moe(x)
        moe.train()
        assert torch.equal(moe(x), z)


def test_training_over_few_bits() -> None:
    """All but the experts' matrices have the gradients of a module with the values that are kept."""
    arguments: Arguments = {"expert_kind": "gated", "expert_bias": True, "n_shared_experts": 1}
    moe, twin = (libmoe.torch.MoE(32, 64, 4, 2, **arguments) for _ in range(2))
    matrices = [
        name
        for name, _ in moe.named_parameters()
        if name.startswith(("experts.", "shared.")) and name.endswith("weight")
    ]
    with torch.no_grad():
        for name in matrices:
            moe.get_parameter(name).requires_grad_(False)
            values = twin.get_parameter(name)
            values.copy_(torch.from_numpy(unpacked(values.numpy(), "int4")))
    moe.prepare("int4_a8")
    moe.train()
    optimizer = torch.optim.SGD([p for p in moe.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # other parameters may change
        found, expected = [], []
        for module, each in ((moe, found), (twin, expected)):
            torch.manual_seed(1)
            x = torch.randn(20, 32, requires_grad=True)
            module.zero_grad()
            module(x).square().sum().backward()
            each += [x.grad, *(p.grad for n, p in module.named_parameters() if n not in matrices)]
        assert len(found) > 4
        for ours, theirs in zip(found, expected):
            assert torch.equal(ours, theirs)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in moe.named_parameters():
                if name not in matrices:
                    twin.get_parameter(name).copy_(parameter)

    moe.experts.up.weight.requires_grad_(True)
    with pytest.raises(libmoe.BadStateError, match="experts.up.weight wants a gradient.*'int4_a8'.*frozen"):
        moe(torch.randn(20, 32)).sum().backward()
    moe.train()
    moe(torch.randn(20, 32)).sum().backward()
    assert moe.experts.up.weight.grad.any()


def refused() -> dict[str, tuple[Any, str]]:
    moe = libmoe.torch.MoE(16, 24, 4, 2)
    x = torch.randn(5, 16)
    return {
        "array": (lambda: moe(x.numpy()), "x: expected a torch.Tensor"),
        "width": (lambda: moe(x[:, :8]), "hidden_size = 16"),
        "integers": (lambda: moe(x.long()), "x: expected"),
        "meta": (lambda: moe(x.to("meta")), "'meta'"),
        "ids": (lambda: libmoe.torch.MoE(16, 24, 4, 2, router="hash", vocabulary_size=9)(x), "token_ids"),
        "floating ids": (lambda: moe(x, expert_indices=x[:, :2]), "expert_indices: expected torch.int32"),
        "large ids": (lambda: moe(x, expert_indices=torch.full((5, 2), 2**40)), "does not fit"),
        "name": (lambda: libmoe.torch.MoE(16, 24, 4, 2, num_experts=3), "n_experts"),
        "names": (
            lambda: libmoe.torch.MoE(16, 24, 4, 2, num_experts=3, activate="silu"),
            "MoE: unknown names .'num_experts', 'activate'.; .*for 'num_experts' did you mean n_experts.*for "
            "'activate' did you mean activation",
        ),
        "names of a call": (
            lambda: moe(x, valid_msk=None, stepp=1),
            "MoE.forward: unknown names .'valid_msk', 'stepp'.; .*valid_mask.*for 'stepp' did you mean step",
        ),
        "unallocated": (lambda: libmoe.torch.MoE(16, 24, 4, 2, unallocated="expert_weights"), "torch.device"),
        "no backward": (
            lambda: libmoe.torch.MoE(16, 24, 4, 2, inference_only=True)(x.requires_grad_()),
            "no_grad",
        ),
    }


@pytest.mark.parametrize("what", refused())
def test_what_is_refused(what: str) -> None:
    call, text = refused()[what]
    with pytest.raises(libmoe.MoeError, match=text):
        call()


def test_no_tokens_and_strided_tokens() -> None:
    moe = libmoe.torch.MoE(16, 24, 4, 2)
    assert moe(torch.empty(0, 16)).shape == (0, 16)
    moe(torch.empty(2, 0, 16)).sum().backward()
    x = torch.randn(16, 5)
    torch.testing.assert_close(moe(x.T), moe(x.T.contiguous()), rtol=0, atol=0)
    (y := moe(x.T)).backward(torch.ones(5).expand(16, 5).T)
    assert y.shape == (5, 16)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_compile_has_the_module_in_one_graph(dtype: Any) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    moe = libmoe.torch.MoE(16, 24, 4, 2, dropout=0.3, weight_dtype=dtype)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), moe, torch.nn.Linear(16, 3))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = [torch.randn(5, 16, requires_grad=True), *model.parameters()]
    for training in (True, False, True):
        model.train(training)
        for n_tokens in (5, 5, 9):
            inputs[0] = torch.randn(n_tokens, 16, requires_grad=True)
            torch.manual_seed(3)
            y = model(inputs[0])
            wanted = torch.autograd.grad(y.square().sum(), inputs)
            torch.manual_seed(3)
            z = compiled(inputs[0])
            torch.testing.assert_close(z, y)
            for g, w in zip(torch.autograd.grad(z.square().sum(), inputs), wanted):
                torch.testing.assert_close(g, w)
    x = inputs[0].detach()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    assert not _layer_op._tapes  # they go with their graphs


def test_compiled_modules_are_told_apart() -> None:
    """By one compiled function: others of the class, a copy, and the same after a conversion."""
    torch._dynamo.reset()
    run = torch.compile(lambda module, x: module(x), backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 16)
    one = libmoe.torch.MoE(16, 24, 4, 2)
    for module in (
        one,
        libmoe.torch.MoE(16, 24, 4, 1),
        libmoe.torch.MoE(16, 24, 4, 2, seed=3),
        copy.deepcopy(one),
    ):
        torch.testing.assert_close(run(module, x), module(x), rtol=0, atol=0)
    torch.testing.assert_close(run(one.bfloat16(), x), one(x), rtol=0, atol=0)


def test_compile_leaves_calls_with_more_out_of_its_graph() -> None:
    torch._dynamo.reset()
    moe, x = libmoe.torch.MoE(16, 24, 4, 2), torch.randn(5, 16)
    run = torch.compile(lambda x: moe(x * 2, report=True), backend="aot_eager")
    (y, report), (z, wanted) = run(x), moe(x * 2, report=True)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(report.aux_loss, wanted.aux_loss)
