"""Whole models against float64, and the same bits however they are computed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_against_oracle import assert_backward, truth_of

import libmoe
from comparison import assert_close
from small_language_models import CASES, MOE, assert_same_bits_anyhow, assert_slope, call_of, made, masked

NEW = [
    "heads normed together",
    "heads normed after rotation",
    "two layers of three rotate",
    "scaled",
    "capped and biased",
    "gated attention",
    "layers of many widths",
    "rotary tables",
    "long rotary",
    "windows and chunks",
    "sinks",
    "wide values",
]


def compare(arguments: dict[str, Any], call: dict[str, Any], d_objective: float = 1.0) -> None:
    with libmoe.Context(n_threads=2) as context:
        model = made(arguments, context)
        truth = truth_of(arguments, model.state_dict(), call)
        output = model.forward(**call, tape=True, hidden=True, logits=bool(model.vocabulary_size))
        assert output.hidden is not None
        assert_close("hidden", output.hidden, truth.hidden)
        if output.logits is not None:
            assert_close("logits", output.logits, truth.logits)
        for name in ("loss", "aux_loss", "pooled_balance_loss", "objective"):
            expected = truth.pooled if name == "pooled_balance_loss" else getattr(truth, name)
            assert_close(name, getattr(output, name), expected)
        assert output.n_targets == truth.n_targets
        assert_backward(model, output, truth, d_objective)


@pytest.mark.parametrize("case", CASES)
def test_against_float64(case: str) -> None:
    compare(CASES[case], call_of(CASES[case]), 1.5)


@pytest.mark.parametrize("case", ["language", "encoder after", "attention alone"])
def test_masks(case: str) -> None:
    call = masked(call_of(CASES[case]))
    if "targets" in call:
        call["label_smoothing"] = 0.1
    compare(CASES[case], call)


@pytest.mark.parametrize("case", ["language", "encoder after", "every second"])
def test_dropout(case: str) -> None:
    arguments = {**CASES[case], "dropout": 0.2, "attention_dropout": 0.3}
    compare(arguments, {**call_of(arguments), "training": True, "step": 11})


@pytest.mark.parametrize("case", ["normed heads", *NEW])
def test_the_loss_falls_as_its_gradient_says(case: str) -> None:
    """Finite differences of the objective along random directions, in the library's own float32."""
    arguments = {**CASES[case], "moe": {**MOE, "balance_coef": 0.0, "z_coef": 0.0, "top_k": 4}}
    with libmoe.Context(n_threads=1) as context:
        model = made(arguments, context)
        call = call_of(arguments)
        model.backward(model.forward(**call, tape=True))
        for name in model.parameters:
            assert_slope(model, call, name)


@pytest.mark.parametrize(
    "case",
    [
        "normed heads",
        "encoder after",
        "every second",
        "attention alone",
        "gated attention",
        *NEW[2:3],
        NEW[6],
    ],
)
def test_the_same_bits(case: str) -> None:
    """Everything kept, less in some layers, and chunks."""
    arguments = {**CASES[case], "attention_dropout": 0.1}
    if case != "attention alone":
        arguments["dropout"] = 0.1
    kept = assert_same_bits_anyhow(arguments)
    assert len(kept) > 1
    assert any("input" in keep for keep in kept)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("case", ["language", "encoder after", *NEW])
def test_memory_is_what_was_promised(case: str, share: float) -> None:
    arguments = CASES[case]
    with libmoe.Context(n_threads=2) as context:
        model = made(arguments, context)
        call = call_of(arguments, 4, 200)
        plan = model.plan(4, 200)
        if share < 1:
            least = least_limit(model, plan.total_bytes)
            limit = int(least + share * (plan.total_bytes - least))
            plan = model.plan(4, 200, memory_limit=limit)
            assert plan.total_bytes <= limit
            call["memory_limit"] = limit
        tape = model.tape()
        before, _ = context.memory()
        output = model.forward(**call, training=True, tape=tape)
        model.backward(output)
        after, peak = context.memory()
        assert peak == after == before + plan.total_bytes


