"""libmoe's losses are transformers' loss functions, in value and gradient.

The numbers come from parity/models/losses.py: layers whose logits are x W^T, and sequences with padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from recorded import recorded

import libmoe
import oracle
from comparison import assert_close

Array = NDArray[Any]

N_LAYERS, LENGTH, TOP_K = 3, 7, 2


@pytest.fixture(scope="module")
def torch() -> dict[str, Array]:
    return recorded("models/losses")


def make_layer(weight: Array, losses: Mapping[Any, float] | None = None) -> libmoe.Layer:
    """A layer with that gate, whose experts are of no interest here."""
    n_experts, hidden_size = weight.shape
    arguments: dict[str, Any] = {"balance_coef": 0.0, "z_coef": 0.0, "losses": losses}
    layer = libmoe.Layer(
        hidden_size, 4, n_experts, TOP_K, router_bias=False, selection_bias=True, **arguments
    )
    layer.parameters["router.weight"].data[...] = weight
    return layer


def assert_gate(layer: libmoe.Layer, x: Array, dx: Array | None, d_logits: Array) -> None:
    """The gradients of x W^T, where the experts add none."""
    assert dx is not None
    weight = layer.parameters["router.weight"]
    assert_close("dx", dx, d_logits @ weight.data)
    assert_close("router.weight", weight.grad, d_logits.T @ x)


def softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("masked", [False, True])
def test_pooled_balance_loss(torch: dict[str, Array], masked: bool) -> None:
    """load_balancing_loss_func of three layers together, from counts and probabilities made here."""
    expected = "pooled_masked" if masked else "pooled"
    valid = torch["mask"].astype(bool) if masked else np.ones(len(torch["mask"]), bool)
    p = softmax(torch["x"].astype(np.float64) @ torch["router"].astype(np.float64).transpose(0, 2, 1))
    chosen = np.argsort(-p, axis=-1)[..., :TOP_K]
    counts = np.array([np.bincount(layer[valid].ravel(), minlength=p.shape[-1]) for layer in chosen])
    means = p[:, valid].mean(axis=1)
    n_valid = np.full(N_LAYERS, valid.sum())

    loss, d_means = libmoe.pooled_balance_loss(counts, n_valid, means.astype(np.float32))

    assert_close("loss", loss, torch[f"{expected}/loss"])
    # To the logits: the mean over valid tokens, then the softmax.
    d_p = valid[:, None] * d_means[:, None] / valid.sum()
    d_logits = p * (d_p - (p * d_p).sum(axis=-1, keepdims=True))
    assert_close("d_logits", d_logits, torch[f"{expected}/d_logits"])


def assert_pooled(
    torch: dict[str, Array],
    case: str,
    layers: list[libmoe.Layer],
    tapes: list[libmoe.Tape],
    reports: list[libmoe.Report],
    names: tuple[str, str, str] = ("tokens_per_expert", "n_valid", "mean_probability"),
) -> None:
    """The loss of the layers' reports, and what it is to each of them."""
    lists: Any = [[getattr(report, name) for report in reports] for name in names]
    loss, d_means = libmoe.pooled_balance_loss(*lists)

    assert_close("loss", loss, torch[f"{case}/loss"])
    for number, (layer, x, tape) in enumerate(zip(layers, torch["x"], tapes)):
        gradient: Any = {f"d_{names[-1]}": d_means[number]}
        dx = layer.backward(tape, np.zeros_like(x), **gradient)
        assert_gate(layer, x, dx, torch[f"{case}/d_logits"][number])


def test_pooled_balance_loss_of_layers(torch: dict[str, Array]) -> None:
    """The same through forward's reports, and back through each layer."""
    layers = [make_layer(weight) for weight in torch["router"]]
    tapes = [layer.tape() for layer in layers]
    reports = [
        layer.forward(x, tape=tape, valid_mask=torch["mask"]).report
        for layer, x, tape in zip(layers, torch["x"], tapes)
    ]
    assert_pooled(torch, "pooled_masked", layers, tapes, reports)


