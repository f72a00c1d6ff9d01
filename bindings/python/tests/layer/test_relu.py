"""ReLU routing [ReMoE, arXiv:2412.14711] in the paper's own words: y = sum of relu(x W)_e expert_e(x)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe

H, WIDTH, E, T = 6, 5, 7, 50
Float64 = NDArray[np.float64]
RELU: dict[str, Any] = {
    "router": "relu",
    "score": "identity",
    "router_normalize": "none",
    "router_bias": False,
    "balance_coef": 0.0,
    "z_coef": 0.0,
    "expert_kind": "gated",
    "activation": "silu",
    "expert_bias": False,
}


def a_layer(top_k: int = E, seed: int = 5, **more: Any) -> libmoe.Layer:
    return libmoe.Layer(H, WIDTH, E, top_k, seed=seed, **{**RELU, **more})


def tokens(n: int = T, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, H), dtype=np.float32)


def remoe(layer: libmoe.Layer, x: Float64, **changed: Float64) -> tuple[Float64, float, float]:
    """Of float64 parameters: y, the L1 regularisation, and that with load balancing; counts are constants."""
    p = {name: value.astype(np.float64) for name, value in layer.state_dict().items()} | changed
    r = np.maximum(x @ p["router.weight"].T, 0)  # [T,E]
    y = np.zeros_like(x)
    for e in range(E):
        gate, up = x @ p["experts.gate.weight"][e].T, x @ p["experts.up.weight"][e].T
        y += r[:, [e]] * ((gate / (1 + np.exp(-gate)) * up) @ p["experts.down.weight"][e].T)
    used = (r > 0).sum(axis=0)
    f = E * used / used.sum()
    return y, float(r.sum() / len(x)), float((f * r).sum() / len(x))


def test_forward_and_losses_are_the_papers() -> None:
    layer = a_layer(losses={"l1": 0.5, "l1_balanced": 0.25})
    x = tokens()
    output = layer.forward(x)
    y, plain, balanced = remoe(layer, x.astype(np.float64))
    np.testing.assert_allclose(output.y, y, atol=1e-5)
    report = output.report
    assert report.losses["l1"] == pytest.approx(plain, rel=1e-5)
    assert report.losses["l1_balanced"] == pytest.approx(balanced, rel=1e-5)
    assert report.aux_loss == pytest.approx(0.5 * plain + 0.25 * balanced, rel=1e-5)
    r = x @ layer.parameters["router.weight"].data.T
    assert len({int(n) for n in (r > 0).sum(axis=1)}) > 2, "tokens have different numbers of experts"
    np.testing.assert_array_equal(report.tokens_per_expert, (r > 0).sum(axis=0))


@pytest.mark.parametrize("name", ["router.weight", "experts.gate.weight", "experts.down.weight"])
def test_gradients_are_finite_differences(name: str) -> None:
    layer = a_layer(losses={"l1_balanced": 0.7})
    x, dy = tokens(), tokens(seed=2)
    tape = layer.tape()
    layer.forward(x, tape=tape)
    layer.backward(tape, dy)
    values = layer.parameters[name].data.astype(np.float64)

    def objective(moved: Float64) -> float:
        y, _, balanced = remoe(layer, x.astype(np.float64), **{name: moved})
        return float((y * dy).sum() + 0.7 * balanced)

    step = 1e-6
    for place in np.random.default_rng(3).choice(values.size, 25, replace=False):
        at = np.unravel_index(place, values.shape)
        up, down = values.copy(), values.copy()
        up[at] += step
        down[at] -= step
        slope = (objective(up) - objective(down)) / (2 * step)
        assert layer.parameters[name].grad[at] == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_at_most_top_k_and_the_largest() -> None:
    layer = a_layer(top_k=2)
    x = tokens()
    report = layer.forward(x).report
    z = x @ layer.parameters["router.weight"].data.T
    for t in range(T):
        expected = [e for e in np.argsort(-z[t]) if z[t, e] > 0][:2]
        assert [e for e in report.expert_indices[t] if e >= 0] == expected
        np.testing.assert_allclose(report.expert_weights[t, : len(expected)], z[t, expected], rtol=1e-5)


def test_a_token_may_have_no_expert() -> None:
    layer = a_layer()
    layer.parameters["router.weight"].data[...] = -np.abs(layer.parameters["router.weight"].data)
    x = np.abs(tokens())
    tape = layer.tape()
    output = layer.forward(x, tape=tape)
    assert not output.y.any() and not output.report.tokens_per_expert.any()
    dx = layer.backward(tape, x)
    assert dx is not None and not dx.any()


def test_the_coefficient_brings_tokens_to_the_wanted_number() -> None:
    """Adaptive regularisation: the number of experts of a token goes where it is wanted, not by itself."""
    wanted, rng = 1.5, np.random.default_rng(0)
    target = rng.standard_normal((H, H))

    def train(adaptive: bool) -> float:
        # Tokens are symmetric around 0: without a bias half of all logits would be positive for ever.
        layer = a_layer(losses={"l1_balanced": 0.0}, router_bias=True)
        optimizer, tape, coefficient = libmoe.AdamW(layer.parameters, 1e-2), layer.tape(), 1e-3
        used: list[float] = []
        for step in range(400):
            x = tokens(128, seed=10 + step)
            if adaptive:
                layer.set_loss_coefficient(0, coefficient)
            output = layer.forward(x, tape=tape, training=True)
            layer.zero_grad()
            layer.backward(tape, ((output.y - np.tanh(x @ target)) / 128).astype(np.float32))
            optimizer.step()
            used.append(output.report.tokens_per_expert.sum() / 128)
            coefficient *= 1.05 ** np.sign(used[-1] - wanted)  # so few steps want small ones
        return float(np.mean(used[-100:]))

    assert train(adaptive=False) > 2.5
    assert train(adaptive=True) == pytest.approx(wanted, abs=0.4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"score": "softmax"}, "'identity'"),
        ({"score": "sigmoid"}, "'identity'"),
        ({"score": "softmax", "router_weights": "topk_softmax"}, "'scores'"),
        ({"selection_bias": True}, "selection_bias"),
        ({"n_groups": 7, "top_groups": 7}, "n_groups"),
        ({"dynamic_k": "top_p", "dynamic_value": 0.5}, "dynamic_k"),
        ({"losses": {"megatron": 1.0}}, "scores that are no less than 0"),
        ({"losses": {"load": 1.0}, "noise": "learned"}, "needs noise"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match=words):
        a_layer(**arguments)


def test_coefficients_are_checked() -> None:
    layer = a_layer(losses={"l1": 1.0})
    for term, coefficient, words in [
        (1, 0.5, "term = 1 is none of the layer's n_losses = 1 losses"),
        (-1, 0.5, "term = -1"),
        (0, -0.5, "coefficient"),
        (0, float("nan"), "coefficient"),
        (0, float("inf"), "coefficient"),
    ]:
        with pytest.raises(libmoe.InvalidArgumentError, match=words):
            layer.set_loss_coefficient(term, coefficient)
    x = tokens()
    before = layer.forward(x).report
    layer.set_loss_coefficient(0, 0.125)
    after = layer.forward(x).report
    assert after.losses["l1"] == before.losses["l1"]
    assert after.aux_loss == np.float32(0.125) * np.float32(before.losses["l1"])
