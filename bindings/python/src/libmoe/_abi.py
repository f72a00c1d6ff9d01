"""The C declarations of ``include/moe.h`` for ctypes: every enum, struct and function, and nothing else.

A test parses the header and compares.  Arrays of numbers are passed by address (``c_void_p``); their element
type and shape are checked where a numpy array enters, in ``_check.py``.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
    py_object,
)
from typing import Any

# Enums: the C constant is the prefix and the name in capitals, MOE_MATMUL_AUTO.
STATUS = {"ok": 0, "invalid_argument": 1, "out_of_memory": 2, "bad_state": 3, "not_finite": 4, "cancelled": 5}
MATMUL = {"auto": 0, "openblas": 1, "reference": 2, "native": 3}
PREPARED = {"none": 0, "f32": 1, "bf16": 2}
INSTRUCTIONS = {"all": 0, "base": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4}
LOG = {"info": 0}
DTYPE = {"f32": 0, "bf16": 1}
ROUTER_WEIGHTS = {"scores": 0, "topk_softmax": 1, "topk_sigmoid": 2}
SCORE = {"softmax": 0, "sigmoid": 1, "sqrt_softplus": 2, "identity": 3}
NORMALIZE = {"sum": 0, "none": 1, "norm1": 2, "norm2": 3}
EPSILON = {"added": 0, "least": 1}
GROUP_MASK = {"minus_infinity": 0, "zero": 1}
BIAS = {"default": 0, "off": 1, "on": 2}
EXPERT = {"mlp": 0, "gated": 1, "linear": 2}
ACTIVATION = {"gelu": 0, "gelu_tanh": 1, "silu": 2, "relu": 3, "relu2": 4, "quick_gelu": 5}
THREADS_ALL = -1


class Status(c_int):
    """What a function returns that can fail."""


# Opaque handles: a pointer type of its own for each, so that ctypes refuses a tape where a layer belongs.
class moe_context(ctypes.Structure):
    """Opaque."""


class moe_layer(ctypes.Structure):
    """Opaque."""


class moe_tape(ctypes.Structure):
    """Opaque."""


class moe_optimizer(ctypes.Structure):
    """Opaque."""


class _Sized(ctypes.Structure):
    """A struct that tells the library how large it was when compiled."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


AllocFunction = CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_size_t)
DeallocFunction = CFUNCTYPE(None, c_void_p, c_void_p)
LogFunction = CFUNCTYPE(None, c_void_p, c_int32, c_char_p)
CancelFunction = CFUNCTYPE(c_int32, py_object)


class moe_context_config(_Sized):
    """How a context is made."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_threads", c_int32),
        ("matmul", c_int32),
        ("alloc", AllocFunction),
        ("dealloc", DeallocFunction),
        ("alloc_user", c_void_p),
        ("log", LogFunction),
        ("log_user", c_void_p),
        ("cancel", CancelFunction),
        ("cancel_user", py_object),
        ("instructions", c_int32),
        ("reserved", c_int32),
    ]


class moe_tensor(_Sized):
    """Name, shape and memory of a parameter or of the caller's own array."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("shape", c_int64 * 4),
        ("strides", c_int64 * 4),
        ("data", c_void_p),
        ("grad", c_void_p),
    ]


class moe_layer_config(_Sized):
    """How a layer is made."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("n_experts", c_int64),
        ("top_k", c_int64),
        ("router_weights", c_int32),
        ("router_normalize", c_int32),
        ("router_bias", c_int32),
        ("expert_kind", c_int32),
        ("activation", c_int32),
        ("expert_bias", c_int32),
        ("inference_only", c_int32),
        ("dropout", c_float),
        ("balance_coef", c_float),
        ("z_coef", c_float),
        ("seed", c_uint64),
        ("weight_dtype", c_int32),
        ("io_dtype", c_int32),
        ("glu_limit", c_float),
        ("glu_alpha", c_float),
        ("glu_offset", c_float),
        ("score", c_int32),
        ("selection_bias", c_int32),
        ("expert_scale", c_int32),
        ("n_groups", c_int32),
        ("top_groups", c_int32),
        ("group_top_m", c_int32),
        ("group_mask", c_int32),
        ("epsilon_form", c_int32),
        ("normalize_epsilon", c_float),
        ("routed_scale", c_float),
        ("reserved", c_int32),
    ]


class moe_forward_options(_Sized):
    """Training or evaluation."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("step", c_uint64),
        ("training", c_int32),
        ("reserved", c_int32),
    ]


