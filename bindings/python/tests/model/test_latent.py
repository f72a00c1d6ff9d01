"""Multi-head latent attention: as it is trained and as it is used, against float64 and against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from models_against_oracle import assert_backward, truth_of

import libmoe
from comparison import assert_all_close, assert_close
from latent_models import CASES, DENSE, LATENT, READING
from small_language_models import assert_same_bits_anyhow, assert_slope, call_of, made, masked


def names(model: libmoe.Model, layer: int = 0) -> dict[str, tuple[int, ...]]:
    prefix = f"layers.{layer}.attention."
    return {
        name.removeprefix(prefix): parameter.data.shape
        for name, parameter in model.parameters.items()
        if name.startswith(prefix)
    }


def test_parameters() -> None:
    with libmoe.Context(n_threads=1) as context:
        assert list(names(libmoe.Model(**CASES["biases, untied"], context=context)).items()) == [
            ("q_a.weight", (10, 12)),
            ("q_a.bias", (10,)),
            ("q_a_norm.weight", (10,)),
            ("q_b.weight", (3 * 7, 10)),
            ("kv_a.weight", (6 + 4, 12)),
            ("kv_a.bias", (10,)),
            ("kv_a_norm.weight", (6,)),
            ("kv_b.weight", (3 * (3 + 5), 6)),
            ("output.weight", (12, 3 * 5)),
            ("output.bias", (12,)),
        ]
        assert names(libmoe.Model(**CASES["queries from the hidden state"], context=context)) == {
            "q_b.weight": (3 * 7, 12),
            "kv_a.weight": (6 + 4, 12),
            "kv_a_norm.weight": (6,),
            "kv_b.weight": (3 * (3 + 7), 6),
            "output.weight": (12, 3 * 7),
        }


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case: str, with_masks: bool) -> None:
    """Forward in both forms, and all gradients."""
    arguments = CASES[case]
    call = masked(call_of(arguments)) if with_masks else call_of(arguments)
    with libmoe.Context(n_threads=2) as context:
        model = made(arguments, context)
        truth = truth_of(arguments, model.state_dict(), call)
        for tape in (None, True):
            output = model.forward(**call, tape=tape, hidden=True, logits=bool(model.vocabulary_size))
            assert output.hidden is not None
            assert_close("hidden", output.hidden, truth.hidden)
            assert_close("objective", output.objective, truth.objective)
            if output.logits is not None:
                assert_close("logits", output.logits, truth.logits)
        assert_backward(model, output, truth)


def test_dropout() -> None:
    arguments = {**LATENT, "dropout": 0.2, "attention_dropout": 0.3}
    call = {**call_of(arguments), "training": True, "step": 11}
    with libmoe.Context(n_threads=2) as context:
        model = made(arguments, context)
        truth = truth_of(arguments, model.state_dict(), call)
        for tape in (None, True):
            output = model.forward(**call, tape=tape)
            assert_close("objective", output.objective, truth.objective)
        model.backward(output)
        found = {name: parameter.grad for name, parameter in model.parameters.items()}
        assert_all_close(found, truth.backward()[1], 2e-5)


def test_the_loss_falls_as_its_gradient_says() -> None:
    """Finite differences of the form that is used, and gradients of the one that is trained."""
    moe = {**LATENT["moe"], "balance_coef": 0.0, "z_coef": 0.0, "top_k": 4}
    arguments = {**CASES["biases, untied"], "moe": moe}
    with libmoe.Context(n_threads=1) as context:
        model = made(arguments, context)
        call = call_of(arguments)
        model.backward(model.forward(**call, tape=True))
        checked = 0
        for name in model.parameters:
            if "attention" in name:
                assert_slope(model, call, name)
                checked += 1
        assert checked == 20


@pytest.mark.parametrize("tape", [True, False])
def test_the_same_bits(tape: bool) -> None:
    arguments = {**CASES["biases, untied"], "attention_dropout": 0.1, "dropout": 0.1}
    kept = assert_same_bits_anyhow(arguments, tape=tape)
    if tape:
        assert set().union(*kept) == {"all", "lean", "input"}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_memory_is_what_was_promised(share: float, training: bool) -> None:
    with libmoe.Context(n_threads=2) as context:
        model = made(LATENT, context)
        call = call_of(LATENT, 4, 200)
        plan = model.plan(4, 200, training=training)
        with pytest.raises(libmoe.InvalidArgumentError) as refusal:
            model.plan(4, 200, training=training, memory_limit=1)
        least = int(str(refusal.value).split()[-1])
        call["memory_limit"] = int(least + share * (plan.total_bytes - least))
        plan = model.plan(4, 200, training=training, memory_limit=call["memory_limit"])
        tape = model.tape() if training else None
        before, _ = context.memory()
        output = model.forward(**call, training=training, tape=tape)
        if training:
            model.backward(output)
        after, peak = context.memory()
        assert peak == before + plan.total_bytes
        assert training or plan.tape_bytes == 0
        del output, after


def test_long_prompts_have_no_wide_row_for_every_head() -> None:
    """Queries as they meet latents are wide: never do all heads' exist at once."""
    heads, rank, tokens = 32, 512, 2048
    with libmoe.Context(n_threads=1) as context:
        arguments = {**LATENT, "n_heads": heads, "latent_rank": rank, "n_layers": 1}
        model = libmoe.Model(**arguments, inference_only=True, context=context)
        plan = model.plan(1, tokens, training=False)
        assert plan.forward_bytes < 4 * tokens * heads * rank / 4


