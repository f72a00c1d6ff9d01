"""The C declarations of ``include/moe_model.h`` for ctypes, as ``_abi.py`` has those of ``moe.h``."""

from __future__ import annotations

from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)
from typing import Any

from ._abi import Status, _Sized, moe_context, moe_layer, moe_layer_config, moe_report, moe_tensor


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

class moe_attention_gradients(_Sized):
    """What the backward of attention is given beside the forward's arrays, and where it writes."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("doutput", c_void_p),
        ("dquery", c_void_p),
        ("dkey", c_void_p),
        ("dvalue", c_void_p),
    ]


class moe_rotary_config(_Sized):
    """How heads turn."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("n_heads", c_int64),
        ("head_size", c_int64),
        ("stride", c_int64),
        ("sequence_length", c_int64),
        ("first_position", c_int64),
        ("positions", c_void_p),
        ("theta", c_double),
        ("inverse", c_int32),
        ("reserved", c_int32),
    ]


ATTENTION_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "moe_rotary_config_init": (None, [POINTER(moe_rotary_config), c_size_t]),
    "moe_rotate": (Status, [POINTER(moe_context), POINTER(moe_rotary_config), c_void_p]),
    "moe_attention_config_init": (None, [POINTER(moe_attention_config), c_size_t]),
    "moe_attention_forward": (
        Status,
        [POINTER(moe_context), POINTER(moe_attention_config)] + [c_void_p] * 5,
    ),
    "moe_attention_gradients_init": (None, [POINTER(moe_attention_gradients), c_size_t]),
    "moe_attention_backward": (
        Status,
        [POINTER(moe_context), POINTER(moe_attention_config)]
        + [c_void_p] * 5
        + [POINTER(moe_attention_gradients)],
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

    def __init__(self, top_p: float = 1.0, **fields: Any) -> None:
        super().__init__(top_p=top_p, **fields)


class moe_norm_config(_Sized):
    """What a norm is."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("hidden_size", c_int64),
        ("epsilon", c_double),
        ("norm", c_int32),
        ("reserved", c_int32),
    ]


class moe_linear_config(_Sized):
    """What a product with a matrix is."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("weight_dtype", c_int32),
        ("reserved", c_int32),
    ]


class moe_embedding_config(_Sized):
    """How large tables are, and where positions begin."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("hidden_size", c_int64),
        ("n_rows", c_int64),
        ("n_positions", c_int64),
        ("sequence_length", c_int64),
        ("first_position", c_int64),
    ]


class moe_cross_entropy_config(_Sized):
    """What a loss is."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("hidden_size", c_int64),
        ("vocabulary_size", c_int64),
        ("weight_dtype", c_int32),
        ("ignore_index", c_int32),
        ("label_smoothing", c_double),
        ("d_loss", c_double),
    ]


_CONTEXT = POINTER(moe_context)
BLOCK_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "moe_norm_config_init": (None, [POINTER(moe_norm_config), c_size_t]),
    "moe_norm_forward": (Status, [_CONTEXT, POINTER(moe_norm_config)] + [c_void_p] * 5),
    "moe_norm_backward": (Status, [_CONTEXT, POINTER(moe_norm_config)] + [c_void_p] * 7),
    "moe_linear_config_init": (None, [POINTER(moe_linear_config), c_size_t]),
    "moe_linear_forward": (Status, [_CONTEXT, POINTER(moe_linear_config)] + [c_void_p] * 4),
    "moe_linear_backward": (Status, [_CONTEXT, POINTER(moe_linear_config)] + [c_void_p] * 6),
    "moe_embedding_config_init": (None, [POINTER(moe_embedding_config), c_size_t]),
    "moe_embedding_forward": (Status, [_CONTEXT, POINTER(moe_embedding_config)] + [c_void_p] * 4),
    "moe_embedding_backward": (Status, [_CONTEXT, POINTER(moe_embedding_config)] + [c_void_p] * 4),
    "moe_cross_entropy_config_init": (None, [POINTER(moe_cross_entropy_config), c_size_t]),
    "moe_cross_entropy": (
        Status,
        [_CONTEXT, POINTER(moe_cross_entropy_config)]
        + [c_void_p] * 3
        + [POINTER(c_double), POINTER(c_int64)]
        + [c_void_p] * 3,
    ),
    "moe_sampling_init": (None, [POINTER(moe_sampling), c_size_t]),
    "moe_sample": (
        Status,
        [_CONTEXT, c_void_p, c_int64, POINTER(moe_sampling), c_uint64, c_void_p],
    ),
}

# Models and generation.
NORM_PLACE = {"pre": 0, "post": 1, "none": 2}
KEEP = {"all": 0, "lean": 1, "input": 2}


class moe_model(Structure):
    """Opaque."""


class moe_model_tape(Structure):
    """Opaque."""


class moe_cache(Structure):
    """Opaque."""


