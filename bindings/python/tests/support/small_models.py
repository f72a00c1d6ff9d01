"""The small models of parity/checkpoints, as transformers saved them, and their layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

import libmoe
from comparison import assert_all_same_bits

FOLDER = Path(__file__).parents[1] / "parity" / "checkpoints"
H, WIDTH, E, K = 8, 12, 4, 2
SIZES: dict[str, Any] = {"hidden_size": H, "intermediate_size": WIDTH, "n_experts": E, "top_k": K}
SWITCH: dict[str, Any] = {
    "capacity_formula": "none",
    "capacity": 0,
    "capacity_per_sequence": False,
    "top_k": 1,
}

UNGROUPED: dict[str, Any] = {"n_groups": 0, "top_groups": 0, "group_top_m": 0}
IDENTITIES = 2
LONGCAT: dict[str, Any] = {
    "n_experts": E + IDENTITIES,
    "intermediate_size": 0,
    "expert_groups": [
        libmoe.ExpertGroup(n_experts=E, expert_kind="gated", activation="silu", intermediate_size=WIDTH),
        libmoe.ExpertGroup(n_experts=IDENTITIES, expert_kind="identity"),
    ],
}

# The preset, and what is different in the small model of tests/parity/generate_checkpoints.py.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {}),
    "qwen2_moe": ("qwen2_moe", {"shared_intermediate_size": 6}),
    "qwen3_moe": ("qwen3_moe", {}),
    "olmoe": ("olmoe", {}),
    "deepseek": ("deepseek_v3", {**UNGROUPED, "shared_intermediate_size": WIDTH}),
    "gpt_oss": ("gpt_oss", {}),
    "granite_moe": ("granite_moe", {}),
    "llama4_text": ("llama4", {"top_k": 1, "shared_intermediate_size": WIDTH}),
    "dbrx": ("dbrx", {}),
    "switch_encoder": ("switch", SWITCH),
    "switch_decoder": ("switch", SWITCH),
    "jetmoe": ("jetmoe", {}),
    "minimax_m2": ("minimax_m2", {}),
    "ernie4_5": ("ernie4_5", {"shared_intermediate_size": 2 * WIDTH}),
    "longcat_flash": ("longcat_flash", LONGCAT),
    "jamba": ("jamba", {}),
    "hunyuan": ("hunyuan", {"shared_intermediate_size": WIDTH}),
    "dots1": ("dots1", {"shared_intermediate_size": 2 * WIDTH}),
    "nemotron_h": ("nemotron_h", {"shared_intermediate_size": 6}),
    "lfm2_moe": ("lfm2_moe", {}),
    "afmoe": ("afmoe", {"shared_intermediate_size": 2 * WIDTH}),
    "deepseek_v4": ("deepseek_v4", {"shared_intermediate_size": WIDTH, "glu_limit": 1.0}),
    "nllb_encoder": ("nllb_moe", {}),
    "nllb_decoder": ("nllb_moe", {}),
    "gemma4": ("gemma4", {}),
    "qwen3_vl_moe": ("qwen3_vl_moe", {}),
    "qwen3_5_moe": ("qwen3_5_moe", {"shared_intermediate_size": 6}),
}
BLOCKS = np.load(FOLDER / "blocks.npz")


def make(model: str, **overrides: Any) -> libmoe.Layer:
    preset, changes = MODELS[model]
    return libmoe.Layer(**getattr(libmoe.presets, preset)(**{**SIZES, **changes, **overrides}))


def layout_of(model: str) -> Any:
    """A file's layout: its name, but for a model that has another's."""
    return "deepseek" if model == "dots1" else model


def file_of(model: str) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = load_file(FOLDER / f"{model}.safetensors")
    return tensors


def beginning_of(model: str) -> str:
    """What the names of layer 1 begin with in the file."""
    names = [name for name in file_of(model) if re.search(r"\.(layers|blocks?)\.1\.", name)]
    ends = ("shared_experts.", "experts.", "input_linear")
    return min((name.split(end)[0] for name in names for end in ends if end in name), key=len)


def of_layer_1(model: str) -> dict[str, NDArray[Any]]:
    beginning = beginning_of(model)
    return {name: array for name, array in file_of(model).items() if name.startswith(beginning)}


def as_saved(model: str) -> dict[str, NDArray[Any]]:
    """What libmoe writes for what transformers wrote: the same, but where a model has two forms or names."""
    tensors = of_layer_1(model)
    if model == "longcat_flash":  # identities have no matrices, though transformers writes some
        idle = tuple(f"{beginning_of(model)}experts.{E + n}." for n in range(IDENTITIES))
        return {name: array for name, array in tensors.items() if not name.startswith(idle)}
    if model == "deepseek_v4":  # as published
        return {name.removeprefix("model."): array for name, array in tensors.items()}
    if model == "qwen3_vl_moe":  # as published: transposed
        return {
            name: np.swapaxes(array, 1, 2) if array.ndim == 3 else array for name, array in tensors.items()
        }
    return tensors


def read_of(model: str) -> list[str]:
    """Names in the file that are read."""
    return list(as_saved(model) if model == "longcat_flash" else of_layer_1(model))


def same(one: libmoe.Layer, other: libmoe.Layer) -> None:
    """Both have the same parameters and buffers."""
    assert_all_same_bits(one.state_dict(), other.state_dict())
