"""libmoe: a Mixture-of-Experts layer for the CPU that trains.

A :class:`Layer` computes forwards and backwards on numpy arrays, without copies; :class:`AdamW` and
:class:`SGD` step its parameters and the user's own.  Arrays are row-major and float32, some of them bfloat16
where that is asked for.  The work is done by the native library ``libmoe.so``, which the package carries.
"""

from ._version import __version__
from .bfloat16 import from_bfloat16, to_bfloat16
from .context import ALL_THREADS, Context, build_info, default_context
from .errors import BadStateError, InvalidArgumentError, MoeError, NotFiniteError, OutOfMemoryError
from .layer import Layer, Output, Report, Tape
from .optim import SGD, AdamW, clip_grad_norm
from .parameter import Parameter

__all__ = [
    "ALL_THREADS",
    "SGD",
    "AdamW",
    "BadStateError",
    "Context",
    "InvalidArgumentError",
    "Layer",
    "MoeError",
    "NotFiniteError",
    "OutOfMemoryError",
    "Output",
    "Parameter",
    "Report",
    "Tape",
    "__version__",
    "build_info",
    "clip_grad_norm",
    "default_context",
    "from_bfloat16",
    "to_bfloat16",
]
