"""libmoe computes what PyTorch computes.

The numbers come from parity/generate.py, which runs the textbook PyTorch layer, clamped experts of
transformers, torch.optim and clip_grad_norm_; PyTorch itself is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
from recorded import recorded, within

import libmoe
import oracle
from comparison import assert_all_close, assert_close, gradients_of

LAYERS = [
    "classic",
    "classic_top1",
    "classic_all_experts",
    "switch",
    "swiglu_topk_softmax",
    "geglu_unnormalized",
    "gpt_oss",
    "deepseek_v4",
]


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    torch = recorded(name)
    layer = libmoe.Layer(**json.loads(str(torch["config"])))
    layer.load_state_dict(within(torch, "parameter/"))

    tape = layer.tape()
    output = layer.forward(torch["x"], tape=tape)
    dx = layer.backward(tape, torch["dy"])

    for precision in ("float32", "float64"):
        expected = within(torch, f"{precision}/")
        assert_close("y", output.y, expected["y"])
        for integers in ("expert_indices", "tokens_per_expert"):
            np.testing.assert_array_equal(getattr(output.report, integers), expected[integers])
        for reals in ("expert_weights", "mean_probability", "balance_loss", "z_loss", "aux_loss", "entropy"):
            assert_close(reals, getattr(output.report, reals), expected[reals])

    assert_all_close(gradients_of(layer, dx), within(torch, "gradient/"))


@pytest.mark.parametrize("name", LAYERS)
def test_oracle(name: str) -> None:
    """The oracle of the other tests agrees too, as closely as float32 can hold PyTorch's float64 results."""
    torch = recorded(name)
    expected = within(torch, "float64/")
    settings = oracle.Settings.of(json.loads(str(torch["config"])))

    done = oracle.forward(settings, within(torch, "parameter/"), torch["x"])
    dx, gradients = oracle.backward(done, torch["dy"])

    half_ulp = 2.0**-24
    assert_close("y", done.y, expected["y"], half_ulp)
    for reals in ("balance_loss", "z_loss", "aux_loss", "entropy", "mean_probability"):
        assert_close(reals, getattr(done.report, reals), expected[reals], half_ulp)
    assert_all_close({"x": dx} | gradients, within(torch, "gradient/"), half_ulp)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v4"])
def test_values_on_both_sides_of_the_clamps(name: str) -> None:
    torch = recorded(name)
    settings = oracle.Settings.of(json.loads(str(torch["config"])))
    calls = oracle.forward(settings, within(torch, "parameter/"), torch["x"]).calls
    gates, ups = (np.concatenate([getattr(call, part).ravel() for call in calls]) for part in ("gate", "up"))
    for beyond in (gates > settings.glu_limit, ups > settings.glu_limit, ups < -settings.glu_limit):
        assert 0.03 < np.mean(beyond) < 0.5


@pytest.mark.parametrize("name", ["bfloat16_classic", "bfloat16_swiglu"])
def test_bfloat16_layer(name: str) -> None:
    """PyTorch rounds more: sums, biases, slopes and every gradient. Off by 2^-9 each, several on each way."""
    torch = recorded(name)
    layer = libmoe.Layer(**json.loads(str(torch["config"])), weight_dtype="bf16")
    parameters = within(torch, "parameter/")
    matrices = {name: value for name, value in parameters.items() if value.ndim == 3}
    layer.load_state_dict(
        {**parameters, **{name: libmoe.to_bfloat16(value) for name, value in matrices.items()}}
    )
    tape = layer.tape()
    actual = {"y": layer.forward(torch["x"], tape=tape).y}
    actual |= gradients_of(layer, layer.backward(tape, torch["dy"]))

    expected = {"y": torch["y"]} | within(torch, "gradient/")
    assert actual.keys() == expected.keys()
    for array in expected:
        error = np.linalg.norm(actual[array] - expected[array]) / np.linalg.norm(expected[array])
        assert error <= 4 * 2.0**-9, f"{array}: off by {error:.3g}"