def read_in(model: libmoe.Model, tokens: Any, pieces: list[int]) -> list[Any]:
    cache = model.cache(*tokens.shape)
    found, start = [], 0
    for size in pieces:
        found.append(model.read(cache, tokens[:, start : start + size].copy()))
        start += size
    return found


@pytest.mark.parametrize("case", READING)
def test_reading_token_by_token_gives_the_bits_of_forward(case: str) -> None:
    arguments = CASES[case]
    with libmoe.Context(n_threads=2) as context:
        model = made(arguments, context)
        tokens = call_of(arguments)["tokens"]
        logits = model.forward(tokens, logits=True).logits
        assert logits is not None
        found = read_in(model, tokens, [4, 1, 1, 2, 1])
        for logit, t in zip(found, (3, 4, 5, 7, 8)):
            np.testing.assert_array_equal(logit, logits[:, t])
        cache = model.cache(*tokens.shape)
        model.read(cache, tokens)
        cache.truncate(5)
        np.testing.assert_array_equal(model.read(cache, tokens[:, 5:].copy()), logits[:, -1])


@pytest.mark.parametrize("weight_dtype", ["f32", "bf16"])
def test_pieces_of_any_size_read_the_same_bits(weight_dtype: str) -> None:
    """As many heads at once as fit, over several blocks of keys."""
    arguments = {**LATENT, "n_heads": 5, "weight_dtype": weight_dtype}
    tokens = call_of(arguments, 2, 700)["tokens"]
    with libmoe.Context(n_threads=3) as context:
        model = libmoe.Model(**arguments, init_deviation=0.3, context=context)
        logits = model.forward(tokens, logits=True).logits
        assert logits is not None
        for pieces in ([700], [1, 699], [300, 1, 1, 398], [128, 200, 200, 171, 1]):
            np.testing.assert_array_equal(read_in(model, tokens, pieces)[-1], logits[:, -1])


@pytest.mark.parametrize("case", READING)
def test_a_padded_batch_gives_each_sequence_its_own_bits(case: str) -> None:
    arguments = CASES[case]
    random = np.random.default_rng(3)
    prompts = [random.integers(0, 17, n).astype(np.int32) for n in (9, 4, 1)]
    with libmoe.Context(n_threads=2) as context:
        model = made(arguments, context)
        for left in (True, False):
            tokens, valid = np.zeros((3, 9), np.int32), np.zeros((3, 9), bool)
            for row, prompt in enumerate(prompts):
                place = slice(9 - len(prompt), 9) if left else slice(0, len(prompt))
                tokens[row, place], valid[row, place] = prompt, True
            together = model.forward(tokens, valid_mask=valid, logits=True).logits
            cache = model.cache(3, 12)
            read = model.read(cache, tokens, valid_mask=valid)
            nexts = np.array([[5], [6], [7]], np.int32)
            then = model.read(cache, nexts)
            assert together is not None
            for row, prompt in enumerate(prompts):
                alone = model.forward(prompt[None], logits=True).logits
                assert alone is not None
                np.testing.assert_array_equal(together[row][valid[row]], alone[0])
                np.testing.assert_array_equal(read[row], alone[0, -1])
                more = model.forward(np.append(prompt, nexts[row])[None], logits=True).logits
                assert more is not None
                np.testing.assert_array_equal(then[row], more[0, -1])


@pytest.mark.parametrize("case", READING)
def test_the_cache_holds_latents(case: str) -> None:
    """L + R numbers of a token in each layer, and one byte that tells padding."""
    arguments = CASES[case]
    with libmoe.Context(n_threads=1) as context:
        model = libmoe.Model(**arguments, context=context)

        def taken(length: int) -> int:
            before, _ = context.memory()
            cache = model.cache(2, length)
            after, _ = context.memory()
            cache.close()
            return int(after - before)

        rotary = (arguments["rotary_tables"] or [{"rotary_size": 0}])[0]["rotary_size"]
        numbers = arguments["latent_rank"] + rotary
        lengths = (320, 64) if not arguments.get("max_positions") else (40, 8)
        per_token = 2 * (4 * numbers * arguments["n_layers"] + 1)
        assert taken(lengths[0]) - taken(lengths[1]) == (lengths[0] - lengths[1]) * per_token


