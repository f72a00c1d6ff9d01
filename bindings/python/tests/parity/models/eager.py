"""Blocks with the experts that transformers writes out in PyTorch, not with those fused for a device."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

from torch import nn


def eager(block: type[nn.Module], config: Any) -> nn.Module:
    """Make the block."""
    config._experts_implementation = "eager"
    made: nn.Module = block(config)
    return made
