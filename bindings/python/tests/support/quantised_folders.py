"""Folders of an OLMoE whose weights are quantised, and of their numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from oracle.quantised import Array, Quantised
from pretrained_models import FOLDERS, shapes

Q = "model.layers.1.self_attn.q_proj."  # what is spoilt
Make = Callable[[np.random.Generator, int, int], Quantised]
WIDE = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = 8
WIDE |= {"num_experts": EXPERTS, "num_experts_per_tok": 2}


def everything(name: str) -> bool:
    return "proj" in name


def experts(name: str) -> bool:
    """As Kimi-K2 has it."""
    return ".experts." in name


def folders(
    place: Path,
    config: dict[str, Any],
    make: Make,
    chosen: Callable[[str], bool] = everything,
    changed: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
    hidden: int = 64,
    width: int = 32,
) -> tuple[Path, Path]:
    """A folder with quantised weights, and one with their numbers; some of one matrix are spoilt."""
    rng = np.random.default_rng(hidden)
    packed: dict[str, Array] = {}
    plain: dict[str, Array] = {}
    base = json.loads((FOLDERS / "olmoe" / "config.json").read_text()) | WIDE
    base |= {"hidden_size": hidden, "intermediate_size": width, "head_dim": 16}
    for name, shape in shapes(base, EXPERTS).items():
        if len(shape) == 2 and chosen(name):
            made = make(rng, *shape)
            packed |= {f"{name.removesuffix('weight')}{own}": values for own, values in made.tensors.items()}
            plain[name] = made.weights
        else:
            packed[name] = plain[name] = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
    for name, change in changed.items():
        packed[Q + name] = change(packed.get(Q + name))
    packed = {name: values for name, values in packed.items() if values is not None}
    found = []
    for name, tensors, more in (("packed", packed, {"quantization_config": config}), ("plain", plain, {})):
        folder = place / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**base, **more}))
        save_file(tensors, folder / "model.safetensors")
        found.append(folder)
    return found[0], found[1]