def least_limit(model: libmoe.Model, enough: int) -> int:
    too_small = 0
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        try:
            model.plan(4, 200, memory_limit=middle)
            enough = middle
        except libmoe.InvalidArgumentError:
            too_small = middle
    return enough


@pytest.mark.parametrize(
    "case", ["language", "untied, grouped heads, biases", "normed heads", "learned positions", *NEW]
)
def test_reading_token_by_token_gives_the_bits_of_forward(case: str) -> None:
    arguments = CASES[case]
    with libmoe.Context(n_threads=2) as context:
        model = made(arguments, context)
        tokens = call_of(arguments)["tokens"]
        logits = model.forward(tokens, logits=True).logits
        assert logits is not None
        cache = model.cache(*tokens.shape)
        first = model.read(cache, tokens[:, :4].copy())
        np.testing.assert_array_equal(first, logits[:, 3])
        for t in range(4, tokens.shape[1]):
            np.testing.assert_array_equal(model.read(cache, tokens[:, t : t + 1].copy()), logits[:, t])
        cache.truncate(5)
        again = model.read(cache, tokens[:, 5:].copy())
        np.testing.assert_array_equal(again, logits[:, -1])
        with pytest.raises(
            libmoe.InvalidArgumentError, match="n = 1 tokens behind 9 in a cache with max_length = 9"
        ):
            model.read(cache, tokens[:, :1].copy())


def test_generating() -> None:
    with libmoe.Context(n_threads=1) as context:
        model = made(CASES["language"], context)
        greedy = list(model.generate([3, 1, 4], 6, temperature=0))
        tokens = [3, 1, 4]
        for token in greedy:
            logits = model.forward(np.array([tokens], np.int32), logits=True).logits
            assert logits is not None and token == logits[0, -1].argmax()
            tokens.append(token)
        drawn = list(model.generate([3], 9, seed=4))
        assert drawn == list(model.generate([3], 9, seed=4))
        assert drawn != list(model.generate([3], 9, seed=5))


def test_bfloat16() -> None:
    """The weights of products are bfloat16; the model computes what one with these in float32 does."""
    arguments = {**CASES["every second"], "tied_output": False, "hidden_size": 32, "head_size": 16}
    call = call_of(arguments)
    with libmoe.Context(n_threads=2) as context:
        half = libmoe.Model(**arguments, weight_dtype="bf16", init_deviation=0.2, context=context)
        whole = libmoe.Model(**arguments, context=context)
        for name, parameter in half.parameters.items():
            matrix = "attention" in name or "experts" in name or name == "output.weight"
            matrix = matrix and name.endswith(".weight")
            assert (parameter.data.dtype == np.uint16) == matrix, name
            values = libmoe.from_bfloat16(parameter.data) if matrix else parameter.data
            whole.parameters[name].data[...] = values
        outputs = [model.forward(**call, tape=True, logits=True) for model in (half, whole)]
        assert outputs[0].logits is not None and outputs[1].logits is not None
        assert_close("logits", outputs[0].logits, outputs[1].logits, 0.02)
        assert_close("loss", outputs[0].loss, outputs[1].loss, 0.02)
        for model, output in zip((half, whole), outputs):
            model.backward(output)
        for name, parameter in whole.parameters.items():
            assert_close(name, half.parameters[name].grad, parameter.grad, 0.06)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_in_bfloat16(tied: bool) -> None:
    """The table is read as the float32 of the same values; a tied output is a product in bfloat16."""
    arguments = {**CASES["language"], "embedding_scale": 1.7, "tied_output": tied}
    call = call_of(arguments)
    with libmoe.Context(n_threads=2) as context:
        half = libmoe.Model(**arguments, embedding_dtype="bf16", init_deviation=0.3, context=context)
        whole = libmoe.Model(**arguments, context=context)
        assert half.parameters["embed.weight"].data.dtype == np.uint16
        for name, parameter in half.parameters.items():
            is_half = name == "embed.weight"
            assert (parameter.data.dtype == np.uint16) == is_half
            values = libmoe.from_bfloat16(parameter.data) if is_half else parameter.data
            whole.parameters[name].data[...] = values
        outputs = [model.forward(**call, tape=True, logits=True, hidden=True) for model in (half, whole)]
        np.testing.assert_array_equal(outputs[0].hidden, outputs[1].hidden)
        assert outputs[0].logits is not None and outputs[1].logits is not None
        if tied:
            assert_close("logits", outputs[0].logits, outputs[1].logits, 0.02)
        else:
            np.testing.assert_array_equal(outputs[0].logits, outputs[1].logits)
        for model, output in zip((half, whole), outputs):
            model.backward(output)
        gradients = [model.parameters["embed.weight"].grad for model in (half, whole)]
        assert gradients[0].dtype == np.float32
        assert_close("embed.weight", gradients[0], gradients[1], 0.02 if tied else 1e-6)


