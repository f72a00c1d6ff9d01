"""Models trained around matrices in few bits: the gradients of a model with the values that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_against_oracle import assert_backward, truth_of
from numpy.typing import NDArray
from test_prepared import CONTEXTS, MODELS, call_of, is_packed

import libmoe
from comparison import assert_all_same_bits, assert_close
from oracle.low_bits import unpacked
from pretrained_models import loaded, reference
from small_language_models import backward, made

FORMS: list[Any] = ["int8", "int4_g64_a8", "nvfp4_a16"]


def twin_of(model: libmoe.Model, form: str, arguments: dict[str, Any], context: Any) -> libmoe.Model:
    """Return the model of float32 whose matrices are what the form keeps."""
    twin = libmoe.Model(**arguments, context=context)
    state = model.state_dict()
    twin.load_state_dict({n: unpacked(v, form) if is_packed(n) else v for n, v in state.items()})
    return twin


def step(model: libmoe.Model, call: dict[str, Any], **options: Any) -> dict[str, NDArray[Any]]:
    """All that a training step computes, but gradients of what is frozen."""
    output = model.forward(**call, tape=True, hidden=True, logits=True, training=True, step=5, **options)
    assert output.hidden is not None and output.logits is not None
    backward(model, output)
    found = {n: p.grad.copy() for n, p in model.parameters.items() if not is_packed(n)}
    return {"hidden": output.hidden, "logits": output.logits, "loss": np.array([output.loss]), **found}


@pytest.mark.parametrize("how", [how for how in CONTEXTS if how.get("matmul") != "openblas"][:5], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", MODELS)
def test_the_bits_of_a_model_with_these_values(case: str, form: Any, how: dict[str, Any]) -> None:
    if how.get("instructions") == "base":
        how = {**how, "matmul": "reference"}
    arguments, call = {**MODELS[case], "dropout": 0.1}, call_of(MODELS[case])
    with libmoe.Context(**how) as context:
        model = libmoe.Model(**arguments, context=context)
        twin = twin_of(model, form, arguments, context)
        model.prepare(form)
        assert {n for n, p in model.parameters.items() if p.frozen} == set(
            filter(is_packed, model.parameters)
        )
        assert_all_same_bits(step(model, call), step(twin, call))


@pytest.mark.parametrize("case", MODELS)
def test_less_on_the_tape_changes_no_bit(case: str) -> None:
    """What was not kept is computed again, from the same panels."""
    arguments, call = {**MODELS[case], "weight_dtype": "bf16"}, call_of(MODELS[case], 4, 60)
    with libmoe.Context(2) as context:
        model = libmoe.Model(**arguments, context=context)
        model.prepare("int4_a8")
        expected = step(model, call)
        enough = model.plan(4, 60).total_bytes
        kept = set()
        for limit in range(enough, 0, -enough // 20):
            try:
                keep = tuple(model.plan(4, 60, memory_limit=limit).keep)
            except libmoe.InvalidArgumentError:
                break
            if keep not in kept:
                model.zero_grad()
                assert_all_same_bits(step(model, call, memory_limit=limit), expected)
            kept.add(keep)
        assert any("input" in keep for keep in kept)


@pytest.mark.parametrize("case", MODELS)
def test_against_float64(case: str) -> None:
    arguments, call = MODELS[case], call_of(MODELS[case])
    with libmoe.Context(2) as context:
        model = made(arguments, context)
        twin = twin_of(model, "int4", arguments, context)
        truth = truth_of(arguments, twin.state_dict(), call)
        model.prepare("int4_a8")
        output = model.forward(**call, tape=True, hidden=True, logits=True)
        assert output.hidden is not None and output.logits is not None
        assert_close("logits", output.logits, truth.logits)
        assert_close("objective", output.objective, truth.objective)
        assert_backward(model, output, truth)


def test_the_loss_falls_as_the_gradient_says() -> None:
    """Finite differences of the loss, in the library's own float32, along all that is trained."""
    arguments = {
        **MODELS["untied"],
        "moe": {**MODELS["untied"]["moe"], "top_k": 4, "balance_coef": 0, "z_coef": 0},
    }
    call = call_of(arguments)
    model = libmoe.Model(**arguments)
    model.prepare("int4_a8")
    model.backward(model.forward(**call, tape=True))
    trained = {n: p for n, p in model.parameters.items() if not p.frozen}
    random = np.random.default_rng(2)
    directions = {n: random.standard_normal(p.data.shape).astype(np.float32) for n, p in trained.items()}
    slope = sum(float(np.vdot(p.grad.astype(np.float64), directions[n])) for n, p in trained.items())
    before = {n: p.data.copy() for n, p in trained.items()}
    losses = []
    size = 2.0**-11
    for sign in (1, -1):
        for name, parameter in trained.items():
            parameter.data[...] = before[name] + np.float32(sign * size) * directions[name]
        losses.append(model.forward(**call, tape=True).objective)
    assert (losses[0] - losses[1]) / (2 * size) == pytest.approx(slope, rel=0.02)


