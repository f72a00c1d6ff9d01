"""Tokens that are computed and do not count, and padding that counts: losses, statistics, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
import oracle
from against_oracle import MATMULS, Arguments, check, inputs, unsettle
from comparison import assert_all_close, assert_close, gradients_of

E, K, T, H = 8, 2, 40, 7
SIZES: Arguments = {"hidden_size": H, "intermediate_size": 11, "n_experts": E, "top_k": K}
RANDOM = np.random.default_rng(4)
VALID = RANDOM.random(T) < 0.7
VALID[16:24] = False  # the third sequence of eight is all padding
COUNTS = RANDOM.random(T) < 0.6
COUNTS[24:32] = False
OF_LOADS = {"load": 0.2, "shazeer": 0.3, "tutel_importance_load": 0.4}
LOSSES = {kind: 0.7 for kind in oracle.LOSSES if kind not in OF_LOADS}
TIGHT: Arguments = {"capacity_formula": "megatron", "capacity_factor": 0.7}
GIVEN = RANDOM.integers(-1, E, (T, K)).astype(np.int32)

# Arguments of the layer, options of the call.
LAYERS: dict[str, tuple[Arguments, Arguments]] = {
    "classic": ({}, {}),
    "losses": ({"losses": {kind: c for kind, c in LOSSES.items() if "megatron" not in kind}}, {}),
    "losses of scores": (
        {"score": "sigmoid", "losses": {kind: c for kind, c in LOSSES.items() if "megatron" in kind}},
        {},
    ),
    "losses of loads": ({"losses": OF_LOADS, "noise": "learned"}, {"training": True}),
    "positive weights": (
        {**TIGHT, "renormalize": "after", "losses": {"balance_positive": 0.7}, "balance_coef": 0.0},
        {},
    ),
    "groups": ({"n_groups": 4, "top_groups": 2, "selection_bias": True}, {}),
    "hierarchical": (
        {"router": "hierarchical", "n_groups": 4, "top_groups": 1, "router_normalize": False},
        {},
    ),
    "gates apart": (
        {
            "router": "hierarchical",
            "n_groups": 2,
            "top_groups": 2,
            "top_k": 4,
            "router_weights": "group_softmax",
        },
        {},
    ),
    "sparsemixer": ({"router_weights": "sparsemixer", "mask_threshold": 0.3, "router_normalize": False}, {}),
    "given experts": ({}, {"expert_indices": GIVEN}),
    "batch norm": ({"router_batch_norm": True}, {"training": True}),
    "norm": ({"router_norm": "rms_weight"}, {}),
    "dropping": ({**TIGHT, "drop": "choice_position"}, {}),
    "next best": ({**TIGHT, "overflow": "next_best", "renormalize": "after"}, {}),
    "shared experts": ({"n_shared_experts": 2, "shared_gate": "sigmoid", "output_bias": True}, {}),
    "residual": ({"n_shared_experts": 1, "shared_gate": "residual"}, {}),
    "top p": ({"dynamic_k": "top_p", "dynamic_value": 0.4, "losses": {"balance_positive": 1.0}}, {}),
}
MASKS: dict[str, Arguments] = {
    "some real tokens do not count": {"loss_mask": COUNTS},
    "padding counts": {"valid_mask": VALID, "loss_mask": np.ones(T, bool)},
    "some of both": {"valid_mask": VALID, "loss_mask": COUNTS},
    "nothing counts": {"valid_mask": VALID, "loss_mask": np.zeros(T, bool)},
}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", LAYERS)
def test_against_the_oracle(name: str, masks: str) -> None:
    arguments, call = LAYERS[name]
    options = {**call, **MASKS[masks], "sequence_length": 8}
    truth = check({**SIZES, **arguments}, "native", T, seed=3, **options)
    assert truth.report.n_valid == MASKS[masks]["loss_mask"].sum()


@pytest.mark.parametrize("matmul", MATMULS)
def test_with_every_product(matmul: str) -> None:
    check(
        {**SIZES, "losses": {"switch_sequence": 0.5}}, matmul, T, sequence_length=8, **MASKS["some of both"]
    )


def test_what_counts_changes_no_output() -> None:
    layer = libmoe.Layer(**SIZES)
    x, _ = inputs(T, H)
    expected = layer.forward(x, valid_mask=VALID)
    output = layer.forward(x, valid_mask=VALID, loss_mask=COUNTS)
    np.testing.assert_array_equal(output.y, expected.y)
    np.testing.assert_array_equal(output.report.expert_indices, expected.report.expert_indices)
    again = layer.forward(x, valid_mask=VALID, loss_mask=VALID).report
    for field in ("aux_loss", "entropy", "n_valid", "variation"):
        assert getattr(again, field) == getattr(expected.report, field)


def test_padding_has_its_share_of_the_loss() -> None:
    """The value and every gradient are those of a call in which the padding is real, without its outputs."""
    layer = libmoe.Layer(**SIZES, balance_coef=0.3, z_coef=0.2)
    x, _ = inputs(T, H)
    results = []
    both: list[Arguments] = [{"valid_mask": VALID, "loss_mask": np.ones(T, bool)}, {}]
    for options in both:
        layer.zero_grad()
        tape = layer.tape()
        report = layer.forward(x, tape=tape, **options).report
        results.append((report, gradients_of(layer, layer.backward(tape, np.zeros_like(x)))))
    (ours, found), (whole, expected) = results
    assert ours.aux_loss == whole.aux_loss and ours.n_valid == T
    np.testing.assert_array_equal(ours.tokens_per_expert, whole.tokens_per_expert)
    assert_all_close(found, expected)
    assert np.abs(found["x"][~VALID]).min() > 0


@pytest.mark.parametrize("router", ["expert_choice", "sinkhorn"])
def test_where_tokens_are_chosen_together_padding_has_probabilities_alone(router: Any) -> None:
    layer = libmoe.Layer(**SIZES, router=router, losses={"switch": 1.0})
    unsettle(layer)
    x, dy = inputs(T, H)
    bare = layer.forward(x, valid_mask=VALID, training=True)
    tape = layer.tape()
    output = layer.forward(x, tape=tape, valid_mask=VALID, loss_mask=np.ones(T, bool), training=True)
    np.testing.assert_array_equal(output.y, bare.y)
    np.testing.assert_array_equal(output.report.tokens_per_expert, bare.report.tokens_per_expert)
    p = np.exp(x @ layer.parameters["router.weight"].data.T + layer.parameters["router.bias"].data)
    p /= p.sum(axis=1, keepdims=True)
    f = np.bincount(p.argmax(axis=1), minlength=E) / T
    assert_close("switch", output.report.losses["switch"], E * (f * p.mean(axis=0)).sum())
    assert np.isfinite(gradients_of(layer, layer.backward(tape, dy))["x"]).all()


def test_padding_that_counts_where_no_token_is_real() -> None:
    """It keeps its K choices, whatever the number of choices of the call before was."""
    layer = libmoe.Layer(
        **{**SIZES, "top_k": 4}, dynamic_k="complexity", dynamic_value=0.5, losses={"balance": 1.0}
    )
    x = inputs(T, H)[0]
    layer(x)
    output = layer.forward(x, valid_mask=np.zeros(T, bool), loss_mask=np.ones(T, bool))
    assert not output.y.any() and np.isfinite(output.report.losses["balance"])


def test_padding_that_is_huge_beside_padding_that_counts() -> None:
    """Its sums overflow, and the gate's gradient is that of the rows that count all the same."""
    layer = libmoe.Layer(**SIZES, losses={"balance": 1.0})
    gradients = []
    for huge in (0.0, 3e38):
        x = inputs(T, H)[0]
        x[2, :2] = huge
        valid, counts = np.zeros(T, bool), np.ones(T, bool)
        valid[0], counts[2] = True, False
        tape = layer.tape()
        layer.zero_grad()
        layer.forward(x, tape=tape, valid_mask=valid, loss_mask=counts)
        layer.backward(tape, np.ones_like(x))
        gradients.append(layer.parameters["router.weight"].grad.copy())
    np.testing.assert_array_equal(gradients[1], gradients[0])