def test_embeddings_in_bfloat16_learn() -> None:
    """Steps far smaller than a bfloat16's last place add up in the optimiser's own float32."""
    arguments = {**CASES["language"], "embedding_dtype": "bf16"}
    with libmoe.Context(n_threads=2) as context:
        model = libmoe.Model(**arguments, context=context)
        before = libmoe.from_bfloat16(model.parameters["embed.weight"].data)
        optimizer = libmoe.SGD({"embed.weight": model.parameters["embed.weight"]}, 1e-5, context=context)
        call = call_of(arguments)
        expected = before.astype(np.float64)
        for _ in range(40):
            model.zero_grad()
            model.backward(model.forward(**call, tape=True), d_objective=100.0)
            expected -= 1e-5 * model.parameters["embed.weight"].grad
            optimizer.step()
        after = libmoe.from_bfloat16(model.parameters["embed.weight"].data)
        assert (after != before).any()
        np.testing.assert_allclose(after, expected, rtol=2.0**-8)


def test_a_hash_router_reads_the_tokens() -> None:
    table = np.arange(17 * 2, dtype=np.int32).reshape(17, 2) % 4
    moe = {**MOE, "router": "hash", "hash_table": table}
    arguments = {**CASES["language"], "moe": moe}
    with libmoe.Context(n_threads=1) as context:
        model = made(arguments, context)
        tokens = call_of(arguments)["tokens"]
        report = model.forward(tokens, logits=True).layers[2]
        assert report is not None
        np.testing.assert_array_equal(report.expert_indices, table[tokens.reshape(-1)])


def test_inference_only() -> None:
    arguments = CASES["every second"]
    with libmoe.Context(n_threads=1) as context:
        model = made(arguments, context)
        frozen = libmoe.Model(**arguments, inference_only=True, context=context)
        frozen.load_state_dict(model.state_dict())
        prompt = [3, 1, 4, 1]
        assert list(frozen.generate(prompt, 8, seed=1)) == list(model.generate(prompt, 8, seed=1))


def test_prepared_models_give_the_same_bits_and_notice_changes() -> None:
    arguments = CASES["every second"]
    with libmoe.Context(n_threads=1) as context:
        model = made(arguments, context)
        call = call_of(arguments)
        before = model.forward(**call, logits=True).logits
        model.prepare()
        np.testing.assert_array_equal(model.forward(**call, logits=True).logits, before)
        for n, name in ((1, "layers.1.ffn.experts.down.weight"), (2, "layers.2.ffn.experts.down.weight")):
            model.parameters[name].data[...] += 1
            with pytest.raises(libmoe.BadStateError, match=f"layers.{n}: .*prepare the layer again"):
                model.forward(**call)
            model.prepare()
        after = model.forward(**call, logits=True).logits
        assert after is not None and before is not None and after.tobytes() != before.tobytes()
        model.prepare("none")
        model.parameters["layers.1.ffn.experts.down.weight"].data[...] -= 1
        model.forward(**call)
        half = libmoe.Model(**arguments, weight_dtype="bf16", context=context)
        with pytest.raises(libmoe.InvalidArgumentError, match="'f32'"):
            half.prepare()
        before = half.forward(**call, logits=True).logits
        half.prepare("bf16")
        np.testing.assert_array_equal(half.forward(**call, logits=True).logits, before)


