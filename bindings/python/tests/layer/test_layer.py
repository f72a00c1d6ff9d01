"""What a layer gives, and how its parameters are read, written, bound, saved and loaded."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal
from headers import reader

H, I, E, K = 5, 7, 3, 2  # noqa: E741


def make_layer(**options: object) -> libmoe.Layer:
    return libmoe.Layer(H, I, E, K, **options)  # type: ignore[arg-type]


def test_sizes_are_told_and_fixed() -> None:
    """They say how much memory a call reads, so nobody may change them."""
    layer = make_layer()
    assert (layer.hidden_size, layer.intermediate_size, layer.n_experts, layer.top_k) == (H, I, E, K)
    for name in ("hidden_size", "intermediate_size", "n_experts", "top_k"):
        with pytest.raises(AttributeError):
            setattr(layer, name, 1)


def test_forward_of_a_single_expert_is_the_textbook_mlp() -> None:
    layer = libmoe.Layer(H, I, n_experts=1, top_k=1, activation="relu")
    p = {name: parameter.data for name, parameter in layer.parameters.items()}
    x = normal(4, H)
    inner = np.maximum(x @ p["experts.up.weight"][0].T + p["experts.up.bias"][0], 0)  # [T, I]
    y = inner @ p["experts.down.weight"][0].T + p["experts.down.bias"][0]  # [T, H]
    np.testing.assert_allclose(layer(x), y, rtol=1e-5, atol=1e-6)


def test_leading_dimensions_are_tokens() -> None:
    layer = make_layer()
    x = normal(2, 3, 4, H)
    y = layer(x)
    assert y.shape == x.shape
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.reshape(-1, H), layer(x.reshape(-1, H)))
    np.testing.assert_array_equal(y[1, 2, 3], layer(x[1, 2, 3]))  # [H]: one token


@pytest.mark.parametrize("shape", [(0, H), (2, 0, H)])
def test_no_tokens(shape: tuple[int, ...]) -> None:
    layer = make_layer()
    tape = layer.tape()
    x = np.empty(shape, np.float32)
    output = layer.forward(x, tape=tape)
    assert output.y.shape == shape
    assert output.report.aux_loss == 0
    np.testing.assert_array_equal(output.report.tokens_per_expert, [0] * E)
    dx = layer.backward(tape, x)
    assert dx is not None
    assert dx.shape == shape
    assert not any(p.grad.any() for p in layer.parameters.values())


def test_report() -> None:
    layer = make_layer()
    x = normal(11, H)
    report = layer.forward(x).report
    p = layer.parameters
    logits = x @ p["router.weight"].data.T + p["router.bias"].data  # [T, E]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    best = np.argsort(-logits, axis=1, kind="stable")[:, :K]
    np.testing.assert_array_equal(report.expert_indices, best)
    weights = np.take_along_axis(scores, best, axis=1)
    np.testing.assert_allclose(report.expert_weights, weights / weights.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(report.tokens_per_expert, np.bincount(best.ravel(), minlength=E))
    np.testing.assert_allclose(report.mean_probability, scores.mean(0), rtol=1e-5)
    assert report.entropy == pytest.approx(-(scores * np.log(scores)).sum(1).mean(), rel=1e-5)
    assert report.z_loss == pytest.approx(np.square(np.log(np.exp(logits).sum(1))).mean(), rel=1e-5)
    assert report.balance_loss == pytest.approx(
        E * (report.tokens_per_expert / len(x) * scores.mean(0)).sum(), rel=1e-5
    )
    assert report.aux_loss == pytest.approx(0.01 * report.balance_loss + 0.001 * report.z_loss, rel=1e-5)


def test_dropout_acts_in_training_and_depends_on_the_step_alone() -> None:
    layer = make_layer(dropout=0.5)
    x = normal(11, H)

    def y(**options: object) -> bytes:
        return layer.forward(x, **options).y.tobytes()  # type: ignore[arg-type]

    assert y() == y(step=1) == layer(x).tobytes()
    assert y(training=True, step=1) == y(training=True, step=1)
    assert len({y(), y(training=True, step=1), y(training=True, step=2**56 - 1)}) == 3
    with pytest.raises(libmoe.InvalidArgumentError, match="step"):
        y(training=True, step=2**56)
    with pytest.raises(libmoe.InvalidArgumentError, match="step = -1 is out of range"):
        y(training=True, step=-1)


def test_nothing_is_copied() -> None:
    """Neither x nor dy nor their outputs: a whole step allocates less than a tenth of one of these arrays."""
    layer = libmoe.Layer(512, 4, E, 1)
    tape = layer.tape()
    x, dy = normal(1000, 512), normal(1000, 512, seed=1)
    y, dx = np.empty_like(x), np.empty_like(x)
    tracemalloc.start()  # numpy reports its arrays there
    try:
        layer.forward(x, tape=tape, out=y)
        layer.backward(tape, dy, out=dx)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 10


def test_out_is_used() -> None:
    layer = make_layer()
    tape = layer.tape()
    x, dy = normal(4, H), normal(4, H, seed=1)
    y, dx = np.empty_like(x), np.empty_like(x)
    assert layer.forward(x, tape=tape, out=y).y is y
    assert layer.backward(tape, dy, out=dx) is dx
    np.testing.assert_array_equal(y, layer(x))
    np.testing.assert_array_equal(dx, layer.backward(tape, dy))
    assert layer.backward(tape, dy, need_dx=False) is None


def test_gradients_add_up_until_they_are_zeroed() -> None:
    layer = make_layer()
    tape = layer.tape()
    x = normal(4, H)
    layer.forward(x, tape=tape)
    layer.backward(tape, x)
    once = {name: p.grad.copy() for name, p in layer.parameters.items()}
    assert all(grad.any() for grad in once.values())
    layer.backward(tape, x)
    for name, p in layer.parameters.items():
        np.testing.assert_allclose(p.grad, 2 * once[name], rtol=1e-5, atol=1e-6)
    layer.zero_grad()
    assert not any(p.grad.any() for p in layer.parameters.values())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["router.weight", "router.bias", "up.weight", "up.bias", "down.weight", "down.bias"]),
        ({"router_bias": False, "expert_bias": False}, ["router.weight", "up.weight", "down.weight"]),
        (
            {"expert_kind": "gated", "activation": "silu"},
            ["router.weight", "router.bias", "gate.weight", "up.weight", "down.weight"],
        ),
    ],
)
def test_parameters(options: dict[str, object], names: list[str]) -> None:
    shapes = {
        "router.weight": (E, H),
        "router.bias": (E,),
        "gate.weight": (E, I, H),
        "up.weight": (E, I, H),
        "up.bias": (E, I),
        "down.weight": (E, H, I),
        "down.bias": (E, H),
    }
    parameters = make_layer(**options).parameters
    assert [name.replace("experts.", "") for name in parameters] == names
    assert [p.data.shape for p in parameters.values()] == [shapes[name] for name in names]
    assert [p.grad.shape for p in parameters.values()] == [shapes[name] for name in names]
    assert [p.name for p in parameters.values()] == list(parameters)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"expert_kind": "linear", "intermediate_size": 0},
            {"experts.weight": (E, H, H), "experts.bias": (E, H)},
        ),
        (
            {
                "intermediate_size": 0,
                "expert_groups": [
                    libmoe.ExpertGroup(
                        n_experts=1, intermediate_size=4, expert_kind="gated", activation="silu"
                    ),
                    libmoe.ExpertGroup(n_experts=2, expert_kind="constant"),
                ],
            },
            {
                "experts.0.gate.weight": (1, 4, H),
                "experts.0.up.weight": (1, 4, H),
                "experts.0.down.weight": (1, H, 4),
                "experts.1.constant": (2, H),
            },
        ),
        (
            {
                "n_shared_experts": 2,
                "shared_intermediate_size": 4,
                "shared_gate": "sigmoid",
                "expert_bias": False,
            },
            {"shared.up.weight": (2, 4, H), "shared.down.weight": (2, H, 4), "shared.router.weight": (2, H)},
        ),
        (
            {"n_shared_experts": 1, "shared_gate": "residual"},
            {"shared.up.bias": (1, I), "shared.router.weight": (2, H), "shared.router.bias": (2,)},
        ),
        ({"expert_scale": True, "output_bias": True}, {"router.expert_scale": (E,), "output.bias": (H,)}),
        ({"noise": "learned"}, {"router.noise.weight": (E, H)}),
        ({"router_batch_norm": True}, {"router.norm.weight": (H,), "router.norm.bias": (H,)}),
        (
            {"router": "hierarchical", "n_groups": 3, "top_groups": 2},
            {"router.coarse.weight": (3, H), "router.coarse.bias": (3,)},
        ),
    ],
)
def test_parameters_of_options(options: dict[str, object], expected: dict[str, tuple[int, ...]]) -> None:
    sizes = {"hidden_size": H, "intermediate_size": I, "n_experts": E, "top_k": K}
    shapes = {
        name: p.data.shape
        for name, p in libmoe.Layer(**{**sizes, **options}).parameters.items()  # type: ignore[arg-type]
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_buffers_are_the_parameters_without_a_gradient() -> None:
    layer = make_layer(selection_bias=True, router_batch_norm=True, warmup_steps=10)
    comment = reader.read().functions["moe_layer_parameter_count"].comment
    assert layer.buffers.keys() == set(re.findall(r"([\w.]+) \[\w+\]\*", comment))  # those marked *
    assert all(p.grad.shape == p.data.shape for p in layer.parameters.values())
    assert layer.state_dict().keys() == layer.parameters.keys() | layer.buffers.keys()
    for name in layer.buffers:
        assert layer._tensors()[name]._grad is None, name
    # An inference_only layer, which has no gradients at all, draws the same line.
    other = make_layer(selection_bias=True, router_batch_norm=True, warmup_steps=10, inference_only=True)
    assert list(other.parameters) == list(layer.parameters)


def test_buffers_follow_training() -> None:
    layer = make_layer(router_batch_norm=True)
    before = layer.buffers["router.norm.running_mean"].copy()
    x = normal(50, H) + 3
    layer.forward(x)
    np.testing.assert_array_equal(layer.buffers["router.norm.running_mean"], before)
    layer.forward(x, training=True)
    np.testing.assert_allclose(
        layer.buffers["router.norm.running_mean"], 0.9 * before + 0.1 * x.mean(0), rtol=1e-5
    )


def test_reports_name_the_losses() -> None:
    layer = make_layer(losses={"z": 0.5, "switch": 0.25}, balance_coef=0.0, z_coef=0.0)
    report = layer.forward(normal(20, H)).report
    assert list(report.losses) == ["z", "switch"]
    assert report.losses["z"] == pytest.approx(report.z_loss, rel=1e-6)
    assert report.aux_loss == pytest.approx(
        0.5 * report.losses["z"] + 0.25 * report.losses["switch"], rel=1e-6
    )
    assert make_layer().forward(normal(20, H)).report.losses == {}


def test_reports_measure_the_load() -> None:
    report = make_layer().forward(normal(20, H)).report
    counts = report.tokens_per_expert
    assert report.n_valid == 20
    assert report.n_dropped == 0
    np.testing.assert_array_equal(report.dropped_per_expert, [0] * E)
    assert report.max_over_mean == pytest.approx(counts.max() / counts.mean(), rel=1e-6)
    assert report.variation == pytest.approx(counts.std() / counts.mean(), rel=1e-5)
    assert report.dead_share == np.float32((counts == 0).mean())


def test_expert_choice_reports_all_experts_of_a_token() -> None:
    """Each expert takes ceil(T K / E) tokens; a token's row lists as many experts as took it."""
    report = make_layer(router="expert_choice", balance_coef=0.0).forward(normal(10, H)).report
    assert report.expert_indices.shape == report.expert_weights.shape == (10, E)
    np.testing.assert_array_equal(report.tokens_per_expert, [7] * E)
    listed = report.expert_indices[report.expert_indices >= 0]
    np.testing.assert_array_equal(np.bincount(listed, minlength=E), [7] * E)


