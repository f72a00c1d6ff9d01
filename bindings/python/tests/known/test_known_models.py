"""libmoe computes what models of transformers and layers of PyTorch compute.

The numbers come from parity/generate_whole.py, which runs them in float64; neither is needed here.
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


def transformers(tensors: Arrays, n: int) -> Arrays:
    """Tensors of a causal model of n layers, under libmoe's names."""
    found = {
        "embed.weight": tensors["model.embed_tokens.weight"],
        "norm.weight": tensors["model.norm.weight"],
        "output.weight": tensors["lm_head.weight"],
    }
    for layer in range(n):
        own, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        attention = f"{theirs}self_attn."
        found[f"{own}norm1.weight"] = tensors[f"{theirs}input_layernorm.weight"]
        found[f"{own}norm2.weight"] = tensors[f"{theirs}post_attention_layernorm.weight"]
        found[f"{own}attention.qkv.weight"] = np.concatenate(
            [tensors[f"{attention}{part}_proj.weight"] for part in "qkv"]
        )
        found[f"{own}attention.output.weight"] = tensors[f"{attention}o_proj.weight"]
        for part in "qk":
            if f"{attention}{part}_norm.weight" in tensors:
                found[f"{own}attention.{part}_norm.weight"] = tensors[f"{attention}{part}_norm.weight"]
        found |= experts(tensors, f"{theirs}mlp.", f"{own}ffn.")
    return found


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


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_language_model(name: str) -> None:
    settings, arrays = load(name)
    model = libmoe.Model(**settings)
    filled(model, transformers(within(arrays, "parameter/"), model.n_layers))
    output = model.forward(arrays["tokens"], arrays["targets"], tape=True, logits=True)
    assert output.logits is not None
    assert_close("logits", output.logits, arrays["logits"], 1e-4)
    assert_close("loss", output.loss, arrays["loss"], 1e-4)
    assert_close("pooled balance loss", output.pooled_balance_loss, arrays["pooled_balance_loss"], 1e-4)
    model.backward(output)
    assert_all_close(gradients(model), transformers(within(arrays, "gradient/"), model.n_layers), 1e-4)


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