def test_layers_are_the_models_own() -> None:
    with libmoe.Context(n_threads=1) as context:
        model = made({**CASES["every second"], "moe": {**MOE, "selection_bias": True}}, context)
        assert [layer.n_experts for layer in model.layers] == [1, 4, 1]
        layer = model.layers[1]
        layer.update_selection_bias(np.array([9, 0, 0, 0]), 0.5)
        assert (
            model.buffers["layers.1.ffn.router.selection_bias"].tolist()
            == layer.buffers["router.selection_bias"].tolist()
        )
        bias = layer.buffers["router.selection_bias"]
        del model, layer
        assert np.isfinite(bias).all()  # the array keeps all of it alive


def test_offloaded_experts_give_the_bits_of_resident_ones(tmp_path: Path) -> None:
    arguments = CASES["layers of many widths"]
    moe = {**MOE, "unallocated": "expert_weights"}
    with libmoe.Context(n_threads=2) as context:
        model = made(arguments, context)
        away = libmoe.Model(**{**arguments, "moe": moe}, inference_only=True, context=context)
        call = call_of(arguments)
        with pytest.raises(libmoe.BadStateError, match="layers.2: experts.* has no memory"):
            away.forward(**call)
        elsewhere = [n for n, layer in enumerate(away.layers) if layer.n_experts > 1]
        for name, parameter in model.parameters.items():
            if not any(name.startswith(f"layers.{n}.ffn.") for n in elsewhere):
                away.parameters[name].data[...] = parameter.data
        for n in elsewhere:
            model.layers[n].save(tmp_path / f"{n}.safetensors")
            # Of one layer all experts fit, of the other two.
            limit = "1 MiB" if n == elsewhere[0] else 3072
            away.layers[n].offload(tmp_path / f"{n}.safetensors", resident_limit=limit)
        expected = model.forward(**call, logits=True)
        found = away.forward(**call, logits=True)
        assert found.loss == expected.loss
        np.testing.assert_array_equal(found.logits, expected.logits)
        assert [away.layers[n].offload_statistics.n_slots for n in elsewhere] == [4, 2]
        assert list(away.generate([3, 1], 6, temperature=0)) == list(model.generate([3, 1], 6, temperature=0))
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            pickle.dumps(away)
    with pytest.raises(libmoe.InvalidArgumentError, match="'expert_weights' with inference_only = True"):
        libmoe.Model(**{**arguments, "moe": moe})


def test_an_optimiser_lowers_the_loss() -> None:
    with libmoe.Context(n_threads=2) as context:
        model = libmoe.Model(**CASES["language"], context=context)
        optimizer = libmoe.AdamW(model.parameters, 2e-2, context=context)
        call, losses = call_of(CASES["language"]), []
        for step in range(30):
            model.zero_grad()
            output = model.forward(**call, training=True, step=step, tape=True)
            model.backward(output)
            optimizer.step(max_norm=1.0)
            losses.append(output.loss)
        assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("case", ["language", "encoder after", "attention alone"])
@pytest.mark.parametrize("training", [False, True])
def test_the_limit_that_a_refusal_names_will_do(case: str, training: bool) -> None:
    model = libmoe.Model(**CASES[case])
    with pytest.raises(libmoe.InvalidArgumentError) as refusal:
        model.plan(4, 200, training=training, memory_limit=1)
    least = int(str(refusal.value).split()[-1])
    assert model.plan(4, 200, training=training, memory_limit=least).total_bytes == least
    with pytest.raises(libmoe.InvalidArgumentError, match=f"need at least {least}"):
        model.plan(4, 200, training=training, memory_limit=least - 1)
    assert least <= model.plan(4, 200, training=training).total_bytes
