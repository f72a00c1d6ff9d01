"""Padding: no expert sees it, and it counts nowhere, whatever else the layer does."""

from __future__ import annotations

import numpy as np
import pytest

import libmoe
from against_oracle import MATMULS, Arguments, check, inputs, unsettle
from comparison import assert_all_close, assert_all_same_bits, assert_close, gradients_of
from masked_layers import LAYERS, MASK, OF_LOADS, PLACES, SIZES, H, T

MASK[16:24] = False  # the third sequence of eight is all padding


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("name", LAYERS)
def test_against_the_oracle(name: str, matmul: str) -> None:
    arguments, by_token, call = LAYERS[name]
    truth = check({**SIZES, **arguments}, matmul, T, valid_mask=MASK, **by_token, **call)
    assert truth.report.n_valid == MASK.sum()
    assert not truth.y[~MASK].any()


@pytest.mark.parametrize("name", PLACES)
def test_places_of_tokens(name: str) -> None:
    arguments, call = PLACES[name]
    check({**SIZES, **arguments}, "native", T, valid_mask=MASK, sequence_length=8, **call)


@pytest.mark.parametrize("name", LAYERS)
def test_as_if_the_padding_were_not_there(name: str) -> None:
    arguments, by_token, call = LAYERS[name]
    if name == "losses":  # but this one divides by the number of all tokens
        arguments = {"losses": {k: c for k, c in arguments["losses"].items() if k != "z_switch"}}
    x, dy = inputs(T, H)
    results = []
    for masked in (True, False):
        layer = libmoe.Layer(**{**SIZES, **arguments})
        unsettle(layer)
        rows = slice(None) if masked else MASK
        options: Arguments = {key: np.ascontiguousarray(value[rows]) for key, value in by_token.items()}
        options |= {"valid_mask": MASK} if masked else {}
        tape = layer.tape()
        output = layer.forward(np.ascontiguousarray(x[rows]), tape=tape, **options, **call)
        dx = layer.backward(tape, np.ascontiguousarray(dy[rows]))
        results.append((output, gradients_of(layer, dx)))
    (padded, with_padding), (bare, without) = results

    for name, rows_of in (("y", padded.y), ("dx", with_padding["x"])):
        np.testing.assert_array_equal(rows_of[~MASK], 0, err_msg=name)
    np.testing.assert_array_equal(padded.report.expert_indices[~MASK], -1)
    np.testing.assert_array_equal(padded.report.expert_weights[~MASK], 0)
    np.testing.assert_array_equal(padded.report.expert_indices[MASK], bare.report.expert_indices)
    np.testing.assert_array_equal(padded.report.tokens_per_expert, bare.report.tokens_per_expert)
    assert_close("y", padded.y[MASK], bare.y)
    assert_close("aux_loss", padded.report.aux_loss, bare.report.aux_loss)
    assert_close("mean_probability", padded.report.mean_probability, bare.report.mean_probability)
    assert_all_close({**with_padding, "x": with_padding["x"][MASK]}, without)


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_but_padding(name: str) -> None:
    arguments, by_token, call = LAYERS[name]
    truth = check({**SIZES, **arguments}, "native", T, valid_mask=np.zeros(T, bool), **by_token, **call)
    assert truth.report.n_valid == 0 and truth.report.aux_loss == 0


def test_a_mask_that_masks_nothing_changes_no_bit() -> None:
    layer = libmoe.Layer(**SIZES)
    x, _ = inputs(T, H)
    np.testing.assert_array_equal(layer.forward(x, valid_mask=np.ones(T, np.uint8)).y, layer(x))


def test_what_padding_holds_does_not_matter() -> None:
    layer = libmoe.Layer(**{**SIZES, "noise": "learned", "losses": OF_LOADS})
    x, dy = inputs(T, H)
    other = x.copy()
    other[~MASK] = 100
    results = []
    for values in (x, other):
        tape = layer.tape()
        layer.zero_grad()
        y = layer.forward(values, tape=tape, valid_mask=MASK).y
        results.append({"y": y} | gradients_of(layer, layer.backward(tape, dy)))
    assert_all_same_bits(results[1], results[0])
