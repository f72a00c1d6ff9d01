"""A layer and the oracle, run on the same numbers, must say the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe
import oracle
from comparison import assert_all_close, assert_close, gradients_of

Float32 = NDArray[np.float32]
Arguments = dict[str, Any]  # of libmoe.Layer

MATMULS = ["native", "reference", "openblas"]
SCALARS = ["balance_loss", "z_loss", "aux_loss", "entropy", "max_over_mean", "variation", "dead_share"]
GIVEN_NUMBERS = ("noise", "jitter", "second")  # in place of those drawn
DIVISIONS = ("chunk_tokens", "memory_limit", "tape_policy")  # which change no number
WHOLE = ["expert_indices", "tokens_per_expert", "dropped_per_expert", "n_dropped", "n_valid"]


def inputs(n_tokens: int, hidden_size: int, seed: int = 0) -> tuple[Float32, Float32]:
    """X and dy, [T,H]."""
    x, dy = np.random.default_rng(seed).standard_normal((2, n_tokens, hidden_size), dtype=np.float32)
    return x, dy


def unsettle(layer: libmoe.Layer, seed: int = 3) -> None:
    """Give every parameter random values: none that begins at 0 or 1 stays there."""
    random = np.random.default_rng(seed)
    means = {"router.selection_bias": -0.1, "router.norm.running_var": 2.0}
    means |= {"router.expert_scale": 1.0, "router.norm.weight": 1.0}
    tensors = {name: parameter.data for name, parameter in layer.parameters.items()} | dict(layer.buffers)
    for name in sorted(tensors.keys() - {"router.active_experts"}):
        values = tensors[name]
        deviation = values.shape[-1] ** -0.5 if name.endswith(".weight") and values.ndim > 1 else 0.3
        values[...] = random.normal(means.get(name, 0.0), deviation, values.shape)


def oracle_of(layer: libmoe.Layer, arguments: Arguments, x: Float32, call: Arguments) -> oracle.Forward:
    """What the oracle makes of a call with the layer's parameters as they are."""
    settings = oracle.Settings.of(arguments)
    draws = oracle.Draws()
    if call.get("training"):
        draws = oracle.draw(settings, len(x), layer.hidden_size, layer.n_experts, call.get("step", 0))
    given = {name: call[name].astype(np.float64) for name in GIVEN_NUMBERS if call.get(name) is not None}
    options = {name: value for name, value in call.items() if name not in (*GIVEN_NUMBERS, *DIVISIONS)}
    return oracle.forward(
        settings, layer.state_dict(), x, options=oracle.Options(draws=replace(draws, **given), **options)
    )


def compare(
    layer: libmoe.Layer, arguments: Arguments, x: Float32, dy: Float32, d_aux_loss: float = 1.0, **call: Any
) -> oracle.Forward:
    """Run both on the same numbers, the call with these options, and compare all that they say."""
    truth = oracle_of(layer, arguments, x, call)
    # Far from a near tie float32 must choose what float64 chooses.
    assert truth.routing.margin() > 1e-5, "choose another seed"
    own_loss = np.linspace(-1, 1, layer.n_experts, dtype=np.float32) if truth.routing.has_gate else None
    given = call.get("expert_weights") is not None
    d_weights = np.full(call["expert_weights"].shape, np.nan, np.float32) if given else None
    expected_d_weights = np.zeros(call["expert_weights"].shape) if given else None

    tape = layer.tape()
    output = layer.forward(x, tape=tape, **call)
    dx = layer.backward(
        tape, dy, d_aux_loss=d_aux_loss, d_mean_probability=own_loss, d_expert_weights=d_weights
    )

    report, expected = output.report, truth.report
    for name in WHOLE:
        np.testing.assert_array_equal(getattr(report, name), getattr(expected, name), err_msg=name)
    assert_close("y", output.y, truth.y)
    for name in ("expert_weights", "mean_probability", *SCALARS):
        assert_close(name, getattr(report, name), getattr(expected, name))
    assert_all_close(report.losses, expected.losses)
    for name, values in truth.changed.items():
        assert_close(name, layer.buffers[name], values)

    d_x, gradients = oracle.backward(truth, dy, d_aux_loss, own_loss, expected_d_weights)
    assert_all_close(gradients_of(layer, dx), {"x": d_x} | gradients)
    if d_weights is not None and expected_d_weights is not None:
        assert_close("d_expert_weights", d_weights, expected_d_weights)
    return truth


def check(
    arguments: Arguments, matmul: Any = "native", n_tokens: int = 40, seed: int = 3, **call: Any
) -> oracle.Forward:
    """Make a layer with random parameters and compare it."""
    with libmoe.Context(n_threads=2, matmul=matmul) as context:
        layer = libmoe.Layer(**arguments, context=context)
        unsettle(layer, seed)
        return compare(layer, arguments, *inputs(n_tokens, layer.hidden_size, seed), -1.5, **call)
