"""Layers of known models: each function returns keyword arguments for a layer.

Written by scripts/abi from include/*.h; do not edit.

They are the model's own, sizes included; what is passed takes their place, so
``libmoe.Layer(**libmoe.presets.mixtral(hidden_size=64, intermediate_size=256))`` is a small Mixtral layer.
``n_groups=None`` leaves out a model's groups.  ``docs/presets.md`` lists what each one sets and from where.

Every function takes keyword arguments of :class:`Layer`, whose values are not looked at until it gets them,
and returns a dict: what the model has that differs from the defaults of :class:`Layer`, and these.

Examples
--------
>>> import libmoe
>>> options = libmoe.presets.mixtral(hidden_size=64, intermediate_size=256)
>>> options["n_experts"], options["top_k"], options["expert_kind"], options["activation"]
(8, 2, 'gated', 'silu')
>>> layer = libmoe.Layer(**options)
"""

from __future__ import annotations

from typing import Any

from . import _preset
from .words import Layout

#: The layouts that files of each preset's model have, the published one first; ``"libmoe"`` holds all.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "mixtral": ("mixtral", "transformers_5"),
    "qwen2_moe": ("qwen2_moe", "transformers_5"),
    "qwen3_moe": ("qwen3_moe", "transformers_5"),
    "olmoe": ("olmoe", "transformers_5"),
    "deepseek_v2": ("deepseek", "transformers_5"),
    "deepseek_v3": ("deepseek", "transformers_5"),
    "glm4_moe": ("deepseek", "transformers_5"),
    "gpt_oss": ("gpt_oss_mxfp4", "gpt_oss"),
    "granite_moe": ("granite_moe",),
    "jetmoe": ("jetmoe",),
    "phimoe": ("mixtral",),
    "dbrx": ("dbrx",),
    "llama4": ("llama4", "llama4_text"),
    "minimax_m2": ("minimax_m2",),
    "ernie4_5": ("ernie4_5",),
    "longcat_flash": ("longcat_flash",),
    "switch": ("switch_encoder", "switch_decoder"),
    "jamba": ("jamba",),
    "llama_cpp": ("mixtral",),
    "gemma4": ("gemma4",),
    "qwen3_vl_moe": ("qwen3_vl_moe",),
    "qwen3_5_moe": ("qwen3_5_moe",),
    "dots1": ("deepseek", "transformers_5"),
    "hunyuan": ("hunyuan",),
    "nemotron_h": ("nemotron_h",),
    "lfm2_moe": ("lfm2_moe",),
    "afmoe": ("afmoe",),
    "deepseek_v4": ("deepseek_v4",),
    "nllb_moe": ("nllb_encoder", "nllb_decoder"),
}


def mixtral(**overrides: Any) -> dict[str, Any]:
    """Return the options of Mixtral 8x7B."""
    return _preset.options("mixtral", overrides)


def qwen2_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of Qwen2-MoE."""
    return _preset.options("qwen2_moe", overrides)


def qwen3_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of Qwen3-MoE."""
    return _preset.options("qwen3_moe", overrides)


def olmoe(**overrides: Any) -> dict[str, Any]:
    """Return the options of OLMoE."""
    return _preset.options("olmoe", overrides)


def deepseek_v2(**overrides: Any) -> dict[str, Any]:
    """Return the options of DeepSeek-V2."""
    return _preset.options("deepseek_v2", overrides)


def deepseek_v3(**overrides: Any) -> dict[str, Any]:
    """Return the options of DeepSeek-V3."""
    return _preset.options("deepseek_v3", overrides)


def glm4_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of GLM-4 MoE."""
    return _preset.options("glm4_moe", overrides)


def gpt_oss(**overrides: Any) -> dict[str, Any]:
    """Return the options of gpt-oss."""
    return _preset.options("gpt_oss", overrides)


def granite_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of GraniteMoE."""
    return _preset.options("granite_moe", overrides)


def jetmoe(**overrides: Any) -> dict[str, Any]:
    """Return the options of JetMoE."""
    return _preset.options("jetmoe", overrides)


def phimoe(**overrides: Any) -> dict[str, Any]:
    """Return the options of PhiMoE."""
    return _preset.options("phimoe", overrides)


def dbrx(**overrides: Any) -> dict[str, Any]:
    """Return the options of DBRX."""
    return _preset.options("dbrx", overrides)


def llama4(**overrides: Any) -> dict[str, Any]:
    """Return the options of Llama-4."""
    return _preset.options("llama4", overrides)


def minimax_m2(**overrides: Any) -> dict[str, Any]:
    """Return the options of MiniMax-M2."""
    return _preset.options("minimax_m2", overrides)


def ernie4_5(**overrides: Any) -> dict[str, Any]:
    """Return the options of ERNIE 4.5 MoE."""
    return _preset.options("ernie4_5", overrides)


def longcat_flash(**overrides: Any) -> dict[str, Any]:
    """Return the options of LongCat-Flash."""
    return _preset.options("longcat_flash", overrides)


def switch(**overrides: Any) -> dict[str, Any]:
    """Return the options of Switch Transformers."""
    return _preset.options("switch", overrides)


def jamba(**overrides: Any) -> dict[str, Any]:
    """Return the options of Jamba."""
    return _preset.options("jamba", overrides)


def llama_cpp(**overrides: Any) -> dict[str, Any]:
    """Return the options of llama.cpp."""
    return _preset.options("llama_cpp", overrides)


def gemma4(**overrides: Any) -> dict[str, Any]:
    """Return the options of Gemma 4."""
    return _preset.options("gemma4", overrides)


def qwen3_vl_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of Qwen3-VL-MoE."""
    return _preset.options("qwen3_vl_moe", overrides)


def qwen3_5_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of Qwen3.5-MoE."""
    return _preset.options("qwen3_5_moe", overrides)


def dots1(**overrides: Any) -> dict[str, Any]:
    """Return the options of dots.llm1."""
    return _preset.options("dots1", overrides)


def hunyuan(**overrides: Any) -> dict[str, Any]:
    """Return the options of Hunyuan-A13B."""
    return _preset.options("hunyuan", overrides)


def nemotron_h(**overrides: Any) -> dict[str, Any]:
    """Return the options of the MoE layers of Nemotron-H."""
    return _preset.options("nemotron_h", overrides)


def lfm2_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of LFM2-MoE."""
    return _preset.options("lfm2_moe", overrides)


def afmoe(**overrides: Any) -> dict[str, Any]:
    """Return the options of AFMoE."""
    return _preset.options("afmoe", overrides)


def deepseek_v4(**overrides: Any) -> dict[str, Any]:
    """Return the options of DeepSeek-V4."""
    return _preset.options("deepseek_v4", overrides)


def nllb_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of NLLB-MoE."""
    return _preset.options("nllb_moe", overrides)
