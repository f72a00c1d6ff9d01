"""Tiny models in folders, and what transformers computes with each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

import libmoe
from pretrained.cases import CASES, fingerprint

FOLDERS = Path(__file__).parents[1] / "pretrained" / "folders"
NAMES = list(CASES)
DEEP: tuple[str, ...] = ()
Arrays = dict[str, NDArray[Any]]


def reference(name: str) -> Arrays:
    with np.load(FOLDERS / f"{name}.npz") as file:
        return dict(file)


def loaded(name: str, **how: Any) -> libmoe.Model:
    """A model with float32 weights, unless it is said."""
    return libmoe.Model.from_pretrained(FOLDERS / name, **{"weight_dtype": "f32", **how})


def most_of_the_experts(name: str) -> int:
    """Bytes of float32 weights of which most experts are in memory, and all else."""
    info = libmoe.describe_pretrained(FOLDERS / name, weight_dtype="f32", inference_only=True)
    return info.parameter_bytes - info.expert_bytes // 8


def logits_of(model: libmoe.Model, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    logits = model.forward(np.ascontiguousarray(tokens), logits=True).logits
    assert logits is not None
    return logits


def assert_near(found: NDArray[Any], wanted: NDArray[Any], tolerance: float, what: str) -> None:
    """Against the largest: |found - wanted| <= tolerance * max |wanted|."""
    error = np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, f"{what}: off by {error:.2g}"


def tensors(folder: Path) -> Arrays:
    """All tensors of a folder's files, by name; bfloat16 as ml_dtypes has it."""
    import ml_dtypes  # noqa: F401  # makes the name known to numpy

    found: Arrays = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def shapes(config: dict[str, Any], n_experts: int) -> dict[str, tuple[int, ...]]:
    """Of the tensors of an OLMoE or a Qwen3-MoE all of whose layers have experts, by the names in files."""
    h, v = config["hidden_size"], config["vocab_size"]
    inner = config.get("moe_intermediate_size", config["intermediate_size"])
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or h // heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,)}
    found["lm_head.weight"] = (v, h)
    for n in range(config["num_hidden_layers"]):
        layer, attention = f"model.layers.{n}.", f"model.layers.{n}.self_attn."
        found |= {f"{layer}{norm}.weight": (h,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for part, rows in (("q", heads * size), ("k", key_heads * size), ("v", key_heads * size)):
            found[f"{attention}{part}_proj.weight"] = (rows, h)
            if part != "v":  # OLMoE norms all heads together
                found[f"{attention}{part}_norm.weight"] = (rows if "olmoe" in config["model_type"] else size,)
        found[f"{attention}o_proj.weight"] = (h, heads * size)
        found[f"{layer}mlp.gate.weight"] = (n_experts, h)
        for e in range(n_experts):
            for matrix, shape in (("gate", (inner, h)), ("up", (inner, h)), ("down", (h, inner))):
                found[f"{layer}mlp.experts.{e}.{matrix}_proj.weight"] = shape
    return found


def as_transformers(written: Arrays) -> Arrays:
    """Tensors in the form that transformers writes: experts of Qwen3-VL-MoE are published transposed."""
    return {
        name: array.swapaxes(1, 2) if "language_model" in name and array.ndim == 3 else array
        for name, array in written.items()
    }


def shards(folder: Path) -> dict[str, str]:
    """Which file each tensor is in, as the index has it."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return {name: "model.safetensors" for name in load_file(folder / "model.safetensors")}
    listed: dict[str, str] = json.loads(index.read_text())["weight_map"]
    return listed


def saved_gradients(model: libmoe.Model, folder: Path) -> Arrays:
    """Gradients under the files' names and in their shapes.

    What is written depends on the parameters as  A p + b  (parts put together, turned, permuted, 1 taken
    off), so that the gradients are what is written of them less what is written of 0.
    """
    written = []
    gradients = {name: parameter.grad.copy() for name, parameter in model.parameters.items()}
    for scale in (1, 0):
        for name, parameter in model.parameters.items():
            parameter.data[...] = scale * gradients[name]
        model.save_pretrained(folder, dtype="f32", max_shard_size=0)
        written.append(as_transformers(tensors(folder)))
    return {name: written[0][name] - written[1][name] for name in written[0]}


def prints(gradients: Arrays, wanted: Arrays) -> list[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Fingerprints of gradients: name, those found, those wanted."""
    sizes = json.loads(str(wanted["gradient_sizes"]))
    ends = np.cumsum(list(sizes.values()))[:-1]
    parts = dict(zip(sizes, np.split(wanted["gradients"], ends)))
    return [(name, fingerprint(name, gradients[name]), part) for name, part in parts.items()]