def test_pooled_balance_loss_of_what_counts(torch: dict[str, Array]) -> None:
    """As transformers trains: experts compute the padding too, and the losses alone leave it out."""
    layers = [make_layer(weight) for weight in torch["router"]]
    tapes = [layer.tape() for layer in layers]
    outputs = [
        layer.forward(x, tape=tape, loss_mask=torch["mask"])
        for layer, x, tape in zip(layers, torch["x"], tapes)
    ]
    for layer, x, output in zip(layers, torch["x"], outputs):
        np.testing.assert_array_equal(output.y, layer(x))
    reports = [output.report for output in outputs]
    assert_pooled(torch, "pooled_masked", layers, tapes, reports)


@pytest.mark.parametrize("chunk_tokens", [0, 1])
def test_switch_over_layers(torch: dict[str, Array], chunk_tokens: int) -> None:
    """As SwitchTransformersForConditionalGeneration: layers one behind the other in each sequence."""
    layers = [make_layer(weight) for weight in torch["router"]]
    tapes = [layer.tape() for layer in layers]
    reports = [
        layer.forward(x, tape=tape, sequence_length=LENGTH, chunk_tokens=chunk_tokens).report
        for layer, x, tape in zip(layers, torch["x"], tapes)
    ]
    names = ("sequence_counts", "sequence_valid", "sequence_probability")
    assert_pooled(torch, "switch_pooled", layers, tapes, reports, names)


@pytest.mark.parametrize("number", range(N_LAYERS))
@pytest.mark.parametrize("loss", ["transformers", "switch_sequence", "z_switch"])
def test_loss_of_a_layer(torch: dict[str, Array], loss: str, number: int) -> None:
    """load_balancing_loss_func of one layer with a mask, and both losses of Switch over four sequences.

    A selection bias chooses others than the most probable experts, which these losses do not care about.
    """
    layer, x = make_layer(torch["router"][number], {loss: 1.0}), torch["x"][number]
    layer.buffers["router.selection_bias"][...] = np.linspace(-1, 1, layer.n_experts)
    tape = layer.tape()
    mask = torch["mask"] if loss == "transformers" else None

    report = layer.forward(x, tape=tape, valid_mask=mask, sequence_length=LENGTH).report
    dx = layer.backward(tape, np.zeros_like(x))

    assert_close("loss", report.losses[loss], torch[f"{loss}/{number}/loss"])
    assert_close("aux_loss", report.aux_loss, torch[f"{loss}/{number}/loss"])
    assert_gate(layer, x, dx, torch[f"{loss}/{number}/d_logits"])


@pytest.mark.parametrize("number", range(N_LAYERS))
@pytest.mark.parametrize("loss", ["transformers", "switch_sequence", "z_switch"])
def test_oracle(torch: dict[str, Array], loss: str, number: int) -> None:
    """The oracle of the other tests agrees, as closely as float32 can hold transformers' float64 results."""
    weight, x = torch["router"][number], torch["x"][number]
    mask = torch["mask"] if loss == "transformers" else None
    settings = oracle.Settings(TOP_K, balance_coef=0, z_coef=0, losses={loss: 1.0})
    options = oracle.Options(valid_mask=mask, sequence_length=LENGTH)

    done = oracle.forward(settings, make_layer(weight).state_dict(), x, options=options)
    dx, gradients = oracle.backward(done, np.zeros_like(x))

    half_ulp = 2.0**-24
    d_logits = torch[f"{loss}/{number}/d_logits"].astype(np.float64)
    assert_close("loss", done.report.losses[loss], torch[f"{loss}/{number}/loss"], half_ulp)
    # Sums of rounded d_logits.
    assert_close("dx", dx, d_logits @ weight, 4 * half_ulp)
    assert_close("router.weight", gradients["router.weight"], d_logits.T @ x, 4 * half_ulp)