class moe_model_config(_Sized):
    """What a model is."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("hidden_size", c_int64),
        ("n_layers", c_int64),
        ("n_heads", c_int64),
        ("n_kv_heads", c_int64),
        ("head_size", c_int64),
        ("vocabulary_size", c_int64),
        ("max_positions", c_int64),
        ("rope_theta", c_double),
        ("norm_epsilon", c_double),
        ("norm", c_int32),
        ("norm_place", c_int32),
        ("final_norm", c_int32),
        ("causal", c_int32),
        ("qkv_bias", c_int32),
        ("output_bias", c_int32),
        ("qk_norm", c_int32),
        ("tied_output", c_int32),
        ("weight_dtype", c_int32),
        ("dropout", c_float),
        ("attention_dropout", c_float),
        ("dense_kind", c_int32),
        ("dense_activation", c_int32),
        ("dense_no_bias", c_int32),
        ("dense_dropout", c_float),
        ("inference_only", c_int32),
        ("dense_intermediate_size", c_int64),
        ("moe", POINTER(moe_layer_config)),
        ("moe_every", c_int64),
        ("pooled_balance_coef", c_double),
        ("init_deviation", c_double),
        ("seed", c_uint64),
    ]


class moe_model_input(_Sized):
    """What one call of a model brings."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_sequences", c_int64),
        ("sequence_length", c_int64),
        ("tokens", c_void_p),
        ("hidden", c_void_p),
        ("targets", c_void_p),
        ("ignore_index", c_int32),
        ("training", c_int32),
        ("label_smoothing", c_double),
        ("step", c_uint64),
        ("mask", c_void_p),
        ("added_mask", c_void_p),
        ("valid_mask", c_void_p),
        ("memory_limit", c_size_t),
        ("positions", c_void_p),
        ("loss_mask", c_void_p),
        ("chunk_tokens", c_int64),
    ]


class moe_read_options(_Sized):
    """What a read is told beside the tokens."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("valid_mask", c_void_p),
        ("positions", c_void_p),
    ]


class moe_model_report(_Sized):
    """What is learned from a call of a model."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("loss", c_double),
        ("objective", c_double),
        ("aux_loss", c_double),
        ("pooled_balance_loss", c_double),
        ("n_targets", c_int64),
        ("layers", POINTER(moe_report)),
        ("token_losses", c_void_p),
    ]


class moe_model_plan(_Sized):
    """Memory of a model's call."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("forward_bytes", c_size_t),
        ("backward_bytes", c_size_t),
        ("tape_bytes", c_size_t),
        ("total_bytes", c_size_t),
        ("keep", c_void_p),
        ("kept_all", c_int64),
        ("kept_lean", c_int64),
        ("kept_input", c_int64),
    ]


_MODEL, _INPUT = POINTER(moe_model), POINTER(moe_model_input)
MODEL_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "moe_model_config_init": (None, [POINTER(moe_model_config), c_size_t]),
    "moe_encoder_layer_config_init": (None, [POINTER(moe_model_config), c_size_t]),
    "moe_model_create": (Status, [_CONTEXT, POINTER(moe_model_config), POINTER(_MODEL)]),
    "moe_model_free": (None, [_MODEL]),
    "moe_model_parameter_count": (Status, [_MODEL, POINTER(c_int64)]),
    "moe_model_parameter": (Status, [_MODEL, c_int64, POINTER(moe_tensor)]),
    "moe_model_find_parameter": (Status, [_MODEL, c_char_p, POINTER(c_int64)]),
    "moe_model_bind_parameter": (Status, [_MODEL, c_int64, c_void_p, c_void_p]),
    "moe_model_zero_grad": (Status, [_MODEL]),
    "moe_model_layer": (Status, [_MODEL, c_int64, POINTER(POINTER(moe_layer))]),
    "moe_model_tape_create": (Status, [_MODEL, POINTER(POINTER(moe_model_tape))]),
    "moe_model_tape_free": (None, [POINTER(moe_model_tape)]),
    "moe_model_input_init": (None, [_INPUT, c_size_t]),
    "moe_model_report_init": (None, [POINTER(moe_model_report), c_size_t]),
    "moe_model_plan_init": (None, [POINTER(moe_model_plan), c_size_t]),
    "moe_model_plan_memory": (Status, [_MODEL, _INPUT, c_int32, POINTER(moe_model_plan)]),
    "moe_model_forward": (
        Status,
        [_MODEL, _INPUT, c_void_p, c_void_p, POINTER(moe_model_tape), POINTER(moe_model_report)],
    ),
    "moe_model_backward": (
        Status,
        [_MODEL, POINTER(moe_model_tape), _INPUT, c_double, c_void_p, c_void_p],
    ),
    "moe_cache_create": (Status, [_MODEL, c_int64, c_int64, POINTER(POINTER(moe_cache))]),
    "moe_cache_free": (None, [POINTER(moe_cache)]),
    "moe_cache_truncate": (Status, [POINTER(moe_cache), c_int64]),
    "moe_read_options_init": (None, [POINTER(moe_read_options), c_size_t]),
    "moe_model_read_with": (
        Status,
        [_MODEL, POINTER(moe_cache), c_void_p, c_int64, POINTER(moe_read_options), c_void_p],
    ),
    "moe_model_read": (Status, [_MODEL, POINTER(moe_cache), c_void_p, c_int64, c_void_p]),
}

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {**BLOCK_FUNCTIONS, **ATTENTION_FUNCTIONS, **MODEL_FUNCTIONS}
