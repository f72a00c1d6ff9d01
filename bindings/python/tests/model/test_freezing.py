"""Frozen parameters: no gradient, no product, no moments; and the others as they are anyway."""

from __future__ import annotations

import copy
import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latent_models
import libmoe
from comparison import assert_all_same_bits
from small_language_models import CASES, DENSE, LANGUAGE, MOE, backward, call_of, made

EXPERTS: dict[str, Any] = dict(n_experts=4, top_k=2, intermediate_size=10)
ROUTERS: dict[str, dict[str, Any]] = {
    "hierarchical": dict(router="hierarchical", n_groups=2, top_groups=2, router_bias=True),
    "batch norm": dict(router_batch_norm=True),
    "norm of its own": dict(router_norm="rms_weight"),
    "learned noise, scales": dict(noise="learned", expert_scale=True, output_bias=True),
    "equal weights": dict(router="hash", router_weights="equal", expert_scale=True, vocabulary_size=17),
    "shared, gated": dict(n_shared_experts=2, shared_gate="sigmoid", expert_bias=True, dropout=0.2),
    "shared, residual": dict(n_shared_experts=1, shared_gate="residual"),
    "linear": dict(expert_kind="linear", intermediate_size=0, expert_bias=True, weight_on_input=True),
    "groups": dict(
        intermediate_size=0,
        expert_groups=[
            dict(n_experts=2, expert_kind="mlp", intermediate_size=10),
            dict(n_experts=2, expert_kind="constant"),
        ],
    ),
}
MODELS: dict[str, dict[str, Any]] = {
    **CASES,
    **{f"{name}, latent": case for name, case in latent_models.CASES.items()},
    **{name: {**LANGUAGE, "head_size": 4, "moe": {**EXPERTS, **router}} for name, router in ROUTERS.items()},
    "dropout": {**CASES["every second"], "dropout": 0.2, "attention_dropout": 0.3},
    "halves": {**CASES["language"], "weight_dtype": "bf16", "embedding_dtype": "bf16"},
}
ALL_BUT_NORMS = ("embed.weight", "*.attention.*", "*.ffn.*")


def trained(model: libmoe.Model, arguments: dict[str, Any]) -> Any:
    """Add to the gradients, and return that of the input."""
    output = model.forward(**call_of(arguments), tape=True, hidden=True, training=True, step=3)
    return backward(model, output)[0]


def gradients(arguments: dict[str, Any], frozen: list[str], context: libmoe.Context) -> dict[str, bytes]:
    """Bits of all gradients that there are, of a new model."""
    model = libmoe.Model(**arguments, context=context)
    before = model.state_dict()
    assert model.freeze(*reversed(frozen)) == frozen
    d_input = trained(model, arguments)
    parameters = model.parameters
    assert [name for name, parameter in parameters.items() if parameter.frozen] == frozen
    for name in frozen:
        assert parameters[name].data.tobytes() == before[name].tobytes()
        with pytest.raises(libmoe.BadStateError, match=f"{re.escape(name)}: is frozen"):
            _ = parameters[name].grad
    found = {name: p.grad.tobytes() for name, p in parameters.items() if name not in frozen}
    return found if d_input is None else {**found, "the input": d_input.tobytes()}


def kinds(names: list[str]) -> list[str]:
    """One parameter of each kind, those of the last layer that has it."""
    return list({re.sub(r"layers\.\d+", "layers", name): name for name in names}.values())


def assert_same_bits(case: str, context: libmoe.Context, *, alone: bool) -> None:
    """Whatever is frozen; `alone`: with one parameter of each kind trained alone, too."""
    arguments = MODELS[case]
    whole = gradients(arguments, [], context)
    names = [name for name in whole if name != "the input"]
    assert sum(any(whole[name]) for name in names) > len(names) / 2
    parts = [names[::2], names[1::2], *([name] for name in kinds(names) if alone)]
    for part in parts:
        found = gradients(arguments, [name for name in names if name not in part], context)
        assert found == {name: whole[name] for name in whole if name in part or name == "the input"}, part


@pytest.mark.parametrize("case", MODELS)
def test_what_is_trained_has_the_same_bits(case: str) -> None:
    with libmoe.Context(n_threads=1) as context:
        assert_same_bits(case, context, alone=True)


@pytest.mark.parametrize("case", ["capped and biased", "linear", "groups", "shared, gated", "halves"])
def test_so_it_has_with_other_products(case: str) -> None:
    with libmoe.Context(n_threads=1, matmul="reference") as context:
        assert_same_bits(case, context, alone=False)
    with libmoe.Context(n_threads=2) as context:
        assert_same_bits(case, context, alone=False)


