"""libmoe computes what layers of PyTorch compute; model/test_pretrained.py has whole models of transformers.

The numbers come from parity/generate_whole.py, which runs them in float64; PyTorch is not needed here.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from recorded import Arrays, recorded, within

import libmoe
from comparison import assert_all_close, assert_close


def load(name: str) -> tuple[dict[str, Any], Arrays]:
    arrays = recorded(f"whole/{name}")
    return json.loads(str(arrays.pop("settings"))), arrays


def experts(tensors: Arrays, theirs: str, own: str) -> Arrays:
    gate, up = np.split(tensors[f"{theirs}experts.gate_up_proj"], 2, axis=1)
    return {
        f"{own}router.weight": tensors[f"{theirs}gate.weight"],
        f"{own}experts.gate.weight": gate,
        f"{own}experts.up.weight": up,
        f"{own}experts.down.weight": tensors[f"{theirs}experts.down_proj"],
    }


def attention(tensors: Arrays, theirs: str) -> Arrays:
    """Those of torch.nn.MultiheadAttention."""
    return {
        "layers.0.attention.qkv.weight": tensors[f"{theirs}in_proj_weight"],
        "layers.0.attention.qkv.bias": tensors[f"{theirs}in_proj_bias"],
        "layers.0.attention.output.weight": tensors[f"{theirs}out_proj.weight"],
        "layers.0.attention.output.bias": tensors[f"{theirs}out_proj.bias"],
    }


def encoder(tensors: Arrays) -> Arrays:
    """Those of torch.nn.TransformerEncoderLayer."""
    found = attention(tensors, "self_attn.")
    for norm in ("norm1", "norm2"):
        for part in ("weight", "bias"):
            found[f"layers.0.{norm}.{part}"] = tensors[f"{norm}.{part}"]
    if "moe.gate.weight" in tensors:
        return found | experts(tensors, "moe.", "layers.0.ffn.")
    for part, linear in (("up", "linear1"), ("down", "linear2")):
        found[f"layers.0.ffn.experts.{part}.weight"] = tensors[f"{linear}.weight"][None]
        found[f"layers.0.ffn.experts.{part}.bias"] = tensors[f"{linear}.bias"][None]
    return found


def filled(model: libmoe.Model, parameters: Arrays) -> None:
    model.load_state_dict({name: np.ascontiguousarray(array) for name, array in parameters.items()})


def gradients(model: libmoe.Model) -> Arrays:
    return {name: parameter.grad for name, parameter in model.parameters.items()}


@pytest.mark.parametrize(
    "name", ["encoder_layer", "encoder_layer_norm_first", "encoder_layer_of_experts", "multihead_attention"]
)
def test_layer(name: str) -> None:
    settings, arrays = load(name)
    if name == "multihead_attention":
        model = libmoe.Model(**settings)
        filled(model, attention(within(arrays, "parameter/"), ""))
        expected = attention(within(arrays, "gradient/"), "")
    else:
        model = libmoe.EncoderLayer(**settings)
        filled(model, encoder(within(arrays, "parameter/")))
        expected = encoder(within(arrays, "gradient/"))
    output = model.forward(arrays["x"], tape=True, valid_mask=arrays.get("valid_mask"))
    assert output.hidden is not None
    assert_close("y", output.hidden, arrays["y"])
    assert_close("dx", model.backward(output, 1.0, arrays["dy"]), arrays["dx"])  # type: ignore[arg-type]
    assert_all_close(gradients(model), expected, 1e-5)
