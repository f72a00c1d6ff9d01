"""Memory that is named in advance; chunks and tapes that change no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
from against_oracle import Arguments, inputs, unsettle
from comparison import assert_close
from schemes import SCHEMES, SIZES, TRAINING, H, T, least


def run(arguments: Arguments, matmul: Any, divided: Arguments, **call: Any) -> dict[str, Any]:
    """Everything that one training step says; with a limit of None in the smallest chunks there are."""
    with libmoe.Context(n_threads=2, matmul=matmul) as context:
        layer = libmoe.Layer(**{**SIZES, **arguments}, context=context)
        unsettle(layer)
        x, dy = inputs(T, H)
        tape = layer.tape()
        if "memory_limit" in divided:
            limit = least(layer, T, **call, tape_policy=divided["tape_policy"])
            divided = {**divided, "memory_limit": limit}
            if divided["tape_policy"] == "lean":  # a full tape hardly shrinks with the chunks
                assert layer.plan(T, **call, **divided).chunk_tokens == 256
        output = layer.forward(x, tape=tape, **call, **divided)
        dx = layer.backward(tape, dy)
        report = {name: getattr(output.report, name) for name in ("aux_loss", "entropy", "expert_indices")}
        gradients = {name: p.grad for name, p in layer.parameters.items()}
        return (
            {"y": output.y.copy(), "dx": dx}
            | report
            | {n: g.copy() for n, g in gradients.items() if g is not None}
        )


@pytest.mark.parametrize("matmul", ["native", "reference"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_chunks_and_tapes_change_no_bit(scheme: str, matmul: Any) -> None:
    arguments, call = SCHEMES[scheme]
    expected = run(arguments, matmul, {}, **call)
    for divided in (
        {"tape_policy": "lean"},
        {"tape_policy": "full", "memory_limit": None},
        {"tape_policy": "lean", "memory_limit": None},
    ):
        found = run(arguments, matmul, divided, **call)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{name}, {divided}")


@pytest.mark.parametrize("limit", [0, None], ids=["no limit", "the smallest limit"])
@pytest.mark.parametrize("tape_policy", ["full", "lean"])
@pytest.mark.parametrize("scheme", ["classic", "groups of experts", "expert choice", "exploration", "losses"])
def test_the_promise_is_kept_to_the_byte(scheme: str, tape_policy: Any, limit: int | None) -> None:
    arguments, call = SCHEMES[scheme]
    with libmoe.Context(n_threads=2) as context:
        layer = libmoe.Layer(**{**SIZES, **arguments}, context=context)
        tape = layer.tape()
        if limit is None:
            limit = least(layer, T, **call, tape_policy=tape_policy)
        options: Arguments = {"memory_limit": limit, "tape_policy": tape_policy}
        plan = layer.plan(T, **call, **options)
        assert not limit or plan.total_bytes <= limit
        before, _ = context.memory()
        x, dy = inputs(T, H)
        layer.forward(x, tape=tape, **call, **options)
        assert context.memory()[1] - before == plan.tape_bytes + plan.forward_bytes
        layer.backward(tape, dy)
        # The context keeps the larger scratch; a smaller one is given back first.
        assert context.memory()[1] - before == plan.total_bytes


def test_limits_of_a_context_hold_for_its_calls() -> None:
    limit = 16 * 2**20
    with libmoe.Context(n_threads=1, memory_limit=limit) as context:
        layer = libmoe.Layer(256, 1024, 8, 2, context=context)
        plan = layer.plan(5000)
        assert plan.total_bytes <= limit < layer.plan(5000, memory_limit=2**40).total_bytes
        before, _ = context.memory()
        layer(np.ones((5000, 256), np.float32))
        assert context.memory()[1] - before <= limit


@pytest.mark.parametrize("scheme", ["classic", "gated, dropout"])
def test_openblas_agrees_to_rounding(scheme: str) -> None:
    """Its bits depend on how many rows it gets at once."""
    arguments, call = SCHEMES[scheme]
    expected = run(arguments, "openblas", {}, **call)
    found = run(arguments, "openblas", {"tape_policy": "lean", "memory_limit": None}, **call)
    for name in ("y", "dx", "experts.up.weight", "router.weight"):
        assert_close(name, found[name], expected[name])


# What looks at tokens in its own way, options of its call, and the bytes of scratch that may go by tokens
# and experts: 0 but for arrays that docs/memory.md names.
LOOKS: dict[str, tuple[Arguments, Arguments, int]] = {
    "token choice": ({}, {}, 0),
    "scores": ({"score": "sigmoid", "n_groups": 4, "top_groups": 2, "selection_bias": True}, {}, 0),
    "hierarchical": ({"router": "hierarchical", "n_groups": 2, "top_groups": 1}, {}, 0),
    "hash": ({"router": "hash", "vocabulary_size": 7}, {}, 0),
    "dynamic k": ({"dynamic_k": "top_p", "dynamic_value": 0.4}, {}, 0),
    "capacity": ({"capacity_formula": "classic", "drop": "probability"}, {}, 0),
    "sparse mixer, capacity": (
        {"router_weights": "sparsemixer", "mask_threshold": 0.1, "capacity_formula": "classic"},
        {},
        0,
    ),
    "exploration": ({"noise": "learned", "router_dropout": 0.1, "router_batch_norm": True}, TRAINING, 0),
    "losses": (
        {
            "score": "sigmoid",
            "noise": "gaussian",
            "noise_std": 0.1,
            "losses": {"switch_sequence": 0.1, "megatron_sequence": 0.1, "megatron": 0.1, "shazeer": 0.1},
        },
        TRAINING | {"sequence_length": 64},
        0,
    ),
    # Expert and weight of each slot, and the row of each: a token has a slot for every expert.
    "expert choice": ({"router": "expert_choice"}, {}, 12),
    "expert choice, losses": ({"router": "expert_choice", "losses": {"gshard": 0.1}}, {}, 12),
    "sinkhorn": ({"router": "sinkhorn"}, TRAINING, 4),
    "sinkhorn, evaluation": ({"router": "sinkhorn"}, {}, 0),
    "next best": ({"capacity_formula": "classic", "overflow": "next_best"}, {}, 4),
}


@pytest.mark.parametrize("look", LOOKS)
def test_scratch_goes_by_tokens_and_not_by_their_experts(look: str) -> None:
    arguments, call, bytes_per_expert = LOOKS[look]
    few, many, tokens = 8, 128, 2048

    def per_token(n_experts: int) -> float:
        with libmoe.Context(n_threads=2) as context:
            layer = libmoe.Layer(32, 32, n_experts, 2, **arguments, context=context)
            one, two = (layer.plan(n * tokens, taped=False, **call).forward_bytes for n in (1, 2))
            return (two - one) / tokens

    assert per_token(many) - per_token(few) == bytes_per_expert * (many - few)


@pytest.mark.parametrize("tape_policy", ["full", "lean"])
@pytest.mark.parametrize("scheme", ["classic", "groups of experts", "expert choice", "losses"])
def test_the_least_that_is_named_is_the_least(scheme: str, tape_policy: Any) -> None:
    arguments, call = SCHEMES[scheme]
    with libmoe.Context(n_threads=2) as context:
        layer = libmoe.Layer(**{**SIZES, **arguments}, context=context)
        options: Arguments = {**call, "tape_policy": tape_policy}
        limit = least(layer, T, **options)
        assert layer.plan(T, **options, memory_limit=limit).total_bytes == limit
        assert limit <= layer.plan(T, **options).total_bytes
        with pytest.raises(libmoe.InvalidArgumentError, match=str(limit)):
            layer.plan(T, **options, memory_limit=limit - 1)


def test_the_last_chunk_keeps_no_more_than_it_has() -> None:
    with libmoe.Context(n_threads=1) as context:
        layer = libmoe.Layer(32, 64, 4, 2, context=context)
        whole = layer.plan(257, tape_policy="full")
        divided = layer.plan(257, tape_policy="full", memory_limit=whole.total_bytes - 1)
        assert (whole.chunk_tokens, divided.chunk_tokens) == (257, 256)
        assert divided.tape_bytes == whole.tape_bytes


def test_chunks_are_even() -> None:
    """Of as many chunks, even ones take least."""
    with libmoe.Context(n_threads=1) as context:
        layer = libmoe.Layer(32, 64, 4, 2, context=context)
        whole = layer.plan(10 * 256, taped=False)
        divided = layer.plan(10 * 256, taped=False, memory_limit=whole.total_bytes - 1)
        assert divided.chunk_tokens == 5 * 256
