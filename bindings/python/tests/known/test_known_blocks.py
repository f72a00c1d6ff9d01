"""libmoe computes what the MoE blocks of known models compute.

The numbers come from parity/generate_models.py, which runs the blocks of transformers, and llama.cpp's gating
written out, in float64; neither is needed here.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from recorded import recorded, within

import libmoe
import oracle
from comparison import assert_all_close, assert_close, gradients_of

# The cases that a model has beside those of COMMON.
MODELS: dict[str, list[str]] = {
    "mixtral": [],
    "qwen2_moe": ["normalized"],
    "qwen3_moe": ["unnormalized"],
    "olmoe": ["normalized"],
    "deepseek_v2": ["greedy"],
    "deepseek_v3": ["negative_bias", "unnormalized"],
    "glm4_moe": ["negative_bias", "groups"],
    "gpt_oss": ["clamps"],
    "granite_moe": [],
    "jetmoe": [],
    "phimoe": ["near", "far"],
    "dbrx": ["norm2", "norm3", "unnormalized"],
    "llama4": ["top2"],
    "minimax_m2": ["negative_bias"],
    "ernie4_5": ["negative_bias", "norm_min"],
    "longcat_flash": ["negative_bias", "router_bias"],
    "switch": ["drops", "one_place"],
    "jamba": [],
    "gemma4": [],
    "llama_cpp": ["negative_bias", "sigmoid", "small_sums"],
}
COMMON = ["ordinary", "idle_expert", "huge", "ties"]
CASES = [(model, case) for model, cases in MODELS.items() for case in COMMON + cases]


def by_expert(indices: NDArray[Any], weights: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each token's choices in the order of the experts: some models have no order of their own."""
    order = np.argsort(indices, axis=1, kind="stable")
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(weights, order, axis=1)


@pytest.mark.parametrize(("model", "case"), CASES)
def test_model(model: str, case: str) -> None:
    """The preset with small sizes: y, routing, and every gradient of <dy, y>."""
    expected = within(recorded(f"models/{model}"), f"{case}/")
    settings = json.loads(str(expected["settings"]))
    layer = libmoe.Layer(**getattr(libmoe.presets, model)(**settings["arguments"]))
    layer.load_state_dict({**within(expected, "parameter/"), **within(expected, "buffer/")})

    tape = layer.tape()
    output = layer.forward(
        expected["x"],
        tape=tape,
        sequence_length=settings["sequence_length"],
        # Where values tie, the block's choice is arbitrary.
        expert_indices=expected["expert_indices"] if settings["forced"] else None,
    )
    dx = layer.backward(tape, expected["dy"], d_aux_loss=0.0)

    assert_close("y", output.y, expected["y"])
    indices, weights = by_expert(output.report.expert_indices, output.report.expert_weights)
    expected_indices, expected_weights = by_expert(expected["expert_indices"], expected["expert_weights"])
    np.testing.assert_array_equal(indices, expected_indices)
    assert_close("weights", weights, expected_weights)
    gradients, expected_gradients = gradients_of(layer, dx), within(expected, "gradient/")
    assert_close("dx", gradients.pop("x"), expected_gradients.pop("x"), settings["dx_tolerance"])
    assert_all_close(gradients, expected_gradients)


def by_oracle(model: str, case: str) -> oracle.Forward:
    """Forward by the oracle of the other tests."""
    expected = within(recorded(f"models/{model}"), f"{case}/")
    settings = json.loads(str(expected["settings"]))
    return oracle.forward(
        oracle.Settings.of(getattr(libmoe.presets, model)(**settings["arguments"])),
        {**within(expected, "parameter/"), **within(expected, "buffer/")},
        expected["x"],
        options=oracle.Options(
            sequence_length=settings["sequence_length"],
            expert_indices=expected["expert_indices"] if settings["forced"] else None,
        ),
    )


@pytest.mark.parametrize(("model", "case"), CASES)
def test_oracle(model: str, case: str) -> None:
    """The oracle agrees too, as closely as float32 can hold the blocks' float64 results."""
    expected = within(recorded(f"models/{model}"), f"{case}/")
    done = by_oracle(model, case)
    dx, gradients = oracle.backward(done, expected["dy"], d_aux_loss=0.0)

    half_ulp = 2.0**-24
    assert_close("y", done.y, expected["y"], half_ulp)
    indices, weights = by_expert(done.report.expert_indices, done.report.expert_weights)
    expected_indices, expected_weights = by_expert(expected["expert_indices"], expected["expert_weights"])
    np.testing.assert_array_equal(indices, expected_indices)
    assert_close("weights", weights, expected_weights, half_ulp)
    assert_all_close({"x": dx} | gradients, within(expected, "gradient/"), half_ulp)


def test_values_on_both_sides_of_the_clamps() -> None:
    calls, limit = by_oracle("gpt_oss", "clamps").calls, 7.0
    gates, ups = (np.concatenate([getattr(call, part).ravel() for call in calls]) for part in ("gate", "up"))
    for beyond in (gates > limit, ups > limit, ups < -limit):
        assert 0.03 < np.mean(beyond) < 0.5


def test_drops_are_counted() -> None:
    expected = within(recorded("models/switch"), "drops/")
    settings = json.loads(str(expected["settings"]))
    layer = libmoe.Layer(**libmoe.presets.switch(**settings["arguments"]))
    layer.load_state_dict(within(expected, "parameter/"))
    report = layer.forward(expected["x"], sequence_length=settings["sequence_length"]).report
    kept = expected["expert_indices"][expected["expert_indices"] >= 0]
    np.testing.assert_array_equal(report.tokens_per_expert, np.bincount(kept, minlength=layer.n_experts))
    assert report.n_dropped == expected["expert_indices"].size - kept.size > 0