def test_generating() -> None:
    with libmoe.Context(n_threads=1) as context:
        model = made(LATENT, context)
        tokens = [3, 1, 4]
        for token in list(model.generate([3, 1, 4], 6, temperature=0)):
            logits = model.forward(np.array([tokens], np.int32), logits=True).logits
            assert logits is not None and token == logits[0, -1].argmax()
            tokens.append(token)


def test_bfloat16() -> None:
    """Both forms compute what a float32 model with these weights does."""
    arguments = {**LATENT, "tied_output": False, "hidden_size": 32, "latent_rank": 33, "query_rank": 31}
    call = call_of(arguments)
    with libmoe.Context(n_threads=2) as context:
        half = libmoe.Model(**arguments, weight_dtype="bf16", init_deviation=0.2, context=context)
        whole = libmoe.Model(**arguments, context=context)
        for name, parameter in half.parameters.items():
            narrow = parameter.data.dtype == np.uint16
            assert narrow or "attention" not in name or "norm" in name, name
            whole.parameters[name].data[...] = (
                libmoe.from_bfloat16(parameter.data) if narrow else parameter.data
            )
        for tape in (None, True):
            outputs = [model.forward(**call, tape=tape, logits=True) for model in (half, whole)]
            assert outputs[0].logits is not None and outputs[1].logits is not None
            assert_close("logits", outputs[0].logits, outputs[1].logits, 0.02)
        for model, output in zip((half, whole), outputs):
            model.backward(output)
        for name, parameter in whole.parameters.items():
            assert_close(name, half.parameters[name].grad, parameter.grad, 0.06)


@pytest.mark.parametrize("matmul", ["openblas", "reference"])
def test_other_products(matmul: Any) -> None:
    arguments = {**LATENT, **DENSE}  # no choice that rounding could turn
    call = call_of(arguments, 2, 140)
    with libmoe.Context(n_threads=2) as context, libmoe.Context(n_threads=2, matmul=matmul) as other:
        models = [made(arguments, each) for each in (context, other)]
        for tape in (None, True):
            ours, theirs = (model.forward(**call, tape=tape, logits=True) for model in models)
            assert ours.logits is not None and theirs.logits is not None
            assert_close("logits", theirs.logits, ours.logits)
        for model, output in zip(models, (ours, theirs)):
            model.backward(output)
        found, expected = (
            {name: parameter.grad for name, parameter in model.parameters.items()} for model in models
        )
        assert_all_close(expected, found, 2e-5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"latent_rank": 0}, "query_rank = 10, but latent_rank = 0"),
        ({"latent_rank": 0, "query_rank": 0, "latent_norm_epsilon": 1.0}, "latent_norm_epsilon = 1, but"),
        ({"latent_norm_epsilon": -1.0}, "latent_norm_epsilon = -1"),
        ({"n_heads": 4, "n_kv_heads": 2, "head_size": 6}, "n_kv_heads = 2, but with latent_rank"),
        ({"n_kv_heads": 1}, "set 0 or n_heads = 3"),
        ({"rotary_tables": None, "rope_theta": 1e4, "head_size": 6}, "rope_theta = 10000, but with latent"),
        ({"qk_norm": True}, "qk_norm = 'head', but with latent_rank"),
        ({"head_size": 4}, "is all of head_size = 4"),
        (
            {"rotary_tables": [{"rotary_size": 4, "theta": 1e4}, {"rotary_size": 2, "theta": 1e4}]},
            r"rotary_tables\[1\].rotary_size = 2",
        ),
        ({"latent_rank": 2**31 - 1}, r"latent_rank \+ rotary_size = 2147483651 exceeds"),
        ({"query_rank": -1}, "query_rank = -1"),
        ({"latent_rank": -1}, "latent_rank = -1"),
    ],
)
def test_contradictions(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match=text):
        libmoe.Model(**{**LATENT, **changes})


def test_a_score_that_is_not_finite_is_named_by_its_head() -> None:
    with libmoe.Context(n_threads=1) as context:
        model = made(LATENT, context)
        model.parameters["layers.1.attention.q_b.weight"].data[7 * 2] = np.nan
        for tape in (True, None):
            for s in (9, 600):  # all heads at once, or one after the other
                with pytest.raises(libmoe.NotFiniteError, match="layers.1: .*head 2, query 0"):
                    model.forward(**call_of(LATENT, 2, s), tape=tape)