def test_parameters_are_the_memory_of_the_layer() -> None:
    layer = make_layer()
    x = normal(4, H)
    before = layer(x)
    layer.parameters["experts.down.bias"].data[...] += 1  # both weights of a token add up to 1
    np.testing.assert_allclose(layer(x), before + 1, rtol=1e-5, atol=1e-6)
    again = layer.parameters["experts.down.bias"].data
    assert np.shares_memory(again, layer.parameters["experts.down.bias"].data)


def test_the_seed_decides_the_initial_parameters() -> None:
    first, same, other = (make_layer(seed=seed).parameters for seed in (7, 7, 8))
    for name in first:
        np.testing.assert_array_equal(first[name].data, same[name].data)
        assert not np.array_equal(first[name].data, other[name].data)


def test_bind_uses_the_callers_arrays() -> None:
    layer = make_layer()
    tape = layer.tape()
    x = normal(4, H)
    bias, grad = np.zeros((E, H), np.float32), np.zeros((E, H), np.float32)
    layer.bind("experts.down.bias", bias, grad)
    assert layer.parameters["experts.down.bias"].data is bias
    assert layer.parameters["experts.down.bias"].grad is grad

    before = layer(x)
    bias += 1
    np.testing.assert_allclose(layer(x), before + 1, rtol=1e-5, atol=1e-6)
    layer.forward(x, tape=tape)
    layer.backward(tape, np.ones_like(x))
    # Each token adds its weights, whose sum is 1, to the gradient of every feature.
    np.testing.assert_allclose(grad.sum(0), [len(x)] * H, rtol=1e-5)


