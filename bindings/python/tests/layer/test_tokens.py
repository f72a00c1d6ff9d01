"""What forward and backward are given for each token beside x: masks, ids, experts, weights, sequences."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal
from comparison import assert_close

H, I, E, K = 6, 7, 5, 2  # noqa: E741
B, S = 3, 4  # x [B, S, H]


def make_layer(**options: Any) -> libmoe.Layer:
    return libmoe.Layer(H, I, E, K, **options)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_padding_is_as_if_it_were_not_there(dtype: Any) -> None:
    layer, x, dy = make_layer(), normal(B, S, H), normal(B, S, H, seed=1)
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype)
    real = mask.astype(bool)
    tape = layer.tape()
    masked = layer.forward(x, tape=tape, valid_mask=mask)
    dx = layer.backward(tape, dy)
    gradients = {name: p.grad.copy() for name, p in layer.parameters.items()}
    layer.zero_grad()
    alone = layer.forward(x[real], tape=tape)
    dx_alone = layer.backward(tape, dy[real])

    assert dx is not None
    assert dx_alone is not None
    np.testing.assert_array_equal(masked.y[real], alone.y)
    np.testing.assert_array_equal(dx[real], dx_alone)
    assert not masked.y[~real].any()
    assert not dx[~real].any()
    for name, parameter in layer.parameters.items():
        assert_close(name, gradients[name], parameter.grad)
    assert masked.report.n_valid == alone.report.n_valid == real.sum()
    np.testing.assert_array_equal(masked.report.tokens_per_expert, alone.report.tokens_per_expert)
    assert_close("aux_loss", masked.report.aux_loss, alone.report.aux_loss)
    assert (masked.report.expert_indices.reshape(B, S, K)[~real] == -1).all()
    assert not masked.report.expert_weights.reshape(B, S, K)[~real].any()


def test_a_single_token_takes_arrays_without_dimensions() -> None:
    layer, x = make_layer(), normal(H)
    assert not layer.forward(x, valid_mask=np.array(False)).y.any()
    given = layer.forward(x, expert_indices=np.array([3, 1], np.int32)).report
    np.testing.assert_array_equal(given.expert_indices, [[3, 1]])


def test_given_experts_are_used() -> None:
    layer, x = make_layer(), normal(B, S, H)
    indices = np.random.default_rng(0).integers(0, E, (B, S, K)).astype(np.int32)
    indices[0, 0] = [4, -1]
    report = layer.forward(x, expert_indices=indices).report
    np.testing.assert_array_equal(report.expert_indices, indices.reshape(-1, K))
    counts = np.bincount(indices[indices >= 0], minlength=E)
    np.testing.assert_array_equal(report.tokens_per_expert, counts)


@pytest.mark.parametrize("router", ["token_choice", "external"])
def test_given_weights_weigh_and_get_their_gradient(router: Any) -> None:
    """Each expert alone gives its output: y is their weighted sum, and dL/dw is <dy, output>."""
    layer = make_layer(router=router, balance_coef=0.0, z_coef=0.0)
    x, dy, tape = normal(B, S, H), normal(B, S, H, seed=1), layer.tape()
    indices = np.stack([np.full((B, S), 3), np.full((B, S), 0)], axis=-1).astype(np.int32)
    weights = normal(B, S, K, seed=2)
    y = layer.forward(x, tape=tape, expert_indices=indices, expert_weights=weights).y
    d_weights = np.full((B, S, K), np.nan, np.float32)
    layer.backward(tape, dy, d_expert_weights=d_weights)

    only = [np.stack([np.ones((B, S)), np.zeros((B, S))], axis=-1), np.zeros((B, S, K))]
    only[1][..., 1] = 1
    outputs = [
        layer.forward(x, expert_indices=indices, expert_weights=one.astype(np.float32)).y for one in only
    ]
    assert_close("y", y, weights[..., :1] * outputs[0] + weights[..., 1:] * outputs[1])
    expected = np.stack([(dy * output).sum(-1) for output in outputs], axis=-1)
    assert_close("d_expert_weights", d_weights, expected)


def test_gradients_of_weights_are_of_given_ones() -> None:
    layer, x = make_layer(), normal(B, S, H)
    tape = layer.tape()
    layer.forward(x, tape=tape)
    with pytest.raises(libmoe.InvalidArgumentError, match="d_expert_weights"):
        layer.backward(tape, x, d_expert_weights=np.empty((B, S, K), np.float32))


def test_a_hash_table_routes_by_token_id() -> None:
    random = np.random.default_rng(0)
    table = np.stack([random.permutation(E)[:K] for _ in range(9)]).astype(np.int32)
    given = table.copy()
    layer = make_layer(router="hash", hash_table=given)
    given[...] = 0  # the layer has a copy
    ids = random.integers(0, 9, (B, S))
    report = layer.forward(normal(B, S, H), token_ids=ids).report
    np.testing.assert_array_equal(np.sort(report.expert_indices), np.sort(table[ids.ravel()]))


def test_sequences_have_room_of_their_own() -> None:
    """One place for each expert: in all 12 tokens, or in each sequence of 4."""
    options = {"capacity_formula": "constant", "capacity": 1}
    x = np.ones((B, S, H), np.float32)  # all tokens want the same experts
    whole = make_layer(**options).forward(x).report
    each = make_layer(**options, capacity_per_sequence=True).forward(x, sequence_length=S).report
    assert (whole.tokens_per_expert.max(), each.tokens_per_expert.max()) == (1, B)
    assert (whole.n_dropped, each.n_dropped) == (B * S * K - K, B * S * K - B * K)
    assert whole.dropped_per_expert.sum() == whole.n_dropped
    np.testing.assert_array_equal(np.sort(whole.dropped_per_expert), [0] * (E - K) + [B * S - 1] * K)


def test_gradient_of_the_mean_probability() -> None:
    """The balance loss's own, E f_e, gives the router what the loss itself gives."""
    x, dy = normal(B, S, H), np.zeros((B, S, H), np.float32)
    gradients = []
    for coefficient in (0.5, 0.0):
        layer = make_layer(balance_coef=coefficient, z_coef=0.0)
        tape = layer.tape()
        counts = layer.forward(x, tape=tape).report.tokens_per_expert
        share = None if coefficient else np.float32(0.5) * (E * counts / (B * S)).astype(np.float32)
        layer.backward(tape, dy, d_mean_probability=share)
        gradients.append(layer.parameters["router.weight"].grad.copy())
    assert gradients[0].any()
    assert_close("router.weight", gradients[1], gradients[0])


