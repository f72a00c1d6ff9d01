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
from pretrained_models import FOLDERS

Q = "model.layers.1.self_attn.q_proj."  # what is spoilt
Make = Callable[[np.random.Generator, int, int], Quantised]
WIDE = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = 8
WIDE |= {"num_experts": EXPERTS, "num_experts_per_tok": 2}


def sizes(hidden: int = 64, width: int = 32) -> dict[str, tuple[int, ...]]:
    """Of an OLMoE of rows of so many; queries are 64, keys 32."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (80, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (80, hidden),
    }  # fmt: skip
    for n in range(2):
        layer = f"model.layers.{n}."
        found |= {
            layer + f"{each}.weight": (hidden,) for each in ("input_layernorm", "post_attention_layernorm")
        }
        found |= {layer + "self_attn.q_norm.weight": (64,), layer + "self_attn.k_norm.weight": (32,)}
        found |= {
            layer + "self_attn.q_proj.weight": (64, hidden),
            layer + "self_attn.o_proj.weight": (hidden, 64),
        }
        found |= {layer + f"self_attn.{each}_proj.weight": (32, hidden) for each in "kv"}
        found[layer + "mlp.gate.weight"] = (EXPERTS, hidden)
        for e in range(EXPERTS):
            expert = layer + f"mlp.experts.{e}."
            found |= {expert + f"{each}_proj.weight": (width, hidden) for each in ("gate", "up")}
            found[expert + "down_proj.weight"] = (hidden, width)
    return found


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
    for name, shape in sizes(hidden, width).items():
        if len(shape) == 2 and chosen(name):
            made = make(rng, *shape)
            packed |= {f"{name.removesuffix('weight')}{own}": values for own, values in made.tensors.items()}
            plain[name] = made.weights
        else:
            packed[name] = plain[name] = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
    for name, change in changed.items():
        packed[Q + name] = change(packed.get(Q + name))
    packed = {name: values for name, values in packed.items() if values is not None}
    base = json.loads((FOLDERS / "olmoe" / "config.json").read_text()) | WIDE
    base |= {"hidden_size": hidden, "intermediate_size": width, "head_dim": 16}
    found = []
    for name, tensors, more in (("packed", packed, {"quantization_config": config}), ("plain", plain, {})):
        folder = place / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**base, **more}))
        save_file(tensors, folder / "model.safetensors")
        found.append(folder)
    return found[0], found[1]
