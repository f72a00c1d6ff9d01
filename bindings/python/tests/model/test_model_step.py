"""A model's backward and step in one: the bits of both, without the gradients of all experts at once."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from test_freezing import MODELS

import libmoe
from comparison import assert_all_same_bits
from pretrained_models import FOLDERS, reference
from small_language_models import DENSE, LANGUAGE, MOE, call_of

FACTOR = 0.37  # by which gradients are clipped
EXPERTS: dict[str, dict[str, Any]] = {name: case for name, case in MODELS.items() if case.get("moe")}
LIMITS: dict[str, Any] = {"whole": None, "in chunks": 256}


def without_gradients(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same model, which has no memory for the gradients of its experts."""
    return {**arguments, "moe": {**arguments["moe"], "unallocated": "expert_gradients"}}


def optimizer_of(model: libmoe.Model, kind: str) -> libmoe.Optimizer:
    """One with momentum and decay, so that experts without a token move too."""
    trained = [p for p in model.parameters.values() if not p.frozen]
    if kind == "sgd":
        return libmoe.SGD(trained, 0.05, momentum=0.9, weight_decay=0.1)
    if kind == "muon":
        return libmoe.Muon(trained, 0.01, weight_decay=0.1)
    return libmoe.AdamW(trained, 0.01, weight_decay=0.1)