def test_positive_weights_are_those_in_use() -> None:
    """Where every other expert has room for one token, the loss counts what found room."""
    layer = libmoe.Layer(
        **SIZES, capacity_formula="constant", capacity=3, losses={"balance_positive": 0.0, "balance": 0.0}
    )
    x, _ = inputs(T, H)
    report = layer.forward(x).report
    f = report.tokens_per_expert / T
    assert_close("value", report.losses["balance_positive"], E * (f * report.mean_probability).sum())
    assert report.losses["balance_positive"] < 0.7 * report.losses["balance"]
    weights = RANDOM.random((T, K)).astype(np.float32) * (RANDOM.random((T, K)) < 0.5)
    indices = np.argsort(RANDOM.random((T, E)), axis=1)[:, :K].astype(np.int32)
    plain = libmoe.Layer(**SIZES, losses={"balance_positive": 0.0})
    report = plain.forward(x, expert_indices=indices, expert_weights=weights.astype(np.float32)).report
    f = np.bincount(indices[weights > 0], minlength=E) / T
    assert_close("value", report.losses["balance_positive"], E * (f * report.mean_probability).sum())


def test_by_sequence() -> None:
    layer = libmoe.Layer(**SIZES)
    x, _ = inputs(T, H)
    report = layer.forward(x, valid_mask=VALID, loss_mask=COUNTS, sequence_length=8).report
    p = np.exp(x @ layer.parameters["router.weight"].data.T + layer.parameters["router.bias"].data)
    p /= p.sum(axis=1, keepdims=True)
    for s in range(5):
        own = p[8 * s : 8 * s + 8][COUNTS[8 * s : 8 * s + 8]]
        np.testing.assert_array_equal(
            report.sequence_counts[s], np.bincount(own.argmax(axis=1), minlength=E) if len(own) else 0
        )
        expected = own.mean(axis=0) if len(own) else np.zeros(E)
        assert_close("probability", report.sequence_probability[s], expected)
    np.testing.assert_array_equal(report.sequence_valid, COUNTS.reshape(5, 8).sum(axis=1))
    assert layer.forward(x).report.sequence_counts.size == 0


def test_refused() -> None:
    layer = libmoe.Layer(**SIZES)
    x, _ = inputs(T, H)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"loss_mask\[2\] = 2 is neither 0 nor 1"):
        layer.forward(x, loss_mask=np.arange(T).astype(np.uint8))
    with pytest.raises(ValueError, match="loss_mask"):
        layer.forward(x, loss_mask=np.ones(T - 1, bool))