def test_it_is_the_memory_of_the_gradients() -> None:
    with libmoe.Context(n_threads=1) as context:
        model = made(MODELS["language"], context)
        bytes_of = {name: 4 * p.data.size for name, p in model.parameters.items()}
        before, _ = context.memory()
        frozen = model.freeze(*ALL_BUT_NORMS)
        after, _ = context.memory()
        assert 20 < len(frozen) < len(bytes_of)
        assert before - after == sum(bytes_of[name] for name in frozen)
        assert model.freeze("embed.*", "norm.weight") == ["embed.weight", "norm.weight"]
        assert after - context.memory()[0] == bytes_of["norm.weight"]


@pytest.mark.parametrize("part", [["*"], ["*.ffn.*", "*.attention.*"], ["*.up.*"]])
@pytest.mark.parametrize("case", ["language", "capped and biased", "latent, latent", "every second"])
def test_a_call_takes_what_was_planned(case: str, part: list[str]) -> None:
    with libmoe.Context(n_threads=2) as context:
        model = made(MODELS[case], context)
        planned = model.plan(4, 50).total_bytes
        model.freeze(*part)
        assert model.plan(4, 50).total_bytes == planned
        tape = model.tape()
        before, _ = context.memory()
        model.backward(model.forward(**call_of(MODELS[case], 4, 50), training=True, tape=tape))
        after, peak = context.memory()
        assert peak == after == before + planned


def products(*frozen: str, **more: Any) -> dict[str, float]:
    """Floating-point operations of a backward, by phase."""
    arguments = {**LANGUAGE, **DENSE, "n_layers": 4, "head_size": 4, "moe": MOE, "moe_every": 2, **more}
    with libmoe.Context(n_threads=1) as context:
        model = made(arguments, context)
        if frozen:
            model.freeze(*frozen)
        output = model.forward(**call_of(arguments), tape=True)
        with context.profile() as profile:
            model.backward(output)
        return {p.phase: p.gflops * p.seconds for p in profile.phases if p.backward and p.gflops}


def test_products_of_frozen_weights_are_left_out() -> None:
    whole, norms = products(), products(*ALL_BUT_NORMS)
    for phase in ("projection", "gate/up", "down", "loss"):
        assert norms[phase] == pytest.approx(whole[phase] / 2), phase
    assert norms["attention"] == pytest.approx(whole["attention"])


@pytest.mark.parametrize("first", range(5))
def test_backward_ends_where_nothing_is_trained_before(first: int) -> None:
    """At layer `first` of 4, of which the norms are frozen and a part of the ffn is not."""
    frozen = [f"layers.{n}.*" for n in range(first)]
    if first < 4:
        frozen += [f"layers.{first}.norm*", f"layers.{first}.attention.*", f"layers.{first}.ffn.*.up.*"]
    found, whole = products("embed.weight", *frozen), products()
    assert found.get("attention", 0) == pytest.approx(whole["attention"] * (4 - first) / 4)
    assert found["loss"] == pytest.approx(whole["loss"] / 2)


def test_optimisers_leave_them_out() -> None:
    with libmoe.Context(n_threads=1) as context:
        frozen = ["embed.weight", "layers.1.attention.qkv.weight", "layers.2.ffn.router.weight"]
        steps: list[dict[str, Any]] = []
        for freezes in (True, False):
            model = made(MODELS["language"], context)
            if freezes:
                model.freeze(*frozen)
            listed = {n: p for n, p in model.parameters.items() if freezes or n not in frozen}
            for make in (libmoe.AdamW, libmoe.Muon):
                decayed = [p for name, p in listed.items() if "norm" in name or name in frozen]
                groups: Any = [{"parameters": decayed, "weight_decay": 0.5}]
                optimizer = make(listed, 0.1, groups=groups, context=context)
                model.zero_grad()
                trained(model, MODELS["language"])
                norm = optimizer.step(max_norm=1.0)
                assert libmoe.clip_grad_norm(listed, 1.0, context=context) == norm
            steps.append({**model.state_dict(), "bytes": optimizer.state_size})
        first = made(MODELS["language"], context).state_dict()
        assert steps[0].keys() == steps[1].keys() and steps[0]["bytes"] == steps[1]["bytes"]
        for name, values in first.items():
            assert np.array_equal(steps[0][name], values) == (name in frozen), name
            np.testing.assert_array_equal(steps[0][name], steps[1][name], name)


