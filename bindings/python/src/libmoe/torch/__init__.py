"""libmoe for PyTorch: a Mixture-of-Experts layer as a module, and experts alone as a function.

Nothing else of libmoe imports torch.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("libmoe.torch needs PyTorch: pip install 'libmoe[torch]'") from error

from .communicator import communicator
from .experts import experts, prepare
from .moe import MoE
from .prepared import Prepared
from .report import Report

__all__ = ["MoE", "Prepared", "Report", "communicator", "experts", "prepare"]