def test_counts_from_elsewhere_are_in_the_global_loss() -> None:
    """f of both calls together, P of this one."""
    layer = make_layer(losses={"megatron_global": 1.0})
    x = normal(B, S, H)
    report = layer.forward(x, global_counts=np.array([7, 0, 90, 3, 1])).report
    counts = report.tokens_per_expert + [7, 0, 90, 3, 1]
    expected = E * (counts / counts.sum() * report.mean_probability).sum()
    assert_close("megatron_global", report.losses["megatron_global"], expected)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"valid_mask": np.ones((B, S), np.float32)},
        TypeError,
        "valid_mask: expected bool or uint8, got float32; use valid_mask.astype(bool)",
    ),
    (
        {"valid_mask": [[1] * S] * B},
        TypeError,
        "valid_mask: expected a numpy array, got list; use numpy.asarray(valid_mask, bool)",
    ),
    (
        {"valid_mask": np.ones(B * S, bool)},
        ValueError,
        f"valid_mask: expected shape {(B, S)}, got {(B * S,)}; use valid_mask.reshape{(B, S)}",
    ),
    (
        {"valid_mask": np.ones((B, 2 * S), bool)[:, ::2]},
        ValueError,
        "valid_mask: expected a C-contiguous array; use numpy.ascontiguousarray(valid_mask)",
    ),
    (
        {"token_ids": np.zeros((B, S), np.int32)},
        TypeError,
        "token_ids: expected int64, got int32; use token_ids.astype(numpy.int64)",
    ),
    (
        {"expert_indices": np.zeros((B, S, K))},
        TypeError,
        "expert_indices: expected int32, got float64; use expert_indices.astype(numpy.int32)",
    ),
    (
        {"expert_indices": np.zeros((B, S, K + 1), np.int32)},
        ValueError,
        f"expert_indices: expected shape {(B, S, K)}, got {(B, S, K + 1)}; give it {B * S * K} elements",
    ),
    (
        {"expert_weights": np.zeros((B, S), np.float32)},
        ValueError,
        f"expert_weights: expected shape {(B, S, K)}, got {(B, S)}",
    ),
    (
        {"global_counts": np.zeros(E + 1, np.int64)},
        ValueError,
        f"global_counts: expected shape {(E,)}, got {(E + 1,)}",
    ),
    (
        {"sequence_length": 4.0},
        TypeError,
        "sequence_length: expected an int, got float; use int(sequence_length)",
    ),
    (
        {"memory_limit": None},
        TypeError,
        "memory_limit: expected an int, got NoneType; give a number or leave it out",
    ),
    ({"sequence_length": 5}, libmoe.InvalidArgumentError, "sequence_length = 5"),
    ({"expert_indices": np.full((B, S, K), E, np.int32)}, libmoe.InvalidArgumentError, "expert_indices"),
    ({"expert_weights": np.zeros((B, S, K), np.float32)}, libmoe.InvalidArgumentError, "expert_weights"),
]


@pytest.mark.parametrize(("given", "kind", "text"), WRONG)
def test_wrong_arrays(given: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        make_layer().forward(normal(B, S, H), **given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"d_mean_probability": np.zeros(E + 1, np.float32)}, f"d_mean_probability: expected shape {(E,)}"),
        (
            {"d_expert_weights": np.zeros((B * S, K), np.float32)},
            f"d_expert_weights: expected shape {(B, S, K)}, got {(B * S, K)}",
        ),
    ],
)
def test_wrong_arrays_of_backward(given: dict[str, Any], text: str) -> None:
    layer = make_layer()
    tape = layer.tape()
    layer.forward(normal(B, S, H), tape=tape)
    with pytest.raises(ValueError, match=re.escape(text)):
        layer.backward(tape, normal(B, S, H), **given)


def test_what_a_router_needs_is_asked_for() -> None:
    x = normal(B, S, H)
    external = make_layer(router="external", balance_coef=0.0, z_coef=0.0)
    with pytest.raises(libmoe.InvalidArgumentError, match="expert_indices"):
        external(x)
    with pytest.raises(libmoe.InvalidArgumentError, match="expert_weights"):
        external.forward(x, expert_indices=np.zeros((B, S, K), np.int32))
    with pytest.raises(libmoe.InvalidArgumentError, match="token_ids"):
        make_layer(router="hash", vocabulary_size=9)(x)
    with pytest.raises(libmoe.InvalidArgumentError, match="token_ids"):
        make_layer(router="hash", vocabulary_size=9).forward(x, token_ids=np.full((B, S), 9))