def test_a_gradient_that_is_in_use_is_not_freed() -> None:
    model = libmoe.Model(**LANGUAGE, moe=MOE)
    optimizer = libmoe.SGD(model.parameters)
    with pytest.raises(libmoe.BadStateError, match="embed.weight: its gradient is still in use by"):
        model.freeze("norm.weight", "*")
    assert not any(parameter.frozen for parameter in model.parameters.values())
    del optimizer
    gc.collect()
    # Of the caller's memory nothing is freed: an optimiser finds out when it steps.
    mine = np.zeros(12, np.float32)
    model.bind("norm.weight", np.ones(12, np.float32), mine)
    optimizer = libmoe.SGD({"norm": model.parameters["norm.weight"]})
    model.freeze("norm.*")
    says = r"tensors\[0\] \(norm.weight\) is frozen, so that it has no gradient"
    with pytest.raises(libmoe.InvalidArgumentError, match=says):
        optimizer.step()
    with pytest.raises(libmoe.InvalidArgumentError, match="there is none to train"):
        libmoe.SGD({"norm": model.parameters["norm.weight"]})
    trained(model, LANGUAGE)
    assert not mine.any()


def test_a_gradient_that_is_bound_is_trained_again() -> None:
    arguments = MODELS["language"]
    with libmoe.Context(n_threads=2) as context:
        whole, part = made(arguments, context), made(arguments, context)
        trained(whole, arguments)
        name, other = "layers.1.ffn.experts.up.weight", "layers.1.attention.output.weight"
        part.freeze("*")
        values = part.parameters[name].data
        part.bind(name, values, np.zeros(values.shape, np.float32))
        assert np.shares_memory(part.parameters[name].data, values)
        grad = np.zeros(whole.parameters[other].data.shape, np.float32)
        part.bind(other, part.parameters[other].data.copy(), grad)
        part.zero_grad()
        trained(part, arguments)
        assert {n for n, p in part.parameters.items() if not p.frozen} == {name, other}
        for each in (name, other):
            assert part.parameters[each].grad.tobytes() == whole.parameters[each].grad.tobytes()
        assert grad.any()
        part.freeze(other)
        before = grad.copy()
        trained(part, arguments)
        np.testing.assert_array_equal(grad, before)


def test_a_layer_of_a_model_goes_back_without_them() -> None:
    arguments = MODELS["language"]
    x, dy = np.random.default_rng(1).standard_normal((2, 9, 12)).astype(np.float32)
    found = []
    for frozen in ([], ["layers.0.ffn.experts.*.weight", "layers.0.ffn.router.*"]):
        with libmoe.Context(n_threads=1) as context:
            model = made({**arguments, "moe": {**MOE, "expert_bias": True}}, context)
            model.freeze(*frozen)
            layer = model.layers[0]
            assert layer is not None
            tape = layer.tape()
            layer.forward(x, tape=tape)
            dx = layer.backward(tape, dy)
            assert dx is not None
            biases = {n: p.grad.copy() for n, p in layer.parameters.items() if "experts" in n and "bias" in n}
            found.append({"dx": dx, **biases})
            assert layer.parameters["router.weight"].frozen == bool(frozen)
    assert found[0].keys() == found[1].keys() and len(found[0]) == 4
    assert_all_same_bits(found[1], found[0])


def test_a_training_state_has_their_values(tmp_path: Path) -> None:
    arguments = MODELS["language"]
    with libmoe.Context(n_threads=1) as context:
        models = [made(arguments, context), libmoe.Model(**{**arguments, "seed": 8}, context=context)]
        for model in models:
            model.freeze("embed.weight", "*.experts.*")
        trained(models[0], arguments)

        def parts(model: libmoe.Model) -> dict[str, Any]:
            outside = [p for name, p in model.parameters.items() if ".ffn." not in name]
            return {"parameters": outside, "context": context}

        libmoe.save_training(tmp_path / "state", step=3, **parts(models[0]))
        assert libmoe.load_training(tmp_path / "state", **parts(models[1])) == 3
        saved, loaded = (model.parameters["embed.weight"].data for model in models)
        np.testing.assert_array_equal(saved, loaded)
        assert models[1].parameters["embed.weight"].frozen
        assert not copy.deepcopy(models[1]).parameters["embed.weight"].frozen


def test_wrong_calls() -> None:
    model = libmoe.Model(**LANGUAGE, moe={**MOE, "selection_bias": True})
    says = re.escape(
        "patterns[1]: no parameter is called '*.router.selection_bias'; names are such as embed.weight, "
    )
    with pytest.raises(libmoe.InvalidArgumentError, match=says):
        model.freeze("embed.*", "*.router.selection_bias")  # a buffer is never trained
    with pytest.raises(
        TypeError, match=re.escape("patterns[0]: expected a str, got list; use freeze(*patterns)")
    ):
        model.freeze(["embed.*"])  # type: ignore[arg-type]
    assert model.freeze() == [] and not any(p.frozen for p in model.parameters.values())
    with pytest.raises(libmoe.BadStateError, match="inference_only"):
        libmoe.Model(**LANGUAGE, moe=MOE, inference_only=True).freeze("*")
    model.close()
    with pytest.raises(libmoe.BadStateError, match="closed"):
        model.freeze("*")