def test_an_optimizer_steps_the_rest() -> None:
    arguments, call = MODELS["untied"], call_of(MODELS["untied"])
    model = libmoe.Model(**arguments)
    before = model.state_dict()
    every = libmoe.AdamW(model.parameters)
    model.prepare("int4")
    adamw = libmoe.AdamW(model.parameters, learning_rate=0.02)
    losses = []
    for _ in range(5):
        model.zero_grad()
        output = model.forward(**call, tape=True)
        losses.append(output.loss)
        model.backward(output)
        adamw.step()
    assert losses == sorted(losses, reverse=True)
    after = model.state_dict()
    for name, values in before.items():
        assert (after[name].tobytes() == values.tobytes()) == is_packed(name), name
    with pytest.raises(libmoe.BadStateError, match="is frozen"):
        every.step()


def test_packed_between_forward_and_backward() -> None:
    model = libmoe.Model(**MODELS["untied"])
    call = call_of(MODELS["untied"])
    output = model.forward(**call, tape=True)
    model.prepare("int8")
    with pytest.raises(libmoe.BadStateError, match="prepared in few bits since forward"):
        model.backward(output)
    model.prepare("bf16")
    with pytest.raises(libmoe.BadStateError, match="tape.*'bf16'.*inference"):
        model.forward(**call, tape=True)


@pytest.mark.parametrize("arguments", MODELS.values(), ids=MODELS)
def test_a_call_takes_what_was_planned(arguments: dict[str, Any]) -> None:
    arguments = {**arguments, "weight_dtype": "bf16"}
    call = call_of(arguments)
    with libmoe.Context(n_threads=2) as context:
        model = libmoe.Model(**arguments, context=context)
        model.prepare("int4_a8")
        planned = model.plan(*call["tokens"].shape).total_bytes
        tape = model.tape()
        before, _ = context.memory()
        model.backward(model.forward(**call, tape=tape))
        after, peak = context.memory()
        assert peak == after == before + planned


# ------------------------------------------------------------------------------------------------------------
# From folders
# ------------------------------------------------------------------------------------------------------------

NAMES = ["olmoe", "gpt_oss", "deepseek_v3", "mistral", "qwen2_moe"]


def gradients_of(model: libmoe.Model, name: str) -> dict[str, NDArray[Any]]:
    tokens = reference(name)["tokens"]
    model.zero_grad()
    model.backward(model.forward(tokens, tokens, tape=True))
    return {n: p.grad.copy() for n, p in model.parameters.items() if not p.frozen}


@pytest.mark.parametrize("form", ["int8", "int4_zero_a8"])
@pytest.mark.parametrize("name", NAMES)
def test_read_saved_and_mapped(name: str, form: Any, tmp_path: Path) -> None:
    """What is kept packed alone has the gradients that it has beside its values."""
    whole = loaded(name)
    whole.prepare(form)
    expected = gradients_of(whole, name)
    small = loaded(name, prepared=form)
    assert {n for n, p in small.parameters.items() if p.frozen} == {
        n for n, p in whole.parameters.items() if p.frozen
    }
    assert_all_same_bits(gradients_of(small, name), expected)
    adamw = libmoe.AdamW(small.parameters, learning_rate=0.01)
    adamw.step()
    assert small.forward(reference(name)["tokens"], logits=True).logits is not None
    small.save_pretrained(tmp_path)
    again = libmoe.Model.from_pretrained(tmp_path)
    after = gradients_of(small, name)
    assert_all_same_bits(gradients_of(again, name), after)
    assert any(after[n].tobytes() != expected[n].tobytes() for n in after)


def test_what_has_no_form_is_trained() -> None:
    """A matrix that no pattern has keeps its values and its gradient."""
    parts: Any = {"layers.*.ffn.experts.*": "int4", "layers.0.attention.*": "int8_a8"}
    model = loaded("olmoe", prepared=parts)
    parameters = model.parameters
    assert not parameters["layers.1.attention.qkv.weight"].frozen
    assert parameters["layers.0.attention.qkv.weight"].frozen
    found = gradients_of(model, "olmoe")
    assert found["layers.1.attention.qkv.weight"].any() and found["embed.weight"].any()
    libmoe.AdamW(parameters).step()


@pytest.mark.parametrize("how", [{}, {"matmul": "reference"}], ids=str)
def test_matrices_in_few_bits_and_as_floats_together(how: dict[str, Any]) -> None:
    """Of experts with one matrix in few bits the others are float32 beside it, and frozen with it."""
    with libmoe.Context(2, **how) as context:
        model = loaded("olmoe", prepared={"*.down.weight": "int8"}, context=context)
        twin = loaded("olmoe", context=context)
        for name, parameter in twin.parameters.items():
            if name.endswith("down.weight"):
                parameter.data[...] = unpacked(parameter.data, "int8")
        found, expected = gradients_of(model, "olmoe"), gradients_of(twin, "olmoe")
        assert set(expected) - set(found) == {name for name in expected if ".ffn.experts." in name}
        assert_all_same_bits(found, {name: expected[name] for name in found})


def test_the_memory_of_gradients_is_that_of_what_is_trained() -> None:
    with libmoe.Context(1) as context:
        frozen = loaded("olmoe", inference_only=True, prepared="int8", context=context)
        alone, _ = context.memory()
        del frozen
        trained = loaded("olmoe", prepared="int8", context=context)
        gradients = sum(4 * p.data.size for p in trained.parameters.values() if not p.frozen)
        assert 0 <= context.memory()[0] - alone - gradients < 4096


def test_what_is_for_inference_is_said() -> None:
    for prepared in ("bf16", "f32", {"layers.0.*": "f32"}):
        with pytest.raises(
            libmoe.InvalidArgumentError, match="needs inference_only = True: training changes"
        ):
            loaded("olmoe", prepared=prepared)
