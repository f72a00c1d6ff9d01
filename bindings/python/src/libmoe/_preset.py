"""Layers of known models: each function returns keyword arguments for :class:`Layer`.

They are the model's own, sizes included; what is passed takes their place, so
``libmoe.Layer(**libmoe.presets.mixtral(hidden_size=64, intermediate_size=256))`` is a small Mixtral layer.
``docs/presets.md`` lists what each one sets and from where.

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

import ctypes
import inspect
from typing import Any

from . import _abi, _keywords, config
from ._library import lib
from .errors import ArgumentTypeError
from .layer import Layer
from .words import Layout

_DEEPSEEK: tuple[Layout, ...] = ("deepseek", "transformers_5")

#: The layouts that files of each preset's model have, the published one first; ``"libmoe"`` holds all.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "mixtral": ("mixtral", "transformers_5"),
    "qwen2_moe": ("qwen2_moe", "transformers_5"),
    "qwen3_moe": ("qwen3_moe", "transformers_5"),
    "olmoe": ("olmoe", "transformers_5"),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": _DEEPSEEK,
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
    "dots1": _DEEPSEEK,
    "hunyuan": ("hunyuan",),
    "nemotron_h": ("nemotron_h",),
    "lfm2_moe": ("lfm2_moe",),
    "afmoe": ("afmoe",),
    "deepseek_v4": ("deepseek_v4",),
    "nllb_moe": ("nllb_encoder", "nllb_decoder"),
}


def _preset(model: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return what the library's function of that model sets, in Python's words, then the overrides."""
    filled = _abi.moe_layer_config()
    getattr(lib, f"moe_preset_{model}")(ctypes.byref(filled), ctypes.sizeof(filled))
    defaults = inspect.signature(Layer).parameters
    own = {name: value for name, value in config.from_c(filled).items() if value != defaults[name].default}
    overrides = _keywords.renamed(overrides, defaults)
    for name in overrides.keys() - defaults.keys():
        raise ArgumentTypeError(_keywords.unknown(f"presets.{model}", name, defaults))
    if "n_groups" in overrides and overrides["n_groups"] in (0, 1, None, _abi.NO_GROUPS):
        # What describes the model's groups goes with them.  One group is all experts.
        for name in ("n_groups", "top_groups", "group_top_m", "group_mask"):
            own.pop(name, None)
        own["top_groups"] = 1
        if overrides["n_groups"] != 1:
            del overrides["n_groups"], own["top_groups"]
    return {**own, **overrides}


def mixtral(**overrides: Any) -> dict[str, Any]:
    """Return the options of Mixtral 8x7B."""
    return _preset("mixtral", overrides)


def qwen2_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of Qwen2-MoE."""
    return _preset("qwen2_moe", overrides)


def qwen3_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of Qwen3-MoE."""
    return _preset("qwen3_moe", overrides)


def olmoe(**overrides: Any) -> dict[str, Any]:
    """Return the options of OLMoE."""
    return _preset("olmoe", overrides)


def deepseek_v2(**overrides: Any) -> dict[str, Any]:
    """Return the options of DeepSeek-V2; with ``n_groups=None`` without groups, as DeepSeek-V2-Lite is."""
    return _preset("deepseek_v2", overrides)


def deepseek_v3(**overrides: Any) -> dict[str, Any]:
    """Return the options of DeepSeek-V3; with ``n_groups=None`` without groups."""
    return _preset("deepseek_v3", overrides)


def glm4_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of GLM-4 MoE."""
    return _preset("glm4_moe", overrides)


def gpt_oss(**overrides: Any) -> dict[str, Any]:
    """Return the options of gpt-oss."""
    return _preset("gpt_oss", overrides)


def granite_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of GraniteMoE."""
    return _preset("granite_moe", overrides)


def jetmoe(**overrides: Any) -> dict[str, Any]:
    """Return the options of JetMoE."""
    return _preset("jetmoe", overrides)


def phimoe(**overrides: Any) -> dict[str, Any]:
    """Return the options of PhiMoE."""
    return _preset("phimoe", overrides)


def dbrx(**overrides: Any) -> dict[str, Any]:
    """Return the options of DBRX."""
    return _preset("dbrx", overrides)


def llama4(**overrides: Any) -> dict[str, Any]:
    """Return the options of Llama-4."""
    return _preset("llama4", overrides)


def minimax_m2(**overrides: Any) -> dict[str, Any]:
    """Return the options of MiniMax-M2."""
    return _preset("minimax_m2", overrides)


def ernie4_5(**overrides: Any) -> dict[str, Any]:
    """Return the options of ERNIE 4.5 MoE."""
    return _preset("ernie4_5", overrides)


def longcat_flash(**overrides: Any) -> dict[str, Any]:
    """Return the options of LongCat-Flash."""
    return _preset("longcat_flash", overrides)


def switch(**overrides: Any) -> dict[str, Any]:
    """Return the options of Switch Transformers."""
    return _preset("switch", overrides)


def jamba(**overrides: Any) -> dict[str, Any]:
    """Return the options of Jamba."""
    return _preset("jamba", overrides)


def gemma4(**overrides: Any) -> dict[str, Any]:
    """Return the options of Gemma 4."""
    return _preset("gemma4", overrides)


def llama_cpp(**overrides: Any) -> dict[str, Any]:
    """Return the options of llama.cpp."""
    return _preset("llama_cpp", overrides)


def qwen3_vl_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of Qwen3-VL-MoE."""
    return _preset("qwen3_vl_moe", overrides)


def qwen3_5_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of Qwen3.5-MoE."""
    return _preset("qwen3_5_moe", overrides)


def dots1(**overrides: Any) -> dict[str, Any]:
    """Return the options of dots.llm1."""
    return _preset("dots1", overrides)


def hunyuan(**overrides: Any) -> dict[str, Any]:
    """Return the options of Hunyuan-A13B."""
    return _preset("hunyuan", overrides)


def nemotron_h(**overrides: Any) -> dict[str, Any]:
    """Return the options of the MoE layers of Nemotron-H."""
    return _preset("nemotron_h", overrides)


def lfm2_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of LFM2-MoE."""
    return _preset("lfm2_moe", overrides)


def afmoe(**overrides: Any) -> dict[str, Any]:
    """Return the options of AFMoE."""
    return _preset("afmoe", overrides)


def deepseek_v4(**overrides: Any) -> dict[str, Any]:
    """Return the options of DeepSeek-V4."""
    return _preset("deepseek_v4", overrides)


def nllb_moe(**overrides: Any) -> dict[str, Any]:
    """Return the options of NLLB-MoE."""
    return _preset("nllb_moe", overrides)