def adamw(parameters: list[libmoe.Parameter]) -> libmoe.AdamW:
    return libmoe.AdamW(parameters)


def adamw_tuned(parameters: list[libmoe.Parameter]) -> libmoe.AdamW:
    return libmoe.AdamW(parameters, betas=(0.8, 0.95), epsilon=1e-3, weight_decay=0.3)


def adamw_groups(parameters: list[libmoe.Parameter]) -> libmoe.AdamW:
    first, second = parameters
    return libmoe.AdamW(
        parameters,
        weight_decay=0.3,
        groups=[
            {"parameters": [first], "weight_decay": 0.0},
            {"parameters": [second], "learning_rate": 1e-4},  # a tenth
        ],
    )


def sgd(parameters: list[libmoe.Parameter]) -> libmoe.SGD:
    return libmoe.SGD(parameters)


def sgd_momentum(parameters: list[libmoe.Parameter]) -> libmoe.SGD:
    return libmoe.SGD(parameters, momentum=0.9)


ONE_CYCLE = libmoe.Schedule("one_cycle", 0.05, total_steps=10)


def adamw_one_cycle(parameters: list[libmoe.Parameter]) -> libmoe.AdamW:
    return libmoe.AdamW(parameters)


def sgd_one_cycle(parameters: list[libmoe.Parameter]) -> libmoe.SGD:
    return libmoe.SGD(parameters, momentum=0.9)


@pytest.mark.parametrize(
    "make", [adamw, adamw_tuned, adamw_groups, adamw_one_cycle, sgd, sgd_momentum, sgd_one_cycle]
)
def test_optimizer(make: Callable[[list[libmoe.Parameter]], libmoe.AdamW | libmoe.SGD]) -> None:
    """Ten steps over two tensors under a falling learning rate, compared after each."""
    torch = recorded(make.__name__)
    parameters = [libmoe.Parameter(torch["start/0"]), libmoe.Parameter(torch["start/1"])]
    optimizer = make(parameters)
    for step, learning_rate in enumerate(torch["learning_rates"]):
        for i, parameter in enumerate(parameters):
            parameter.grad[...] = torch[f"gradients/{i}"][step]
        optimizer.learning_rate = learning_rate
        if make.__name__.endswith("one_cycle"):
            optimizer.momentum = cast(float, ONE_CYCLE.momentum(step))
        optimizer.step()
        for i, parameter in enumerate(parameters):
            assert_close(f"tensor {i} after step {step}", parameter.data, torch[f"after/{i}"][step])


def test_schedules() -> None:
    """Of torch.optim.lr_scheduler.OneCycleLR, and of transformers."""
    torch = recorded("schedules")
    for i, options in enumerate(json.loads(str(torch["config"]))):
        expected = torch[f"learning_rates/{i}"]
        schedule = libmoe.Schedule(**options)
        actual = [schedule(step) for step in range(len(expected))]
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-17, err_msg=str(options))
        momenta = [schedule.momentum(step) for step in range(len(expected))]
        if options["kind"].startswith("one_cycle"):
            np.testing.assert_allclose(
                cast(list[float], momenta), torch[f"momenta/{i}"], rtol=1e-14, err_msg=str(options)
            )
        else:
            assert set(momenta) == {None} and set(torch[f"momenta/{i}"]) == {0.9}  # AdamW's own


@pytest.mark.parametrize("name", ["clip_acts", "clip_idle"])
def test_clip_grad_norm(name: str) -> None:
    torch = recorded(name)
    gradients = [torch["before/0"], torch["before/1"]]
    parameters = [libmoe.Parameter(np.zeros_like(g), g) for g in gradients]

    norm = libmoe.clip_grad_norm(parameters, float(torch["max_norm"]))

    assert norm == pytest.approx(float(torch["norm"]), rel=1e-6)
    for i, parameter in enumerate(parameters):
        assert_close(f"gradient {i}", parameter.grad, torch[f"after/{i}"], 1e-6)
