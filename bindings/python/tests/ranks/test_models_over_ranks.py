"""A model whose experts are spread over ranks has the bits of one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from ranked_models import alone, batch, require_same, steps, together

import libmoe
from ranked_layers import Part
from small_language_models import CASES, LANGUAGE, MOE

MODELS = {
    name: {**case, "hidden_size": 24} if case["n_heads"] == 4 else case
    for name, case in CASES.items()
    if "moe" in case
}
LATENT = {
    **LANGUAGE,
    "moe": MOE,
    "head_size": 10,
    "value_head_size": 6,
    "latent_rank": 9,
    "query_rank": 7,
    "qkv_bias": True,
    "rotary_tables": [{"theta": 100.0, "rotary_size": 4}],
}


def same(
    config: dict[str, Any], parts: list[int], placed: dict[str, Any] | None = None, **options: Any
) -> None:
    """Compare steps over ranks with those of one process."""
    use = partial(steps, config=config, count=sum(parts), **options)
    placed = placed or {}
    found = together(config, parts, use, **placed)
    replicated = placed.get("strategy") == "replicated"
    require_same(found, alone(config, sum(parts), use), config, replicated=replicated)


@pytest.mark.parametrize("parts", [[4], [3, 1], [0, 4], [2, 0, 2], [1, 1, 1, 1]], ids=str)
def test_any_division_of_sequences_has_the_bits_of_one_process(parts: list[int]) -> None:
    same(MODELS["language"], parts)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind(name: str) -> None:
    same(MODELS[name], [1, 0, 2])


def test_latent_attention() -> None:
    same(LATENT, [2, 1])


def test_experts_lie_anywhere() -> None:
    same(MODELS["every second"], [1, 2, 1], {"experts_per_rank": [0, 3, 1]})


@pytest.mark.parametrize("placed", [{"strategy": "replicated"}, {"hot_experts": [2, 0]}, {"hot_experts": 1}])
def test_other_ways_to_divide_experts(placed: dict[str, Any]) -> None:
    same(MODELS["every second"], [1, 2, 1], placed)


def test_sliced_experts_are_near_one_process() -> None:
    config = MODELS["every second"]

    def loss(model: libmoe.Model, part: Part) -> float:
        own = [part.of(array).copy() for array in batch(config, 4)]
        return float(model.forward(*own).loss)

    made = together(config, [1, 2, 1], loss, strategy="sliced")
    assert len(set(made)) == 1
    assert made[0] == pytest.approx(alone(config, 4, loss), rel=1e-5)


def test_random_numbers_go_by_the_place_among_all_sequences() -> None:
    config = {
        **MODELS["every second"],
        "hidden_size": 18,
        "n_heads": 3,
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "dense_dropout": 0.1,
        "moe": {**MOE, "dropout": 0.2, "noise": "learned", "jitter": 0.05},
    }
    same(config, [1, 2])


def test_shared_experts_capacity_and_selection_bias() -> None:
    moe = {**MOE, "n_shared_experts": 1, "capacity_formula": "megatron", "drop": "position", "top_k": 1}
    same({**LANGUAGE, "moe": {**moe, "score": "sigmoid", "selection_bias": True}}, [2, 1, 1])


def test_masks_and_padding() -> None:
    valid = np.ones((4, 8), np.bool_)
    valid[1, :3] = valid[3, 5:] = False

    def use(model: libmoe.Model, part: Part) -> Any:
        return steps(model, part, MODELS["language"], 4, valid_mask=part.of(valid).copy())

    config = MODELS["language"]
    require_same(together(config, [1, 2, 1], use), alone(config, 4, use), config)


def test_what_is_frozen_stays() -> None:
    config = MODELS["untied, grouped heads, biases"]

    def use(model: libmoe.Model, part: Part) -> Any:
        model.freeze(
            *(name for name in model.parameters if "attention" in name or name.startswith("layers.0"))
        )
        tokens, targets = (part.of(array).copy() for array in batch(config, 4))
        output = model.forward(tokens, targets, tape=True)
        model.backward(output)
        norm = model.clip_grad_norm(0.1)
        return norm, {n: p.grad.copy() for n, p in model.parameters.items() if not p.frozen}

    norm, gradients = alone(config, 4, use)
    for found, own in together(config, [2, 2], use):
        assert found == norm
        np.testing.assert_array_equal(own["output.weight"], gradients["output.weight"])
        np.testing.assert_array_equal(own["layers.1.norm2.weight"], gradients["layers.1.norm2.weight"])


def test_reading_and_writing_are_the_same_on_all_ranks() -> None:
    def use(model: libmoe.Model, _: Part) -> Any:
        cache = model.cache(1, 6)
        logits = model.read(cache, np.array([[3, 1, 4]], np.int32))
        return logits, list(model.generate([3, 1, 4], 5, temperature=0.9, seed=2))

    logits, written = alone(MODELS["language"], 0, use)
    for own, tokens in together(MODELS["language"], [0, 0], use):
        np.testing.assert_array_equal(own, logits)
        assert tokens == written


def test_the_norm_of_a_whole_model_is_that_of_its_parameters() -> None:
    def use(model: libmoe.Model, part: Part) -> Any:
        model.backward(model.forward(*batch(MODELS["language"], 4), tape=True))
        before = libmoe.clip_grad_norm(model.parameters, np.inf)
        return before, model.clip_grad_norm(0.3), libmoe.clip_grad_norm(model.parameters, np.inf)

    before, norm, after = alone(MODELS["language"], 4, use)
    assert norm == before > 0.3
    assert after == pytest.approx(0.3, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------
# Faults
# ------------------------------------------------------------------------------------------------------------


def said(model: libmoe.Model, part: Part, arrays: Any, **options: Any) -> Any:
    """Return what a step raises on a rank."""
    try:
        tokens, targets = (part.of(array).copy() for array in arrays)
        model.backward(model.forward(tokens, targets, tape=True, **options))
    except libmoe.MoeError as error:
        return type(error).__name__, str(error)
    return None


def test_what_one_rank_finds_wrong_is_the_error_of_all_and_the_model_goes_on() -> None:
    config = MODELS["language"]
    good = batch(config, 3)
    beyond = (good[0].copy(), good[1])
    beyond[0][1, 2] = 99

    def use(model: libmoe.Model, part: Part) -> Any:
        found = [said(model, part, beyond)]
        weight = model.parameters["layers.1.norm2.weight"].data
        kept = weight.copy()
        if part.rank == 2:
            weight[0] = np.nan
        found.append(said(model, part, good))
        weight[...] = kept
        found.append(said(model, part, good, step=part.rank))
        found.append(said(model, part, good, memory_limit="1 kB" if part.rank == 1 else None))
        assert said(model, part, good) is None
        return found

    results = together(config, [1, 1, 1], use)
    assert results[0] == results[1] == results[2]
    index, odd, step, limit = results[0]
    assert index[0] == "InvalidArgumentError" and index[1].startswith("rank 1: ") and "99" in index[1]
    assert odd[0] == "NotFiniteError" and odd[1].startswith("layers.1: rank 2: ")
    assert "makes another call" in step[1]
    assert limit[1].startswith("rank 1: memory_limit = 1000 bytes, but")


def test_a_dead_rank_ends_the_others() -> None:
    config = MODELS["language"]

    def use(model: libmoe.Model, part: Part) -> Any:
        if part.rank == 1:
            raise LookupError
        return said(model, part, batch(config, 2))

    with pytest.raises(LookupError):
        together(config, [1, 1], use)


@pytest.mark.parametrize(
    "wrong", [{"moe": None}, {"moe": {**MOE, "router": "expert_choice"}}, {"norm_place": "none", "moe": None}]
)
def test_models_that_ranks_cannot_have_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(libmoe.InvalidArgumentError):
        together({**LANGUAGE, **wrong}, [1], lambda model, part: None)