class moe_report(_Sized):
    """Losses and statistics of one forward call."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("balance_loss", c_float),
        ("z_loss", c_float),
        ("aux_loss", c_float),
        ("entropy", c_float),
        ("tokens_per_expert", c_void_p),
        ("mean_probability", c_void_p),
        ("expert_indices", c_void_p),
        ("expert_weights", c_void_p),
    ]


class moe_adamw_config(_Sized):
    """How an AdamW optimiser is made."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("epsilon", c_double),
        ("weight_decay", c_double),
    ]


class moe_sgd_config(_Sized):
    """How an SGD optimiser is made."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("learning_rate", c_double),
        ("momentum", c_double),
        ("weight_decay", c_double),
    ]


# What a function returns, and what it takes.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "moe_version": (c_int32, []),
    "moe_version_string": (c_char_p, []),
    "moe_status_name": (c_char_p, [Status]),
    "moe_last_error_message": (c_char_p, []),
    "moe_context_config_init": (None, [POINTER(moe_context_config), c_size_t]),
    "moe_context_create": (Status, [POINTER(moe_context_config), POINTER(POINTER(moe_context))]),
    "moe_context_free": (None, [POINTER(moe_context)]),
    "moe_build_info": (c_char_p, [POINTER(moe_context)]),
    "moe_tensor_init": (None, [POINTER(moe_tensor), c_size_t]),
    "moe_layer_config_init": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_layer_create": (
        Status,
        [POINTER(moe_context), POINTER(moe_layer_config), POINTER(POINTER(moe_layer))],
    ),
    "moe_layer_free": (None, [POINTER(moe_layer)]),
    "moe_layer_parameter_count": (Status, [POINTER(moe_layer), POINTER(c_int64)]),
    "moe_layer_parameter": (Status, [POINTER(moe_layer), c_int64, POINTER(moe_tensor)]),
    "moe_layer_find_parameter": (Status, [POINTER(moe_layer), c_char_p, POINTER(c_int64)]),
    "moe_layer_bind_parameter": (Status, [POINTER(moe_layer), c_int64, c_void_p, c_void_p]),
    "moe_layer_zero_grad": (Status, [POINTER(moe_layer)]),
    "moe_layer_update_selection_bias": (Status, [POINTER(moe_layer), c_void_p, c_float, c_int32]),
    "moe_layer_prepare": (Status, [POINTER(moe_layer), c_int32]),
    "moe_tape_create": (Status, [POINTER(moe_layer), POINTER(POINTER(moe_tape))]),
    "moe_tape_free": (None, [POINTER(moe_tape)]),
    "moe_forward_options_init": (None, [POINTER(moe_forward_options), c_size_t]),
    "moe_report_init": (None, [POINTER(moe_report), c_size_t]),
    "moe_layer_forward": (
        Status,
        [
            POINTER(moe_layer),
            c_void_p,
            c_int64,
            POINTER(moe_forward_options),
            c_void_p,
            POINTER(moe_tape),
            POINTER(moe_report),
        ],
    ),
    "moe_layer_backward": (
        Status,
        [POINTER(moe_layer), POINTER(moe_tape), c_void_p, c_void_p, c_float, c_void_p],
    ),
    "moe_adamw_config_init": (None, [POINTER(moe_adamw_config), c_size_t]),
    "moe_sgd_config_init": (None, [POINTER(moe_sgd_config), c_size_t]),
    "moe_adamw_create": (
        Status,
        [
            POINTER(moe_context),
            POINTER(moe_adamw_config),
            POINTER(moe_tensor),
            c_int64,
            POINTER(POINTER(moe_optimizer)),
        ],
    ),
    "moe_sgd_create": (
        Status,
        [
            POINTER(moe_context),
            POINTER(moe_sgd_config),
            POINTER(moe_tensor),
            c_int64,
            POINTER(POINTER(moe_optimizer)),
        ],
    ),
    "moe_optimizer_free": (None, [POINTER(moe_optimizer)]),
    "moe_optimizer_step": (Status, [POINTER(moe_optimizer), POINTER(moe_tensor), c_int64]),
    "moe_optimizer_step_clipped": (
        Status,
        [POINTER(moe_optimizer), POINTER(moe_tensor), c_int64, c_double, POINTER(c_double)],
    ),
    "moe_optimizer_set_learning_rate": (Status, [POINTER(moe_optimizer), c_double]),
    "moe_clip_grad_norm": (
        Status,
        [POINTER(moe_context), POINTER(moe_tensor), c_int64, c_double, POINTER(c_double)],
    ),
}
