"""The C declarations of ``include/moe_model.h`` for ctypes, as ``_abi.py`` has those of ``moe.h``."""

from __future__ import annotations

from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any

from ._abi import Status, _Sized, moe_context


# Positions and attention.
class moe_attention_config(_Sized):
    """What attention is asked for."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_sequences", c_int64),
        ("n_queries", c_int64),
        ("n_keys", c_int64),
        ("n_heads", c_int64),
        ("n_kv_heads", c_int64),
        ("head_size", c_int64),
        ("query_stride", c_int64),
        ("key_stride", c_int64),
        ("value_stride", c_int64),
        ("output_stride", c_int64),
        ("scale", c_double),
        ("causal", c_int32),
        ("dropout", c_float),
        ("seed", c_uint64),
        ("step", c_uint64),
        ("mask", c_void_p),
        ("added_mask", c_void_p),
        ("valid_mask", c_void_p),
    ]


ATTENTION_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "moe_rotate": (
        Status,
        [POINTER(moe_context), c_void_p] + [c_int64] * 4 + [c_void_p, c_int64, c_int64, c_double, c_int32],
    ),
    "moe_attention_config_init": (None, [POINTER(moe_attention_config), c_size_t]),
    "moe_attention_forward": (
        Status,
        [POINTER(moe_context), POINTER(moe_attention_config)] + [c_void_p] * 5,
    ),
    "moe_attention_backward": (
        Status,
        [POINTER(moe_context), POINTER(moe_attention_config)] + [c_void_p] * 9,
    ),
}

# Norms, products with a matrix, embeddings, the loss, sampling.
NORM = {"layer": 0, "rms": 1}


class moe_sampling(_Sized):
    """How the next token is drawn."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("temperature", c_double),
        ("top_k", c_int64),
        ("top_p", c_double),
        ("seed", c_uint64),
    ]


_CONTEXT = POINTER(moe_context)
BLOCK_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "moe_norm_forward": (
        Status,
        [_CONTEXT, c_int32, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_double, c_void_p, c_void_p],
    ),
    "moe_norm_backward": (Status, [_CONTEXT, c_int32, c_void_p, c_int64, c_int64] + [c_void_p] * 6),
    "moe_linear_forward": (
        Status,
        [_CONTEXT, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int32, c_void_p, c_void_p],
    ),
    "moe_linear_backward": (
        Status,
        [_CONTEXT, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int32] + [c_void_p] * 4,
    ),
    "moe_embedding_forward": (
        Status,
        [_CONTEXT, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p] + [c_int64] * 3 + [c_void_p],
    ),
    "moe_embedding_backward": (
        Status,
        [_CONTEXT, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p] + [c_int64] * 3,
    ),
    "moe_cross_entropy": (
        Status,
        [_CONTEXT, c_void_p, c_int64, c_int64, c_void_p, c_int32, c_int64, c_void_p, c_int32]
        + [c_double, c_double, POINTER(c_double), POINTER(c_int64)]
        + [c_void_p] * 3,
    ),
    "moe_sampling_init": (None, [POINTER(moe_sampling), c_size_t]),
    "moe_sample": (
        Status,
        [_CONTEXT, c_void_p, c_int64, POINTER(moe_sampling), c_uint64, c_void_p],
    ),
}

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {**BLOCK_FUNCTIONS, **ATTENTION_FUNCTIONS}