def test_bind_of_the_values_alone_keeps_the_gradient() -> None:
    layer = make_layer()
    grad = layer.parameters["router.bias"].grad
    grad[...] = 3
    layer.bind("router.bias", np.zeros(E, np.float32))
    assert np.shares_memory(layer.parameters["router.bias"].grad, grad)
    np.testing.assert_array_equal(layer.parameters["router.bias"].grad, [3] * E)


def test_bind_refuses_to_free_memory_that_is_in_use() -> None:
    layer = make_layer()
    optimizer = libmoe.SGD(layer.parameters)
    with pytest.raises(libmoe.BadStateError, match="router.bias: its data is still in use"):
        layer.bind("router.bias", np.zeros(E, np.float32))
    del optimizer
    layer.bind("router.bias", np.zeros(E, np.float32))


def test_state_dict_round_trip(tmp_path: Path) -> None:
    layer, other = make_layer(seed=1), make_layer(seed=2)
    x = normal(4, H)
    assert not np.array_equal(layer(x), other(x))
    np.savez(tmp_path / "weights.npz", **layer.state_dict())  # type: ignore[arg-type, unused-ignore]
    with np.load(tmp_path / "weights.npz") as state:
        other.load_state_dict(state)
    np.testing.assert_array_equal(layer(x), other(x))
    state = layer.state_dict()
    layer.parameters["router.weight"].data[...] = 0
    assert state["router.weight"].any()  # a copy


