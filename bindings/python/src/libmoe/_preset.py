"""What a preset gives: the library's numbers in Python's words, and what a caller puts in their place."""

from __future__ import annotations

import ctypes
import inspect
from typing import Any

from . import _keywords, config
from ._native import abi
from ._native.library import lib
from .layer import Layer


def options(model: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return what the library's function of that model sets, in Python's words, then the overrides."""
    filled = abi.moe_layer_config()
    getattr(lib, f"moe_preset_{model}")(ctypes.byref(filled), ctypes.sizeof(filled))
    defaults = inspect.signature(Layer).parameters
    own = {name: value for name, value in config.from_c(filled).items() if value != defaults[name].default}
    overrides = _keywords.renamed(overrides, defaults)
    _keywords.require_known(f"presets.{model}", overrides, defaults)
    if "n_groups" in overrides and overrides["n_groups"] in (0, 1, None, abi.NO_GROUPS):
        # What describes the model's groups goes with them.  One group is all experts.
        for name in ("n_groups", "top_groups", "group_top_m", "group_mask"):
            own.pop(name, None)
        own["top_groups"] = 1
        if overrides["n_groups"] != 1:
            del overrides["n_groups"], own["top_groups"]
    return {**own, **overrides}
