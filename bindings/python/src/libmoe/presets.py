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


def _preset(model: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return what the library's function of that model sets, in Python's words, then the overrides."""
    filled = _abi.moe_layer_config()
    getattr(lib, f"moe_preset_{model}")(ctypes.byref(filled), ctypes.sizeof(filled))
    defaults = inspect.signature(Layer).parameters
    own = {name: value for name, value in config.from_c(filled).items() if value != defaults[name].default}
    for name in _keywords.renamed(overrides, defaults).keys() - defaults.keys():
        raise ArgumentTypeError(_keywords.unknown(f"presets.{model}", name, defaults))
    return {**own, **_keywords.renamed(overrides, defaults)}


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
    """Return the options of DeepSeek-V2."""
    return _preset("deepseek_v2", overrides)


def deepseek_v3(**overrides: Any) -> dict[str, Any]:
    """Return the options of DeepSeek-V3."""
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


def llama_cpp(**overrides: Any) -> dict[str, Any]:
    """Return the options of llama.cpp."""
    return _preset("llama_cpp", overrides)
