"""The tiny models in folders with wider rows and random numbers, so that these are made of whole blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf_models import CASES, Array, converted, finish, write_keys
from safetensors.numpy import save_file

from pretrained_models import FOLDERS, shapes, tensors

# What becomes of sizes, in config.json and in the shapes of tensors.
WIDTHS: dict[str, tuple[dict[str, Any], dict[int, int]]] = {
    "llama": ({"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}, {32: 64, 16: 32, 24: 96}),
    "gpt_oss": (
        {"hidden_size": 64, "intermediate_size": 32, "head_dim": 16},
        {32: 64, 16: 32, 24: 64, 12: 32},
    ),
    "qwen3_5_moe_text": (
        {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
        {8: 32, 12: 64},
    ),
    "granitemoeshared": (
        {"hidden_size": 64, "intermediate_size": 32, "shared_intermediate_size": 32},
        {32: 64, 16: 32, 12: 32, 24: 64},
    ),
}

QWEN = {"hidden_size": 256, "moe_intermediate_size": 256, "num_local_experts": 8, "num_experts_per_tok": 2}
QWEN |= {"num_hidden_layers": 2, "head_dim": 16, "decoder_sparse_step": 1, "attention_bias": False}


def wide(name: str, place: Path) -> Path:
    """Write a model's folder."""
    config, sizes = WIDTHS[name]
    folder = place / name
    folder.mkdir()
    known = json.loads((FOLDERS / name / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    rng = np.random.default_rng(5)
    made = {}
    for each, values in tensors(FOLDERS / name).items():
        shape = [sizes.get(size, int(size)) for size in values.shape]
        drawn = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        made[each] = 1 + drawn if "norm" in each else drawn
    save_file(made, folder / "model.safetensors")
    return folder


def random_blocks(rng: np.random.Generator, kind: Q, shape: tuple[int, ...], scale: float) -> Array:
    """Blocks with any bits, and scales that are numbers of a weight's size."""
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // numbers, size), np.uint8)
    halves = {Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q6_K: (208,)}
    halves |= dict.fromkeys((Q.Q4_1, Q.Q5_1, Q.Q4_K, Q.Q5_K), (0, 2))
    halves |= dict.fromkeys((Q.Q4_0, Q.Q5_0, Q.Q8_0, Q.IQ4_NL, Q.IQ4_XS), (0,))
    for place in halves.get(kind, ()):
        drawn = scale * rng.uniform(0.5, 1.5, len(blocks)) / numbers
        blocks[:, place : place + 2] = drawn.astype(np.float16)[:, None].view(np.uint8)
    if kind == Q.MXFP4:
        blocks[:, 0] = rng.integers(118, 124, len(blocks))
    if kind == Q.NVFP4:
        blocks[:, :4] = rng.integers(8, 40, (len(blocks), 4))
    return blocks.reshape(*shape[:-1], -1)


def wide_qwen(place: Path) -> Path:
    """A Qwen3-MoE whose rows are blocks of 256."""
    folder = place / "wide"
    folder.mkdir()
    config = json.loads((FOLDERS / "qwen3_moe" / "config.json").read_text()) | QWEN
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(5)
    made = {
        name: rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        for name, shape in shapes(config, 8).items()
    }
    save_file(made, folder / "model.safetensors")
    return folder


def write_blocks(name: str, path: Path, folder: Path, kind: Callable[[str, Array], Q | None]) -> None:
    """Write a GGUF file of a folder's model, with random blocks where there is a kind."""
    config = json.loads((folder / "config.json").read_text())
    config |= config.get("text_config", {})
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[CASES[name].architecture])
    write_keys(writer, config, CASES[name])
    rng = np.random.default_rng(6)
    for each, values in converted(name, config, tensors(folder)).items():
        chosen = None if values.ndim == 1 or "_inp" in each else kind(each, values)
        if chosen is None:
            writer.add_tensor(each, np.ascontiguousarray(values.astype(np.float32)))
        else:
            writer.add_tensor(each, random_blocks(rng, chosen, values.shape, 0.05), raw_dtype=chosen)
    finish(writer)
