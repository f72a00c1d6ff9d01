"""Whole models beside float64."""

from __future__ import annotations

from typing import Any

import libmoe
from comparison import assert_all_close, assert_close
from oracle.model import Model as Oracle
from small_language_models import backward


def truth_of(arguments: dict[str, Any], state: dict[str, Any], call: dict[str, Any]) -> Oracle:
    """What float64 says of a call, of which no choice of experts hangs on rounding."""
    truth = Oracle(arguments, state, **call)
    for block in truth.blocks:
        if block.ffn and block.ffn.is_moe:
            assert block.ffn.done.routing.margin() > 1e-5, "choose another seed"
    return truth


def assert_backward(
    model: libmoe.Model, output: libmoe.ModelOutput, truth: Oracle, d_objective: float = 1.5
) -> None:
    """The gradients of the input and of all that is trained are float64's."""
    dinput, d_hidden = backward(model, output, d_objective)
    expected, gradients = truth.backward(d_objective, d_hidden)
    if dinput is not None:
        assert_close("dinput", dinput, expected)
    found = {name: each.grad for name, each in model.parameters.items() if not each.frozen}
    assert_all_close(found, {name: gradients[name] for name in found}, 2e-5)