def train(
    arguments: dict[str, Any],
    fused: bool,
    kind: str = "adamw",
    frozen: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What three steps leave behind, with gradients times FACTOR."""
    with libmoe.Context(n_threads=2) as context:
        model = libmoe.Model(**arguments, context=context)
        if frozen:
            model.freeze(frozen)
        optimizer, tape = optimizer_of(model, kind), model.tape()
        found: dict[str, Any] = {}
        for step in range(3):
            call = {**call_of(arguments), "training": True, "step": step, **more}
            output = model.forward(**call, tape=tape, hidden=True)
            assert output.hidden is not None
            d_hidden = np.random.default_rng(step).standard_normal(output.hidden.shape).astype(np.float32)
            if fused:
                d = model.backward(output, 1.5, d_hidden, optimizer=optimizer, clip_factor=FACTOR)
            else:
                model.zero_grad()
                d = model.backward(output, 1.5, d_hidden)
                for parameter in model.parameters.values():
                    if not parameter.frozen:
                        parameter.grad[...] *= np.float32(FACTOR)
                optimizer.step()
            found |= {} if d is None else {f"the input's gradient {step}": d}
        return found | model.state_dict()


@pytest.mark.parametrize("case", EXPERTS)
def test_the_bits_are_those_of_backward_and_step(case: str) -> None:
    assert_all_same_bits(train(without_gradients(EXPERTS[case]), True), train(EXPERTS[case], False))


@pytest.mark.parametrize("case", ["dense", "language", "every second"])
def test_a_model_with_all_its_gradients_steps_as_well(case: str) -> None:
    arguments = {**LANGUAGE, **DENSE} if case == "dense" else EXPERTS[case]
    assert_all_same_bits(train(arguments, True), train(arguments, False))


@pytest.mark.parametrize("kind", ["sgd", "muon"])
@pytest.mark.parametrize("limit", LIMITS)
def test_other_rules_and_chunks(limit: str, kind: str) -> None:
    """Of many tokens, so that an expert's gradient is a sum over chunks."""
    arguments = EXPERTS["shared, gated"]
    random = np.random.default_rng(5)
    many = {name: random.integers(0, 17, (3, 200)).astype(np.int32) for name in ("tokens", "targets")}
    how: dict[str, Any] = {**many, "chunk_tokens": LIMITS[limit] or 0}
    assert_all_same_bits(
        train(without_gradients(arguments), True, kind, **how), train(arguments, False, kind, **how)
    )


@pytest.mark.parametrize("frozen", ["*.attention.*", "*.experts.up.*", "layers.0.*", "*.ffn.*", "layers.*"])
def test_frozen_parameters_are_not_stepped(frozen: str) -> None:
    arguments = EXPERTS["every second"]
    expected = train(arguments, False, frozen=frozen)
    assert_all_same_bits(train(without_gradients(arguments), True, frozen=frozen), expected)


def test_memory_falls_by_the_gradients_of_the_experts() -> None:
    taken = []
    arguments = EXPERTS["every second"]
    for given in (arguments, without_gradients(arguments)):
        with libmoe.Context() as context:
            model = libmoe.Model(**given, context=context)
            taken.append(context.memory()[0])
            matrices = [p for name, p in model.parameters.items() if ".experts." in name]
    assert taken[0] - taken[1] == sum(4 * p.data.size for p in matrices) > 0


def test_the_promise_is_kept_to_the_byte() -> None:
    arguments = without_gradients(EXPERTS["every second"])
    with libmoe.Context(n_threads=2) as context:
        model = libmoe.Model(**arguments, context=context)
        tape, optimizer, call = model.tape(), optimizer_of(model, "adamw"), call_of(arguments)
        plan = model.plan(*call["tokens"].shape[:2])
        before, _ = context.memory()
        model.backward(model.forward(**call, tape=tape), optimizer=optimizer)
        assert context.memory()[1] - before == plan.total_bytes


def test_a_folders_model_is_trained_without_its_experts_gradients() -> None:
    tokens = reference("mixtral")["tokens"].astype(np.int32)
    found = []
    for unallocated in ((), "expert_gradients"):
        model = libmoe.Model.from_pretrained(FOLDERS / "mixtral", unallocated=unallocated)
        optimizer = libmoe.SGD(model.parameters, 0.1)
        model.backward(model.forward(tokens, tokens, tape=True, training=True), optimizer=optimizer)
        found.append(model.state_dict())
    assert_all_same_bits(*found)
    before = libmoe.Model.from_pretrained(FOLDERS / "mixtral").state_dict()
    assert not np.array_equal(
        before["layers.0.ffn.experts.up.weight"], found[0]["layers.0.ffn.experts.up.weight"]
    )
    with pytest.raises(libmoe.InvalidArgumentError, match="the folder's model has no experts"):
        libmoe.Model.from_pretrained(FOLDERS / "llama", unallocated="expert_gradients")
    with pytest.raises(libmoe.InvalidArgumentError, match="unallocated"):
        libmoe.Model.from_pretrained(FOLDERS / "mixtral", unallocated="expert_weights")


def test_what_does_not_fit_is_refused() -> None:
    arguments = without_gradients({"head_size": 4, **LANGUAGE, "moe": MOE})
    model = libmoe.Model(**arguments)
    before, output = model.state_dict(), model.forward(**call_of(arguments), tape=True)
    parameters = list(model.parameters.values())
    own = libmoe.AdamW(parameters)

    def refuse(error: type[Exception], match: str, output: Any = output, **options: Any) -> None:
        with pytest.raises(error, match=match):
            model.backward(output, **options)

    refuse(libmoe.BadStateError, "layers.0.ffn.experts.* has no memory for its gradient: bind it")
    some = libmoe.AdamW(parameters[:5])
    refuse(libmoe.InvalidArgumentError, "optimizer was created for 5 tensors, but the model", optimizer=some)
    turned = libmoe.AdamW(parameters[::-1])
    refuse(libmoe.InvalidArgumentError, "optimizer: its tensor 0 has", optimizer=turned)
    refuse(TypeError, "optimizer: expected a libmoe.Optimizer, got str", optimizer="adamw")
    others = libmoe.AdamW(libmoe.Model(**arguments).parameters)
    refuse(libmoe.InvalidArgumentError, "its embed.weight is not the embed.weight here", optimizer=others)
    with pytest.raises(libmoe.BadStateError, match="has no memory for its gradient"):
        model.clip_grad_norm(1.0)
    for factor in (-1.0, math.inf, math.nan, 1e-60):
        refuse(libmoe.InvalidArgumentError, "clip_factor", optimizer=own, clip_factor=factor)
    refuse(libmoe.InvalidArgumentError, "clip_factor = 0.5, but optimizer is None", clip_factor=0.5)
    for step in (own.step, functools.partial(own.step, max_norm=1.0)):
        named = r"^tensors\[\d+\] \(layers\.0\.ffn\.experts\..*\): grad is None: give it memory, or leave"
        with pytest.raises(libmoe.InvalidArgumentError, match=named):
            step()
    assert_all_same_bits(model.state_dict(), before)
    model.backward(output, optimizer=own)
    refuse(libmoe.BadStateError, "backward has stepped the parameters", optimizer=own)
    output = model.forward(**call_of(arguments), tape=True)
    model.prepare("int8")
    refuse(libmoe.BadStateError, "which is prepared in few bits", output, optimizer=own)
    model.prepare("none")
    with pytest.raises(libmoe.InvalidArgumentError, match="'expert_gradients'"):
        libmoe.Model(**arguments, inference_only=True)