def test_load_state_dict_changes_nothing_when_something_is_wrong() -> None:
    layer = make_layer()
    x = normal(4, H)
    y = layer(x)
    state = {name: np.zeros_like(values) for name, values in layer.state_dict().items()}
    extra = {**state, "gate": state["router.bias"]}
    del extra["router.bias"]
    with pytest.raises(ValueError, match=r"missing names \['router.bias'\], unknown names \['gate'\]"):
        layer.load_state_dict(extra)
    state["experts.down.bias"] = np.zeros((E, H + 1), np.float32)
    with pytest.raises(ValueError, match=r"state\['experts.down.bias'\]: expected shape"):
        layer.load_state_dict(state)
    np.testing.assert_array_equal(layer(x), y)


def test_inference_only() -> None:
    layer = make_layer(inference_only=True)
    x = normal(4, H)
    np.testing.assert_array_equal(layer(x), make_layer()(x))
    with pytest.raises(libmoe.BadStateError, match="inference_only"):
        layer.zero_grad()
    with pytest.raises(libmoe.BadStateError, match="router.weight: an inference_only layer has no gradients"):
        _ = layer.parameters["router.weight"].grad
    with pytest.raises(libmoe.BadStateError):
        libmoe.SGD(layer.parameters)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", ["mlp", "gated"])
def test_few_tokens_have_the_bits_they_have_among_many(kind: Any, dtype: Any) -> None:
    """An expert with a few tokens reads its weights where they lie."""
    x = normal(40, 97)
    for instructions in ("avx2", "avx512", "all"):
        with libmoe.Context(n_threads=2, instructions=instructions) as context:
            layer = libmoe.Layer(
                97, 166, 4, 2, expert_kind=kind, expert_bias=True, weight_dtype=dtype, context=context
            )
            for name, parameter in layer.parameters.items():
                if name.startswith("experts") and name.endswith("bias"):
                    parameter.data[...] = normal(*parameter.data.shape)
            many = layer(x)
            for first, count in ((0, 1), (38, 2), (9, 3), (20, 7)):
                few = layer(x[first : first + count])
                np.testing.assert_array_equal(few, many[first : first + count], err_msg=f"{count}")
            layer.prepare("f32" if dtype == "f32" else "bf16")
            np.testing.assert_array_equal(layer(x[:1]), many[:1])


def test_prepared_layers_give_the_same_bits_and_notice_changes() -> None:
    layer = libmoe.Layer(40, 50, 4, 2)
    x = normal(9, 40)
    plain = layer(x)
    layer.prepare()
    assert layer(x).tobytes() == plain.tobytes()
    layer.parameters["experts.up.weight"].data[:] *= 2
    with pytest.raises(libmoe.BadStateError, match="prepare the layer again"):
        layer(x)
    layer.prepare("none")
    assert layer(x).tobytes() != plain.tobytes()
