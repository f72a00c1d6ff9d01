"""libmoe for PyTorch: a Mixture-of-Experts layer as a module.

Nothing else of libmoe imports torch.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("libmoe.torch needs PyTorch: pip install 'libmoe[torch]'") from error

from .moe import MoE
from .report import Report

__all__ = ["MoE", "Report"]
