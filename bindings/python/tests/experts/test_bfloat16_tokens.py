"""Weights of few bits times tokens in bfloat16: to the bit what bfloat16 weights of the same numbers give."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal
from comparison import assert_same_bits
from oracle.low_bits import FORMS, unpacked
from packed_experts import every_expert, outputs, sizes

Floats = NDArray[np.float32]
HALVES = [f"{form}_a16" for form in FORMS]
# One to four rows by blocks where the processor multiplies pairs, more by decoded ones; a tile and its rest.
ROWS = (1, 2, 3, 4, 5, 16, 43)


def halves(values: Floats) -> NDArray[np.uint16]:
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def rounded(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def beside(up: Floats, down: Floats, form: Any) -> tuple[libmoe.ExpertWeights, libmoe.ExpertWeights]:
    """The weights to pack, and bfloat16 ones of the packed numbers."""
    twin = libmoe.ExpertWeights(up=halves(unpacked(up, form)), down=halves(unpacked(down, form)))
    return libmoe.ExpertWeights(up=up, down=down), twin


def assert_same_outputs(x: Floats, given: Any, twin: Any, form: Any, context: Any, native: Any) -> None:
    found = outputs(x, given, form, context, activation="relu")
    call = (x, *every_expert(len(x), 2), twin)
    assert_same_bits(found, libmoe.experts_forward(*call, rows=True, context=native, activation="relu").rows)


@pytest.mark.parametrize("instructions", ["all", "avx512", "avx2"])
@pytest.mark.parametrize("form", HALVES)
def test_the_bits_of_bfloat16_weights(form: Any, instructions: Any) -> None:
    """At every edge: rows of 301 and 75 are no whole blocks, and odd."""
    h, i = sizes(form)
    weights = beside(normal(2, i, h, seed=1), normal(2, h, i, seed=2), form)
    with libmoe.Context(2, "native", instructions=instructions) as context:
        for n_tokens in ROWS:
            x = normal(n_tokens, h, seed=n_tokens)
            assert_same_outputs(x, *weights, form, context, context)


@pytest.mark.parametrize("matmul", ["reference", "openblas"])
def test_whoever_multiplies(matmul: Any) -> None:
    """A context that multiplies otherwise makes the same of weights in few bits."""
    form: Any = "mxfp4_a16"
    weights = beside(normal(2, 75, 301, seed=1), normal(2, 301, 75, seed=2), form)
    with libmoe.Context(2, matmul) as context, libmoe.Context(1, "native") as native:
        for n_tokens in ROWS:
            assert_same_outputs(normal(n_tokens, 301, seed=3), *weights, form, context, native)


@pytest.mark.parametrize("form", ["mxfp4_a16", "nvfp4_a16", "fp8_a16", "int8_a16"])
def test_scales_far_apart(form: Any) -> None:
    """From the smallest numbers to large ones, and scales of 0, in one panel."""
    up, down = normal(2, 96, 256, seed=4), normal(2, 256, 96, seed=5)
    largest = 18 if form == "nvfp4_a16" else 2 if form == "int8_a16" else 36
    up *= np.float32(10) ** np.linspace(-44, largest, 96, dtype=np.float32)[:, None]
    up[:, 7:9] = 0
    up[0, :, 32:96] = 0
    up[1] *= -1
    weights = beside(up, down, form)
    with libmoe.Context(1, "native") as context:
        for n_tokens in (1, 2, 9):
            x = normal(n_tokens, 256, seed=6) * np.float32(0.01)
            assert_same_outputs(x, *weights, form, context, context)


@pytest.mark.parametrize("instructions", ["all", "avx2"])
@pytest.mark.parametrize("form", HALVES)
def test_against_float64(form: Any, instructions: Any) -> None:
    """Rounded to bfloat16 where bfloat16 experts round: weights, x, pre-activations and activations."""
    h, i = sizes(form)
    gate, up, down = normal(3, i, h, seed=9), normal(3, i, h, seed=10), normal(3, h, i, seed=11)
    x = normal(50, h, seed=12)
    packed = [rounded(unpacked(part, form)) for part in (gate, up, down)]
    inner = [rounded(np.einsum("th,eih->tei", rounded(x), part)) for part in packed[:2]]
    active = rounded(inner[0] / (1 + np.exp(-inner[0])) * inner[1])
    expected = np.einsum("tei,ehi->teh", active, packed[2])
    with libmoe.Context(instructions=instructions) as context:
        found = outputs(x, libmoe.ExpertWeights(gate=gate, up=up, down=down), form, context)
    assert np.linalg.norm(found - expected) < 5e-4 * np.linalg.norm(expected)


def test_with_a_tape_tokens_stay_floats() -> None:
    x = normal(30, 64, seed=13)
    with libmoe.Context(1) as context:
        layer = libmoe.Layer(64, 96, 4, 2, context=context)
        layer.prepare("mxfp4")
        expected = layer(x)
        layer.prepare("mxfp4_a16")
        assert_same_bits(layer.forward(x, tape=layer.tape()).y, expected)
        assert np.any(layer(x) != expected)
