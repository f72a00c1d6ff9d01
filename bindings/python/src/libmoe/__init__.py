"""libmoe: a Mixture-of-Experts layer for the CPU that trains, and transformers of such layers.

A :class:`Layer` computes forwards and backwards on numpy arrays, without copies; :class:`AdamW`,
:class:`SGD` and :class:`Muon` step its parameters and the user's own.  A :class:`Model` is a whole encoder or
language model;
``libmoe.blocks`` has its parts, ``libmoe.train`` a trainer.  Arrays are row-major
and float32, some of them bfloat16 where that is asked for.  The work is done by the native library
``libmoe.so``, which the package carries.
"""

from ._native import interpreter as _interpreter  # noqa: F401  # numpy does not load in a sub-interpreter

# isort: split
from . import presets, words
from ._native.memory import Memory
from ._native.reports import Report, Summary
from ._version import __version__
from .adaptive_clip import AdaptiveClip
from .bfloat16 import from_bfloat16, to_bfloat16
from .calibration import CalibratedMatrix, Calibration, calibrate
from .checkpoint import Checkpoint, save
from .communicator import Communicator
from .config import ExpertGroup
from .context import ALL_THREADS, Context, build_info, default_context, processors
from .encoder import EncoderLayer
from .errors import (
    ArgumentTypeError,
    BadStateError,
    CommunicationError,
    FileError,
    InvalidArgumentError,
    MoeError,
    NotFiniteError,
    OutOfMemoryError,
)
from .expert_ranks import ExpertRanks
from .expert_weights import ExpertGradients, ExpertWeights
from .experts import (
    ExpertsOutput,
    PreparedExperts,
    experts_backward,
    experts_forward,
    experts_plan,
    experts_prepare,
)
from .generation import Cache
from .layer import Layer
from .losses import pooled_balance_loss
from .memory import MappedFile, OffloadStatistics, Plan
from .model import Model
from .model_output import ModelOutput, ModelPlan, ModelTape
from .optim import SGD, AdamW, Group, Muon, Optimizer, clip_grad_norm
from .parameter import Parameter
from .pretrained import PretrainedInfo, describe_pretrained, pretrained_families
from .profile import PhaseTime, Profile
from .report import Output
from .routing import Routing
from .sampling import Sampling
from .schedule import Schedule
from .statistics import Statistics
from .tape import Tape
from .tokenizer import Tokenizer
from .training import load_training, save_training

__all__ = [
    "ALL_THREADS",
    "SGD",
    "AdamW",
    "AdaptiveClip",
    "ArgumentTypeError",
    "BadStateError",
    "Cache",
    "CalibratedMatrix",
    "Calibration",
    "Checkpoint",
    "CommunicationError",
    "Communicator",
    "Context",
    "EncoderLayer",
    "ExpertGroup",
    "ExpertGradients",
    "ExpertRanks",
    "ExpertWeights",
    "ExpertsOutput",
    "FileError",
    "Group",
    "InvalidArgumentError",
    "Layer",
    "MappedFile",
    "Memory",
    "Model",
    "ModelOutput",
    "ModelPlan",
    "ModelTape",
    "MoeError",
    "Muon",
    "NotFiniteError",
    "OffloadStatistics",
    "Optimizer",
    "OutOfMemoryError",
    "Output",
    "Parameter",
    "PhaseTime",
    "Plan",
    "PreparedExperts",
    "PretrainedInfo",
    "Profile",
    "Report",
    "Routing",
    "Sampling",
    "Schedule",
    "Statistics",
    "Summary",
    "Tape",
    "Tokenizer",
    "__version__",
    "build_info",
    "calibrate",
    "clip_grad_norm",
    "default_context",
    "describe_pretrained",
    "experts_backward",
    "experts_forward",
    "experts_plan",
    "experts_prepare",
    "from_bfloat16",
    "load_training",
    "pooled_balance_loss",
    "processors",
    "presets",
    "pretrained_families",
    "save",
    "save_training",
    "to_bfloat16",
    "words",
]
