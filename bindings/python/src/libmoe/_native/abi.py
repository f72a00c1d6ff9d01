"""The C declarations of both headers for ctypes.  Written by scripts/abi from include/*.h; do not edit.

Arrays and places for numbers are passed by address (``c_void_p``); elements and shape of arrays
are checked where a numpy array enters, in ``check.py``.
"""

from __future__ import annotations

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint,
    c_uint64,
    c_void_p,
)
from typing import Any

from .struct import Sized, Status, Struct

# Constants.
THREADS_ALL = -1
PHASES = 11
NO_GROUPS = -1
NO_LAYER_NUMBER = -1

# Enums: the constant in C is the prefix and the word, MOE_MATMUL_AUTO.
STATUS = {
    "ok": 0, "error_invalid_argument": 1, "error_out_of_memory": 2, "error_bad_state": 3,
    "error_not_finite": 4, "error_cancelled": 5, "error_io": 6, "error_communication": 7,
}
MATMUL = {"auto": 0, "openblas": 1, "reference": 2, "native": 3}
INSTRUCTIONS = {"all": 0, "base": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4}
LOG_LEVEL = {"info": 0}
PHASE = {
    "route": 0, "dispatch": 1, "gate_up": 2, "down": 3, "combine": 4, "projection": 5, "attention": 6,
    "norm": 7, "embedding": 8, "loss": 9, "optimizer": 10,
}
DTYPE = {
    "f32": 0, "bf16": 1, "f16": 2, "f64": 3, "i64": 4, "i32": 5, "i16": 6, "i8": 7, "u64": 8, "u32": 9,
    "u16": 10, "u8": 11, "bool": 12, "f8_e4m3": 13, "f8_e5m2": 14, "f8_e8m0": 15, "other": 16, "f4": 17,
    "f6_e2m3": 18, "f6_e3m2": 19, "c64": 20, "f8_e4m3fnuz": 21, "f8_e5m2fnuz": 22, "q4_0": 23, "q4_1": 24,
    "q5_0": 25, "q5_1": 26, "q8_0": 27, "q2_k": 28, "q3_k": 29, "q4_k": 30, "q5_k": 31, "q6_k": 32,
    "iq4_nl": 33, "iq4_xs": 34, "mxfp4": 35, "nvfp4": 36,
}
ROUTER_WEIGHTS = {
    "scores": 0, "topk_softmax": 1, "topk_sigmoid": 2, "equal": 3, "sparsemixer": 4, "group_softmax": 5,
}
ROUTER = {
    "token_choice": 0, "expert_choice": 1, "hierarchical": 2, "hash": 3, "sinkhorn": 4, "external": 5,
    "relu": 6,
}
NOISE = {"none": 0, "gaussian": 1, "learned": 2}
ROUTER_NORM = {"none": 0, "rms": 1, "rms_weight": 2}
ROUTER_DROPOUT = {"input": 0, "logits": 1}
DYNAMIC_K = {"none": 0, "top_p": 1, "threshold": 2, "complexity": 3}
CAPACITY = {
    "none": 0, "constant": 1, "megatron": 2, "deepspeed": 3, "megablocks": 4, "tutel": 5, "fastmoe": 6,
    "lucidrains": 7, "nllb": 8, "flaxformer": 9, "classic": 10, "classic_total": 11,
}
DROP = {"position": 0, "choice_position": 1, "probability": 2, "batch_prioritized": 3, "random": 4}
OVERFLOW = {"drop": 0, "next_best": 1}
RENORMALIZE = {"before": 0, "after": 1}
SHARED_GATE = {"plain": 0, "sigmoid": 1, "residual": 2}
LOSS = {
    "balance": 0, "balance_count": 1, "transformers": 2, "switch": 3, "switch_sequence": 4, "gshard": 5,
    "deepspeed": 6, "megatron": 7, "megatron_sequence": 8, "megatron_global": 9, "variance": 10,
    "importance": 11, "load": 12, "shazeer": 13, "tutel_gshard": 14, "tutel_importance_load": 15, "z": 16,
    "z_switch": 17, "balance_positive": 18, "l1": 19, "l1_balanced": 20,
}
SCORE = {"softmax": 0, "sigmoid": 1, "sqrt_softplus": 2, "identity": 3}
NORMALIZE = {"sum": 0, "none": 1, "norm1": 2, "norm2": 3, "normp": 4}
EPSILON = {"added": 0, "least": 1}
GROUP_MASK = {"minus_infinity": 0, "zero": 1}
BIAS = {"default": 0, "off": 1, "on": 2}
EXPERT_KIND = {"mlp": 0, "gated": 1, "linear": 2, "identity": 3, "zero": 4, "constant": 5}
ACTIVATION = {"gelu": 0, "gelu_tanh": 1, "silu": 2, "relu": 3, "relu2": 4, "quick_gelu": 5}
UNALLOCATED = {"expert_gradients": 1, "expert_weights": 2}
PREPARED = {
    "none": 0, "f32": 1, "bf16": 2, "int8": 3, "int8_a8": 4, "int4": 5, "int4_a8": 6, "int4_g64": 7,
    "int4_g64_a8": 8, "int4_g128": 9, "int4_g128_a8": 10, "mxfp4": 11, "mxfp4_a8": 12, "iq4_nl": 13,
    "iq4_nl_a8": 14, "q4_k": 15, "q4_k_a8": 16, "q6_k": 17, "q6_k_a8": 18, "int8_row": 19, "int8_row_a8": 20,
    "fp8": 21, "nvfp4": 22, "nvfp4_a8": 23, "int4_bf16": 24, "int4_bf16_a8": 25, "int4_zero": 26,
    "int4_zero_a8": 27, "int4_zero_g64": 28, "int4_zero_g64_a8": 29, "int4_zero_g128": 30,
    "int4_zero_g128_a8": 31, "stored": 32, "stored_a8": 33, "int8_a16": 34, "int4_a16": 35,
    "int4_g64_a16": 36, "int4_g128_a16": 37, "mxfp4_a16": 38, "iq4_nl_a16": 39, "q4_k_a16": 40,
    "q6_k_a16": 41, "int8_row_a16": 42, "fp8_a16": 43, "nvfp4_a16": 44, "int4_bf16_a16": 45,
    "int4_zero_a16": 46, "int4_zero_g64_a16": 47, "int4_zero_g128_a16": 48, "stored_a16": 49,
}
TAPE_POLICY = {"auto": 0, "full": 1, "lean": 2}
SCHEDULE_KIND = {"constant": 0, "linear": 1, "cosine": 2, "one_cycle": 3, "one_cycle_linear": 4}
LAYOUT = {
    "libmoe": 0, "mixtral": 1, "qwen2_moe": 2, "qwen3_moe": 3, "olmoe": 4, "deepseek": 5, "gpt_oss": 6,
    "gpt_oss_mxfp4": 7, "llama4": 8, "granite_moe": 9, "dbrx": 10, "switch_encoder": 11, "switch_decoder": 12,
    "transformers_5": 13, "llama4_text": 14, "jetmoe": 15, "minimax_m2": 16, "ernie4_5": 17,
    "longcat_flash": 18, "jamba": 19, "hunyuan": 20, "nemotron_h": 21, "lfm2_moe": 22, "afmoe": 23,
    "deepseek_v4": 24, "nllb_encoder": 25, "nllb_decoder": 26, "qwen3_vl_moe": 27, "qwen3_5_moe": 28,
    "gemma4": 29, "gguf": 30,
}
EXPERT_PART = {"gate": 0, "up": 1, "down": 2, "gate_bias": 3, "up_bias": 4, "down_bias": 5, "constant": 6}
NORM = {"layer": 0, "rms": 1}
NORM_PLACE = {"pre": 0, "post": 1, "none": 2}
QK_NORM = {"none": 0, "head": 1, "whole": 2, "rotated": 3, "plain": 4}
KEEP = {"all": 0, "lean": 1, "input": 2}
NEXT = {"go_on": 0, "end_sequence": 1, "end_all": 2}
FOLDER_DTYPE = {"own": 0, "f32": 1, "bf16": 2, "f16": 3}
COMMUNICATOR_FLAG = {"any_thread": 1}
CHOICE_SCOPE = {"global": 0, "local": 1}
STRATEGY = {"exclusive": 0, "replicated": 1, "sliced": 2}

# Opaque handles: a type for each, so that ctypes refuses a tape where a layer belongs.
class moe_context(Structure):
    """Owns the threads, the allocator and the callbacks of the layers and optimisers created in it."""


class moe_layer(Structure):
    """A router, E experts and their parameters."""


class moe_tape(Structure):
    """What forward leaves for backward."""


class moe_routing(Structure):
    """The experts that the tokens of one call used."""


class moe_optimizer(Structure):
    """Steps parameters by their gradients."""


class moe_statistics(Structure):
    """Sums of reports over many calls."""


class moe_checkpoint(Structure):
    """An open safetensors file, or several that an index file names, or a GGUF file."""


class moe_mapping(Structure):
    """A file mapped for reading and writing."""


class moe_experts_prepared(Structure):
    """The experts' weights packed once for many calls."""


class moe_experts_ranks(Structure):
    """The ranks that the experts of calls are spread over."""


class moe_model(Structure):
    """A stack of transformer layers and its parameters."""


class moe_model_tape(Structure):
    """What forward leaves for backward."""


class moe_calibration(Structure):
    """What a model's matrices read over some text."""


class moe_cache(Structure):
    """Keys and values of the tokens so far, of B sequences that grow together."""


class moe_pretrained(Structure):
    """A folder."""


moe_context_config_alloc = CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_size_t)
moe_context_config_dealloc = CFUNCTYPE(None, c_void_p, c_void_p)
moe_context_config_log = CFUNCTYPE(None, c_void_p, c_int32, c_char_p)
moe_context_config_cancel = CFUNCTYPE(c_int32, c_void_p)
moe_context_config_host_threads = CFUNCTYPE(None, c_void_p, c_void_p, c_uint, c_uint)


class moe_context_config(Sized):
    """How a context is made."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_threads", c_int32),
        ("matmul", c_int32),
        ("alloc", moe_context_config_alloc),
        ("dealloc", moe_context_config_dealloc),
        ("alloc_user", c_void_p),
        ("log", moe_context_config_log),
        ("log_user", c_void_p),
        ("cancel", moe_context_config_cancel),
        ("cancel_user", c_void_p),
        ("instructions", c_int32),
        ("reserved", c_int32),
        ("memory_limit", c_size_t),
        ("host_threads", moe_context_config_host_threads),
    ]
    _words_ = {
        "matmul": MATMUL,
        "instructions": INSTRUCTIONS,
    }
    _bytes_ = frozenset({"memory_limit"})


class moe_phase_time(Sized):
    """What one phase came to in one direction, over all calls since moe_profile_start."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("calls", c_int64),
        ("seconds", c_double),
        ("flops", c_double),
        ("bytes", c_double),
    ]


class moe_profile_event(Struct):
    """One run of one phase, for a time line (Chrome's trace format, say)."""

    _fields_ = [
        ("phase", c_int32),
        ("backward", c_int32),
        ("thread", c_int64),
        ("start", c_double),
        ("seconds", c_double),
        ("flops", c_double),
        ("bytes", c_double),
    ]
    _words_ = {
        "phase": PHASE,
    }
    _flags_ = frozenset({"backward"})


class moe_tensor(Sized):
    """A parameter or a tensor of the caller's."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("shape", c_int64 * 4),
        ("strides", c_int64 * 4),
        ("data", c_void_p),
        ("grad", c_void_p),
        ("buffer", c_int32),
        ("frozen", c_int32),
    ]
    _words_ = {
        "dtype": {"f32": 0, "bf16": 1, "f16": 2},
    }
    _flags_ = frozenset({"buffer", "frozen"})


class moe_loss_term(Struct):
    """A loss of moe_layer_config.losses."""

    _fields_ = [
        ("kind", c_int32),
        ("coefficient", c_float),
    ]
    _words_ = {
        "kind": LOSS,
    }


class moe_expert_group(Struct):
    """Experts of one kind and width in a layer with several."""

    _fields_ = [
        ("n_experts", c_int64),
        ("intermediate_size", c_int64),
        ("expert_kind", c_int32),
        ("activation", c_int32),
        ("expert_bias", c_int32),
        ("dropout", c_float),
        ("glu_limit", c_float),
        ("glu_alpha", c_float),
        ("glu_offset", c_float),
        ("reserved", c_int32),
    ]
    _words_ = {
        "expert_kind": EXPERT_KIND,
        "activation": ACTIVATION,
        "expert_bias": BIAS,
    }


class moe_layer_config(Sized):
    """What a layer is."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("hidden_size", c_int64),
        ("n_experts", c_int64),
        ("top_k", c_int64),
        ("seed", c_uint64),
        ("io_dtype", c_int32),
        ("inference_only", c_int32),
        ("unallocated", c_int32),
        ("output_bias", c_int32),
        ("intermediate_size", c_int64),
        ("expert_kind", c_int32),
        ("activation", c_int32),
        ("expert_bias", c_int32),
        ("weight_dtype", c_int32),
        ("dropout", c_float),
        ("glu_limit", c_float),
        ("glu_alpha", c_float),
        ("glu_offset", c_float),
        ("expert_groups", POINTER(moe_expert_group)),
        ("n_expert_groups", c_int64),
        ("n_shared_experts", c_int64),
        ("shared_intermediate_size", c_int64),
        ("shared_gate", c_int32),
        ("router", c_int32),
        ("score", c_int32),
        ("router_weights", c_int32),
        ("router_normalize", c_int32),
        ("router_bias", c_int32),
        ("weight_on_input", c_int32),
        ("normalize_epsilon", c_float),
        ("epsilon_form", c_int32),
        ("normalize_p", c_float),
        ("mask_threshold", c_float),
        ("routed_scale", c_float),
        ("expert_scale", c_int32),
        ("selection_bias", c_int32),
        ("n_groups", c_int32),
        ("top_groups", c_int32),
        ("group_top_m", c_int32),
        ("group_mask", c_int32),
        ("dynamic_k", c_int32),
        ("dynamic_value", c_float),
        ("min_k", c_int32),
        ("router_norm", c_int32),
        ("router_norm_scale", c_float),
        ("router_norm_epsilon", c_float),
        ("hash_table", c_void_p),
        ("vocabulary_size", c_int64),
        ("noise", c_int32),
        ("noise_std", c_float),
        ("random_second", c_int32),
        ("jitter", c_float),
        ("jitter_experts", c_int32),
        ("router_dropout", c_float),
        ("router_dropout_on", c_int32),
        ("router_batch_norm", c_int32),
        ("batch_norm_momentum", c_float),
        ("batch_norm_epsilon", c_float),
        ("warmup_steps", c_int64),
        ("warmup_experts", c_int64),
        ("capacity", c_int64),
        ("min_capacity", c_int64),
        ("capacity_formula", c_int32),
        ("capacity_per_sequence", c_int32),
        ("capacity_factor", c_double),
        ("eval_capacity_factor", c_double),
        ("drop", c_int32),
        ("overflow", c_int32),
        ("renormalize", c_int32),
        ("adaptive_capacity", c_int32),
        ("adaptive_high", c_double),
        ("adaptive_high_factor", c_double),
        ("adaptive_low", c_double),
        ("adaptive_low_factor", c_double),
        ("balance_coef", c_float),
        ("z_coef", c_float),
        ("losses", POINTER(moe_loss_term)),
        ("n_losses", c_int64),
        ("shared_bias", c_int32),
    ]
    _words_ = {
        "io_dtype": {"f32": 0, "bf16": 1},
        "expert_kind": EXPERT_KIND,
        "activation": ACTIVATION,
        "expert_bias": BIAS,
        "weight_dtype": {"f32": 0, "bf16": 1, "f16": 2},
        "shared_gate": SHARED_GATE,
        "router": ROUTER,
        "score": SCORE,
        "router_weights": ROUTER_WEIGHTS,
        "router_normalize": NORMALIZE,
        "router_bias": BIAS,
        "epsilon_form": EPSILON,
        "group_mask": GROUP_MASK,
        "dynamic_k": DYNAMIC_K,
        "router_norm": ROUTER_NORM,
        "noise": NOISE,
        "router_dropout_on": ROUTER_DROPOUT,
        "capacity_formula": CAPACITY,
        "drop": DROP,
        "overflow": OVERFLOW,
        "renormalize": RENORMALIZE,
        "shared_bias": BIAS,
    }
    _sums_ = {
        "unallocated": UNALLOCATED,
    }
    _flags_ = frozenset({
        "inference_only", "output_bias", "weight_on_input", "expert_scale", "selection_bias", "random_second",
        "jitter_experts", "router_batch_norm", "capacity_per_sequence", "adaptive_capacity",
    })


class moe_forward_options(Sized):
    """What one forward is told beside x."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("step", c_uint64),
        ("training", c_int32),
        ("reserved", c_int32),
        ("valid_mask", c_void_p),
        ("token_ids", c_void_p),
        ("expert_indices", c_void_p),
        ("expert_weights", c_void_p),
        ("sequence_length", c_int64),
        ("global_counts", c_void_p),
        ("record", POINTER(moe_routing)),
        ("replay", POINTER(moe_routing)),
        ("memory_limit", c_size_t),
        ("scratch", c_void_p),
        ("scratch_size", c_size_t),
        ("tape_policy", c_int32),
        ("reserved2", c_int32),
        ("loss_mask", c_void_p),
        ("noise", c_void_p),
        ("jitter", c_void_p),
        ("second", c_void_p),
        ("chunk_tokens", c_int64),
    ]
    _words_ = {
        "tape_policy": TAPE_POLICY,
    }
    _flags_ = frozenset({"training"})
    _bytes_ = frozenset({"memory_limit", "scratch_size"})
    _arrays_ = {
        "valid_mask": ("mask", "T"),
        "token_ids": ("i64", "T"),
        "expert_indices": ("i32", "TK"),
        "expert_weights": ("f32", "TK"),
        "global_counts": ("i64", "E"),
        "loss_mask": ("mask", "T"),
        "noise": ("f32", "TE"),
        "jitter": ("f32", "TH"),
        "second": ("f32", "T"),
    }


class moe_report(Sized):
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
        ("dropped_per_expert", c_void_p),
        ("losses", c_void_p),
        ("n_dropped", c_int64),
        ("n_valid", c_int64),
        ("max_over_mean", c_float),
        ("variation", c_float),
        ("dead_share", c_float),
        ("reserved", c_int32),
        ("sequence_counts", c_void_p),
        ("sequence_probability", c_void_p),
        ("sequence_valid", c_void_p),
    ]
    _arrays_ = {
        "tokens_per_expert": ("i64, write", "E"),
        "mean_probability": ("f32, write", "E"),
        "expert_indices": ("i32, write", "TC"),
        "expert_weights": ("f32, write", "TC"),
        "dropped_per_expert": ("i64, write", "E"),
        "sequence_counts": ("i64, write", "BE"),
        "sequence_probability": ("f32, write", "BE"),
        "sequence_valid": ("i64, write", "B"),
    }


class moe_plan(Sized):
    """Memory of a call, in bytes."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("forward_bytes", c_size_t),
        ("backward_bytes", c_size_t),
        ("tape_bytes", c_size_t),
        ("total_bytes", c_size_t),
        ("chunk_tokens", c_int64),
        ("tape_policy", c_int32),
        ("reserved", c_int32),
        ("n_tokens", c_int64),
    ]
    _words_ = {
        "tape_policy": {"full": 1, "lean": 2},
    }
    _bytes_ = frozenset({"forward_bytes", "backward_bytes", "tape_bytes", "total_bytes"})


class moe_backward_options(Sized):
    """What one backward is told beside dy."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("d_mean_probability", c_void_p),
        ("d_expert_weights", c_void_p),
        ("scratch", c_void_p),
        ("scratch_size", c_size_t),
        ("optimizer", POINTER(moe_optimizer)),
        ("clip_factor", c_float),
        ("frozen_experts", c_int32),
        ("d_sequence_probability", c_void_p),
    ]
    _flags_ = frozenset({"frozen_experts"})
    _bytes_ = frozenset({"scratch_size"})
    _arrays_ = {
        "d_mean_probability": ("f32", "E"),
        "d_expert_weights": ("f32, write", "TK"),
        "d_sequence_probability": ("f32", "BE"),
    }


class moe_adamw_config(Sized):
    """AdamW [AdamW 2019], as torch.optim.AdamW."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("epsilon", c_double),
        ("weight_decay", c_double),
        ("state_dtype", c_int32),
        ("unallocated_state", c_int32),
        ("seed", c_uint64),
        ("stochastic_rounding", c_int32),
        ("reserved", c_int32),
    ]
    _defaults_ = {
        "learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-08, "weight_decay": 0.01,
    }
    _words_ = {
        "state_dtype": {"f32": 0, "bf16": 1},
    }
    _flags_ = frozenset({"unallocated_state", "stochastic_rounding"})


class moe_sgd_config(Sized):
    """SGD with momentum and decoupled weight decay."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("learning_rate", c_double),
        ("momentum", c_double),
        ("weight_decay", c_double),
        ("state_dtype", c_int32),
        ("unallocated_state", c_int32),
        ("seed", c_uint64),
        ("stochastic_rounding", c_int32),
        ("reserved", c_int32),
    ]
    _defaults_ = {"learning_rate": 0.001}
    _words_ = {
        "state_dtype": {"f32": 0, "bf16": 1},
    }
    _flags_ = frozenset({"unallocated_state", "stochastic_rounding"})


class moe_muon_config(Sized):
    """Muon [Muon 2024], with the update's size of [Moonlight 2025], for matrices."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("learning_rate", c_double),
        ("momentum", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("epsilon", c_double),
        ("weight_decay", c_double),
        ("by_adamw", c_void_p),
        ("state_dtype", c_int32),
        ("unallocated_state", c_int32),
        ("seed", c_uint64),
        ("stochastic_rounding", c_int32),
        ("reserved", c_int32),
    ]
    _defaults_ = {
        "learning_rate": 0.001, "momentum": 0.95, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-08,
        "weight_decay": 0.1,
    }
    _words_ = {
        "state_dtype": {"f32": 0, "bf16": 1},
    }
    _flags_ = frozenset({"unallocated_state", "stochastic_rounding"})


class moe_schedule(Sized):
    """A learning rate for every step."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("kind", c_int32),
        ("reserved", c_int32),
        ("learning_rate", c_double),
        ("warmup_steps", c_int64),
        ("total_steps", c_int64),
        ("final_fraction", c_double),
        ("pct_start", c_double),
        ("div_factor", c_double),
        ("final_div_factor", c_double),
        ("base_momentum", c_double),
        ("max_momentum", c_double),
    ]
    _defaults_ = {
        "learning_rate": 0.001, "pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 10000.0,
        "base_momentum": 0.85, "max_momentum": 0.95,
    }
    _words_ = {
        "kind": SCHEDULE_KIND,
    }


class moe_clip_state(Sized):
    """A clipping threshold that follows the norms it sees, after [ZClip 2025]."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("decay", c_double),
        ("threshold", c_double),
        ("warmup_steps", c_int64),
        ("mean", c_double),
        ("variance", c_double),
        ("count", c_int64),
    ]
    _defaults_ = {"decay": 0.97, "threshold": 2.5, "warmup_steps": 25}


class moe_stored_tensor(Sized):
    """A tensor in a checkpoint."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("shape", c_int64 * 8),
        ("data", c_void_p),
        ("size", c_size_t),
        ("dtype_name", c_char_p),
    ]
    _words_ = {
        "dtype": DTYPE,
    }
    _bytes_ = frozenset({"size"})


class moe_offload_statistics(Sized):
    """What an offloaded layer's forward calls have found since moe_layer_offload."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("hits", c_int64),
        ("misses", c_int64),
        ("bytes_read", c_int64),
        ("n_slots", c_int64),
    ]


class moe_training(Sized):
    """What a training run goes on from."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("step", c_uint64),
        ("layers", POINTER(POINTER(moe_layer))),
        ("n_layers", c_int64),
        ("optimizers", POINTER(POINTER(moe_optimizer))),
        ("n_optimizers", c_int64),
        ("statistics", POINTER(POINTER(moe_statistics))),
        ("n_statistics", c_int64),
        ("tensors", POINTER(moe_tensor)),
        ("n_tensors", c_int64),
        ("without_unallocated", c_int32),
        ("reserved", c_int32),
    ]
    _flags_ = frozenset({"without_unallocated"})


class moe_expert_tensor(Struct):
    """One part of all experts where the caller has it."""

    _fields_ = [
        ("part", c_int32),
        ("dtype", c_int32),
        ("data", c_void_p),
        ("experts", c_void_p),
        ("strides", c_int64 * 3),
    ]
    _words_ = {
        "part": EXPERT_PART,
        "dtype": {"f32": 0, "bf16": 1, "f16": 2},
    }


class moe_experts_config(Sized):
    """What the experts are, all of one kind and width, and where their weights lie."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_experts", c_int64),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("expert_kind", c_int32),
        ("activation", c_int32),
        ("glu_limit", c_float),
        ("glu_alpha", c_float),
        ("glu_offset", c_float),
        ("weight_on_input", c_int32),
        ("io_dtype", c_int32),
        ("reserved", c_int32),
        ("weights", POINTER(moe_expert_tensor)),
        ("n_weights", c_int64),
    ]
    _words_ = {
        "expert_kind": EXPERT_KIND,
        "activation": ACTIVATION,
        "io_dtype": {"f32": 0, "bf16": 1},
    }
    _flags_ = frozenset({"weight_on_input"})


class moe_experts_call(Sized):
    """One call's tokens and their experts."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("top_k", c_int64),
        ("expert_indices", c_void_p),
        ("expert_weights", c_void_p),
        ("index_dtype", c_int32),
        ("routing_dtype", c_int32),
        ("prepared", POINTER(moe_experts_prepared)),
        ("ranks", POINTER(moe_experts_ranks)),
    ]
    _defaults_ = {"index_dtype": 5}
    _words_ = {
        "index_dtype": {"i32": 5, "i64": 4},
        "routing_dtype": {"f32": 0, "bf16": 1, "f16": 2},
    }


class moe_experts_gradients(Sized):
    """Where a backward writes."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("dx", c_void_p),
        ("d_expert_weights", c_void_p),
        ("tensors", POINTER(moe_expert_tensor)),
        ("n_tensors", c_int64),
        ("overwrite", c_int32),
        ("reserved", c_int32),
    ]
    _flags_ = frozenset({"overwrite"})


class moe_norm_config(Sized):
    """."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("hidden_size", c_int64),
        ("epsilon", c_double),
        ("norm", c_int32),
        ("reserved", c_int32),
    ]
    _defaults_ = {"epsilon": 1e-05}
    _words_ = {
        "norm": NORM,
    }


class moe_linear_config(Sized):
    """."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("weight_dtype", c_int32),
        ("reserved", c_int32),
    ]
    _words_ = {
        "weight_dtype": {"f32": 0, "bf16": 1, "f16": 2},
    }


class moe_rotary_config(Sized):
    """."""

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
        ("rotary_size", c_int64),
        ("frequencies", c_void_p),
        ("scale", c_double),
    ]
    _defaults_ = {"theta": 10000.0}
    _flags_ = frozenset({"inverse"})
    _arrays_ = {
        "positions": ("i64", "T"),
    }


class moe_attention_config(Sized):
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
        ("sinks", c_void_p),
        ("window", c_int64),
        ("chunk", c_int64),
        ("value_size", c_int64),
        ("compute_dtype", c_int32),
    ]
    _words_ = {
        "compute_dtype": {"f32": 0, "bf16": 1},
    }
    _flags_ = frozenset({"causal"})
    _arrays_ = {
        "mask": ("mask", "SU"),
        "added_mask": ("f32", "SU"),
        "valid_mask": ("mask", "BU"),
    }


class moe_attention_gradients(Sized):
    """What the backward of attention is given beside the forward's arrays, and where it writes."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("doutput", c_void_p),
        ("dquery", c_void_p),
        ("dkey", c_void_p),
        ("dvalue", c_void_p),
        ("dsinks", c_void_p),
    ]


class moe_embedding_config(Sized):
    """."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("hidden_size", c_int64),
        ("n_rows", c_int64),
        ("n_positions", c_int64),
        ("sequence_length", c_int64),
        ("first_position", c_int64),
    ]


class moe_cross_entropy_config(Sized):
    """."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("n_tokens", c_int64),
        ("hidden_size", c_int64),
        ("vocabulary_size", c_int64),
        ("weight_dtype", c_int32),
        ("ignore_index", c_int32),
        ("label_smoothing", c_double),
        ("d_loss", c_double),
        ("logit_scale", c_double),
        ("logit_softcap", c_double),
        ("bias", c_void_p),
        ("dbias", c_void_p),
    ]
    _defaults_ = {"ignore_index": -100, "d_loss": 1.0}
    _words_ = {
        "weight_dtype": {"f32": 0, "bf16": 1, "f16": 2},
    }
    _arrays_ = {
        "bias": ("f32", "V"),
        "dbias": ("f32, write", "V"),
    }


class moe_rotary_table(Struct):
    """Rotary positions as data."""

    _fields_ = [
        ("rotary_size", c_int64),
        ("theta", c_double),
        ("frequencies", c_void_p),
        ("scale", c_double),
        ("long_frequencies", c_void_p),
        ("long_scale", c_double),
        ("original_length", c_int64),
    ]


class moe_model_layer_config(Struct):
    """One layer of a model whose layers differ."""

    _fields_ = [
        ("dense", c_int32),
        ("rotary", c_int32),
        ("window", c_int64),
        ("chunk", c_int64),
        ("dense_intermediate_size", c_int64),
    ]
    _flags_ = frozenset({"dense"})


class moe_model_config(Sized):
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
        ("rotary_tables", POINTER(moe_rotary_table)),
        ("n_rotary_tables", c_int64),
        ("layers", POINTER(moe_model_layer_config)),
        ("attention_scale", c_double),
        ("embedding_scale", c_double),
        ("residual_scale", c_double),
        ("logit_scale", c_double),
        ("logit_softcap", c_double),
        ("temperature_scale", c_double),
        ("temperature_floor", c_double),
        ("value_head_size", c_int64),
        ("latent_rank", c_int64),
        ("query_rank", c_int64),
        ("sinks", c_int32),
        ("attention_gate", c_int32),
        ("logit_bias", c_int32),
        ("embedding_dtype", c_int32),
        ("latent_norm_epsilon", c_double),
    ]
    _words_ = {
        "norm": NORM,
        "norm_place": NORM_PLACE,
        "qk_norm": QK_NORM,
        "weight_dtype": {"f32": 0, "bf16": 1, "f16": 2},
        "dense_kind": {"mlp": 0, "gated": 1},
        "dense_activation": ACTIVATION,
        "embedding_dtype": {"f32": 0, "bf16": 1},
    }
    _flags_ = frozenset({
        "final_norm", "causal", "qkv_bias", "output_bias", "tied_output", "dense_no_bias", "inference_only",
        "sinks", "attention_gate", "logit_bias",
    })


class moe_model_input(Sized):
    """One call."""

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
    _defaults_ = {"ignore_index": -100}
    _flags_ = frozenset({"training"})
    _bytes_ = frozenset({"memory_limit"})
    _arrays_ = {
        "tokens": ("i32", "BS"),
        "hidden": ("f32", "BSH"),
        "targets": ("i32", "BS"),
        "mask": ("mask", "SS"),
        "added_mask": ("f32", "SS"),
        "valid_mask": ("mask", "BS"),
        "positions": ("i64", "BS"),
        "loss_mask": ("mask", "BS"),
    }


class moe_model_report(Sized):
    """One call."""

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
    _arrays_ = {
        "token_losses": ("f32, write", "BS"),
    }


class moe_model_plan(Sized):
    """Memory of a call of a model, in bytes."""

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
    _bytes_ = frozenset({"forward_bytes", "backward_bytes", "tape_bytes", "total_bytes"})


class moe_calibrated(Sized):
    """What is known of one matrix."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("name", c_char_p),
        ("n_experts", c_int64),
        ("n_inputs", c_int64),
        ("n_tokens", c_int64),
        ("square_sums", c_void_p),
        ("products", c_void_p),
        ("n_product_tokens", c_int64),
        ("is_few", c_int32),
        ("reserved", c_int32),
    ]
    _flags_ = frozenset({"is_few"})


class moe_read_options(Sized):
    """What moe_model_read_with is told beside the tokens."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("valid_mask", c_void_p),
        ("positions", c_void_p),
    ]
    _arrays_ = {
        "valid_mask": ("mask", "Bn"),
        "positions": ("i64", "Bn"),
    }


class moe_sampling(Sized):
    """How the next token is drawn."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("temperature", c_double),
        ("top_k", c_int64),
        ("top_p", c_double),
        ("seed", c_uint64),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("history", c_void_p),
        ("n_history", c_int64),
    ]
    _defaults_ = {"top_p": 1.0}


moe_generation_on_token = CFUNCTYPE(c_int32, c_void_p, c_int64, c_int64, c_int32, c_void_p)


class moe_generation(Sized):
    """How sequences go on from their prompts."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("max_new_tokens", c_int64),
        ("eos", c_void_p),
        ("n_eos", c_int64),
        ("sampling", POINTER(moe_sampling)),
        ("seeds", c_void_p),
        ("chunk_tokens", c_int64),
        ("memory_limit", c_size_t),
        ("cache", POINTER(moe_cache)),
        ("on_token", moe_generation_on_token),
        ("user", c_void_p),
    ]
    _bytes_ = frozenset({"memory_limit"})


class moe_prepared_part(Struct):
    """How the matrices of a model are kept whose names have a pattern."""

    _fields_ = [
        ("pattern", c_char_p),
        ("prepared", c_int32),
        ("reserved", c_int32),
    ]
    _words_ = {
        "prepared": PREPARED,
    }


moe_pretrained_options_progress = CFUNCTYPE(c_int32, c_void_p, c_size_t, c_size_t)


class moe_pretrained_options(Sized):
    """How a folder is opened and its model made."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("weight_dtype", c_int32),
        ("embedding_dtype", c_int32),
        ("inference_only", c_int32),
        ("prepared", c_int32),
        ("resident_limit", c_size_t),
        ("progress", moe_pretrained_options_progress),
        ("progress_user", c_void_p),
        ("prepared_parts", POINTER(moe_prepared_part)),
        ("n_prepared_parts", c_int64),
        ("calibration", POINTER(moe_calibration)),
        ("unallocated", c_int32),
        ("reserved", c_int32),
    ]
    _words_ = {
        "weight_dtype": FOLDER_DTYPE,
        "embedding_dtype": FOLDER_DTYPE,
        "prepared": PREPARED,
    }
    _sums_ = {
        "unallocated": UNALLOCATED,
    }
    _flags_ = frozenset({"inference_only"})
    _bytes_ = frozenset({"resident_limit"})


class moe_pretrained_info(Sized):
    """What a folder has."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("model_type", c_char_p),
        ("ignored_keys", c_char_p),
        ("left_tensors", c_char_p),
        ("n_left_tensors", c_int64),
        ("n_tensors", c_int64),
        ("n_parameters", c_int64),
        ("n_active", c_int64),
        ("n_moe_layers", c_int64),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("file_bytes", c_size_t),
        ("parameter_bytes", c_size_t),
        ("expert_bytes", c_size_t),
        ("max_positions", c_int64),
        ("config", c_char_p),
    ]
    _words_ = {
        "dtype": FOLDER_DTYPE,
    }
    _bytes_ = frozenset({"file_bytes", "parameter_bytes", "expert_bytes"})


moe_save_options_progress = CFUNCTYPE(c_int32, c_void_p, c_size_t, c_size_t)


class moe_save_options(Sized):
    """How a folder is written."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("max_shard_size", c_size_t),
        ("config", c_char_p),
        ("progress", moe_save_options_progress),
        ("progress_user", c_void_p),
    ]
    _words_ = {
        "dtype": FOLDER_DTYPE,
    }
    _bytes_ = frozenset({"max_shard_size"})


moe_communicator_all_to_all = CFUNCTYPE(
    c_int32, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
)
moe_communicator_send = CFUNCTYPE(c_int32, c_void_p, c_void_p, c_int64, c_int32, c_int32, c_void_p)
moe_communicator_receive = CFUNCTYPE(c_int32, c_void_p, c_void_p, c_int64, c_int32, c_int32, c_void_p)
moe_communicator_test = CFUNCTYPE(c_int32, c_void_p, c_void_p, c_void_p)
moe_communicator_wait = CFUNCTYPE(c_int32, c_void_p, c_void_p)
moe_communicator_error = CFUNCTYPE(c_void_p, c_void_p, c_int32)
moe_communicator_abandon = CFUNCTYPE(None, c_void_p, c_void_p)


class moe_communicator(Sized):
    """One rank's end of a group of ranks."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("user", c_void_p),
        ("rank", c_int32),
        ("size", c_int32),
        ("flags", c_int32),
        ("all_to_all", moe_communicator_all_to_all),
        ("send", moe_communicator_send),
        ("receive", moe_communicator_receive),
        ("test", moe_communicator_test),
        ("wait", moe_communicator_wait),
        ("error", moe_communicator_error),
        ("abandon", moe_communicator_abandon),
    ]
    _sums_ = {
        "flags": COMMUNICATOR_FLAG,
    }


class moe_placement(Sized):
    """Where experts are, and how far choices look."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("experts_per_rank", c_void_p),
        ("choice_scope", c_int32),
        ("strategy", c_int32),
        ("hot_indices", c_void_p),
        ("hot_experts", c_int32),
        ("reserved", c_int32),
    ]
    _words_ = {
        "choice_scope": CHOICE_SCOPE,
        "strategy": STRATEGY,
    }


# Words of arguments, where only some of an enum's are taken.
ARGUMENTS: dict[str, dict[str, dict[str, int]]] = {
    "moe_layer_save": {"dtype": {"f32": 0, "bf16": 1, "f16": 2}},
    "moe_layer_save_sharded": {"dtype": {"f32": 0, "bf16": 1, "f16": 2}},
    "moe_layer_save_prefix": {"dtype": {"f32": 0, "bf16": 1, "f16": 2}},
}

# What a function returns, and what it takes.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "moe_version": (c_int32, []),
    "moe_version_string": (c_char_p, []),
    "moe_status_name": (c_char_p, [Status]),
    "moe_last_error_message": (c_char_p, []),
    "moe_processors": (c_int32, []),
    "moe_context_config_init": (None, [POINTER(moe_context_config), c_size_t]),
    "moe_context_create": (Status, [POINTER(moe_context_config), POINTER(POINTER(moe_context))]),
    "moe_context_free": (None, [POINTER(moe_context)]),
    "moe_context_threads": (c_int32, [POINTER(moe_context)]),
    "moe_context_memory": (Status, [POINTER(moe_context), c_void_p, c_void_p]),
    "moe_build_info": (c_char_p, [POINTER(moe_context)]),
    "moe_phase_name": (c_char_p, [c_int32]),
    "moe_phase_time_init": (None, [POINTER(moe_phase_time), c_size_t]),
    "moe_profile_start": (Status, [POINTER(moe_context), c_int64]),
    "moe_profile_stop": (Status, [POINTER(moe_context)]),
    "moe_profile_phase": (Status, [POINTER(moe_context), c_int32, c_int32, POINTER(moe_phase_time)]),
    "moe_profile_events": (Status, [
        POINTER(moe_context), c_int64, POINTER(moe_profile_event), c_int64, c_void_p,
    ]),
    "moe_tensor_init": (None, [POINTER(moe_tensor), c_size_t]),
    "moe_layer_config_init": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_layer_create": (Status, [
        POINTER(moe_context), POINTER(moe_layer_config), POINTER(POINTER(moe_layer)),
    ]),
    "moe_layer_free": (None, [POINTER(moe_layer)]),
    "moe_layer_initialize": (Status, [POINTER(moe_layer)]),
    "moe_layer_parameter_count": (Status, [POINTER(moe_layer), c_void_p]),
    "moe_layer_parameter": (Status, [POINTER(moe_layer), c_int64, POINTER(moe_tensor)]),
    "moe_layer_find_parameter": (Status, [POINTER(moe_layer), c_char_p, c_void_p]),
    "moe_layer_bind_parameter": (Status, [POINTER(moe_layer), c_int64, c_void_p, c_void_p]),
    "moe_layer_zero_grad": (Status, [POINTER(moe_layer)]),
    "moe_layer_update_selection_bias": (Status, [POINTER(moe_layer), c_void_p, c_float, c_int32]),
    "moe_layer_set_loss_coefficient": (Status, [POINTER(moe_layer), c_int32, c_float]),
    "moe_layer_prepare": (Status, [POINTER(moe_layer), c_int32]),
    "moe_preset_mixtral": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_qwen2_moe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_qwen3_moe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_olmoe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_deepseek_v2": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_deepseek_v3": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_glm4_moe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_gpt_oss": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_granite_moe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_jetmoe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_phimoe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_dbrx": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_llama4": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_minimax_m2": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_ernie4_5": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_longcat_flash": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_switch": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_jamba": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_llama_cpp": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_gemma4": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_qwen3_vl_moe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_qwen3_5_moe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_dots1": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_hunyuan": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_nemotron_h": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_lfm2_moe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_afmoe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_deepseek_v4": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_preset_nllb_moe": (None, [POINTER(moe_layer_config), c_size_t]),
    "moe_tape_create": (Status, [POINTER(moe_layer), POINTER(POINTER(moe_tape))]),
    "moe_tape_free": (None, [POINTER(moe_tape)]),
    "moe_tape_bind": (Status, [POINTER(moe_tape), c_void_p, c_size_t]),
    "moe_routing_create": (Status, [POINTER(moe_context), POINTER(POINTER(moe_routing))]),
    "moe_routing_free": (None, [POINTER(moe_routing)]),
    "moe_routing_saved_size": (Status, [POINTER(moe_routing), c_void_p]),
    "moe_routing_save": (Status, [POINTER(moe_routing), c_void_p, c_size_t]),
    "moe_routing_load": (Status, [POINTER(moe_routing), c_void_p, c_size_t]),
    "moe_forward_options_init": (None, [POINTER(moe_forward_options), c_size_t]),
    "moe_report_init": (None, [POINTER(moe_report), c_size_t]),
    "moe_plan_init": (None, [POINTER(moe_plan), c_size_t]),
    "moe_layer_plan": (Status, [
        POINTER(moe_layer), c_int64, POINTER(moe_forward_options), c_int32, POINTER(moe_plan),
    ]),
    "moe_plan_describe": (Status, [POINTER(moe_plan), c_char_p, c_size_t, c_void_p]),
    "moe_layer_forward": (Status, [
        POINTER(moe_layer), c_void_p, c_int64, POINTER(moe_forward_options), c_void_p, POINTER(moe_tape),
        POINTER(moe_report),
    ]),
    "moe_backward_options_init": (None, [POINTER(moe_backward_options), c_size_t]),
    "moe_layer_backward": (Status, [
        POINTER(moe_layer), POINTER(moe_tape), c_void_p, c_void_p, c_float, c_void_p,
        POINTER(moe_backward_options),
    ]),
    "moe_pooled_balance_loss": (Status, [c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]),
    "moe_pooled_sequence_loss": (Status, [
        c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
    ]),
    "moe_statistics_create": (Status, [POINTER(moe_context), c_int64, POINTER(POINTER(moe_statistics))]),
    "moe_statistics_free": (None, [POINTER(moe_statistics)]),
    "moe_statistics_add": (Status, [POINTER(moe_statistics), POINTER(moe_report)]),
    "moe_statistics_reset": (Status, [POINTER(moe_statistics)]),
    "moe_statistics_read": (Status, [POINTER(moe_statistics), POINTER(moe_report)]),
    "moe_adamw_config_init": (None, [POINTER(moe_adamw_config), c_size_t]),
    "moe_sgd_config_init": (None, [POINTER(moe_sgd_config), c_size_t]),
    "moe_muon_config_init": (None, [POINTER(moe_muon_config), c_size_t]),
    "moe_adamw_create": (Status, [
        POINTER(moe_context), POINTER(moe_adamw_config), POINTER(moe_tensor), c_int64,
        POINTER(POINTER(moe_optimizer)),
    ]),
    "moe_sgd_create": (Status, [
        POINTER(moe_context), POINTER(moe_sgd_config), POINTER(moe_tensor), c_int64,
        POINTER(POINTER(moe_optimizer)),
    ]),
    "moe_muon_create": (Status, [
        POINTER(moe_context), POINTER(moe_muon_config), POINTER(moe_tensor), c_int64,
        POINTER(POINTER(moe_optimizer)),
    ]),
    "moe_optimizer_free": (None, [POINTER(moe_optimizer)]),
    "moe_optimizer_state_size": (Status, [POINTER(moe_optimizer), c_void_p]),
    "moe_optimizer_bind_state": (Status, [POINTER(moe_optimizer), c_void_p, c_size_t]),
    "moe_optimizer_step": (Status, [POINTER(moe_optimizer), POINTER(moe_tensor), c_int64]),
    "moe_optimizer_step_clipped": (Status, [
        POINTER(moe_optimizer), POINTER(moe_tensor), c_int64, c_double, c_void_p,
    ]),
    "moe_optimizer_set_learning_rate": (Status, [POINTER(moe_optimizer), c_double]),
    "moe_optimizer_set_momentum": (Status, [POINTER(moe_optimizer), c_double]),
    "moe_schedule_init": (None, [POINTER(moe_schedule), c_size_t]),
    "moe_learning_rate": (Status, [POINTER(moe_schedule), c_int64, c_void_p]),
    "moe_momentum": (Status, [POINTER(moe_schedule), c_int64, c_void_p]),
    "moe_optimizer_set_group": (Status, [POINTER(moe_optimizer), c_void_p, c_int64, c_double, c_double]),
    "moe_clip_grad_norm": (Status, [POINTER(moe_context), POINTER(moe_tensor), c_int64, c_double, c_void_p]),
    "moe_clip_state_init": (None, [POINTER(moe_clip_state), c_size_t]),
    "moe_adaptive_clip": (Status, [POINTER(moe_clip_state), c_double, c_void_p]),
    "moe_optimizer_step_adaptive": (Status, [
        POINTER(moe_optimizer), POINTER(moe_tensor), c_int64, POINTER(moe_clip_state), c_void_p,
    ]),
    "moe_stored_tensor_init": (None, [POINTER(moe_stored_tensor), c_size_t]),
    "moe_checkpoint_open": (Status, [POINTER(moe_context), c_char_p, POINTER(POINTER(moe_checkpoint))]),
    "moe_checkpoint_free": (None, [POINTER(moe_checkpoint)]),
    "moe_checkpoint_tensor_count": (Status, [POINTER(moe_checkpoint), c_void_p]),
    "moe_checkpoint_tensor": (Status, [POINTER(moe_checkpoint), c_int64, POINTER(moe_stored_tensor)]),
    "moe_checkpoint_find_tensor": (Status, [POINTER(moe_checkpoint), c_char_p, c_void_p]),
    "moe_checkpoint_read_tensor": (Status, [POINTER(moe_checkpoint), c_int64, c_int32, c_void_p, c_size_t]),
    "moe_checkpoint_write": (Status, [POINTER(moe_context), c_char_p, POINTER(moe_stored_tensor), c_int64]),
    "moe_checkpoint_write_sharded": (Status, [
        POINTER(moe_context), c_char_p, POINTER(moe_stored_tensor), c_int64, c_size_t,
    ]),
    "moe_layer_load": (Status, [POINTER(moe_layer), POINTER(moe_checkpoint), c_int32, c_int64]),
    "moe_layer_load_prefix": (Status, [POINTER(moe_layer), POINTER(moe_checkpoint), c_int32, c_char_p]),
    "moe_layer_offload": (Status, [POINTER(moe_layer), POINTER(moe_checkpoint), c_int32, c_int64, c_size_t]),
    "moe_layer_offload_prefix": (Status, [
        POINTER(moe_layer), POINTER(moe_checkpoint), c_int32, c_char_p, c_size_t,
    ]),
    "moe_offload_statistics_init": (None, [POINTER(moe_offload_statistics), c_size_t]),
    "moe_layer_offload_statistics": (Status, [POINTER(moe_layer), POINTER(moe_offload_statistics)]),
    "moe_layer_save": (Status, [POINTER(moe_layer), c_char_p, c_int32, c_int64, c_int32]),
    "moe_layer_save_sharded": (Status, [POINTER(moe_layer), c_char_p, c_int32, c_int64, c_int32, c_size_t]),
    "moe_layer_save_prefix": (Status, [POINTER(moe_layer), c_char_p, c_int32, c_char_p, c_int32, c_size_t]),
    "moe_layer_upcycle": (Status, [POINTER(moe_layer), POINTER(moe_tensor), c_int64]),
    "moe_training_init": (None, [POINTER(moe_training), c_size_t]),
    "moe_training_save": (Status, [POINTER(moe_context), POINTER(moe_training), c_char_p]),
    "moe_training_load": (Status, [POINTER(moe_context), POINTER(moe_training), c_char_p]),
    "moe_mapping_create": (Status, [POINTER(moe_context), c_char_p, c_size_t, POINTER(POINTER(moe_mapping))]),
    "moe_mapping_free": (None, [POINTER(moe_mapping)]),
    "moe_mapping_data": (Status, [POINTER(moe_mapping), c_void_p]),
    "moe_mapping_flush": (Status, [POINTER(moe_mapping)]),
    "moe_experts_config_init": (None, [POINTER(moe_experts_config), c_size_t]),
    "moe_experts_call_init": (None, [POINTER(moe_experts_call), c_size_t]),
    "moe_experts_gradients_init": (None, [POINTER(moe_experts_gradients), c_size_t]),
    "moe_experts_plan": (Status, [
        POINTER(moe_context), POINTER(moe_experts_config), POINTER(moe_experts_call),
        POINTER(moe_experts_gradients), c_int32, POINTER(moe_plan),
    ]),
    "moe_experts_forward": (Status, [
        POINTER(moe_context), POINTER(moe_experts_config), POINTER(moe_experts_call), c_void_p, c_void_p,
        c_void_p, c_size_t, c_void_p,
    ]),
    "moe_experts_backward": (Status, [
        POINTER(moe_context), POINTER(moe_experts_config), POINTER(moe_experts_call), c_void_p, c_size_t,
        c_void_p, c_void_p, POINTER(moe_experts_gradients),
    ]),
    "moe_experts_prepare": (Status, [
        POINTER(moe_context), POINTER(moe_experts_config), c_int32, POINTER(POINTER(moe_experts_prepared)),
    ]),
    "moe_experts_prepared_size": (Status, [POINTER(moe_experts_prepared), c_void_p]),
    "moe_experts_prepared_free": (None, [POINTER(moe_experts_prepared)]),
    "moe_norm_config_init": (None, [POINTER(moe_norm_config), c_size_t]),
    "moe_norm_forward": (Status, [
        POINTER(moe_context), POINTER(moe_norm_config), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
    ]),
    "moe_norm_backward": (Status, [
        POINTER(moe_context), POINTER(moe_norm_config), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
        c_void_p, c_void_p,
    ]),
    "moe_linear_config_init": (None, [POINTER(moe_linear_config), c_size_t]),
    "moe_linear_forward": (Status, [
        POINTER(moe_context), POINTER(moe_linear_config), c_void_p, c_void_p, c_void_p, c_void_p,
    ]),
    "moe_linear_backward": (Status, [
        POINTER(moe_context), POINTER(moe_linear_config), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
        c_void_p,
    ]),
    "moe_rotary_config_init": (None, [POINTER(moe_rotary_config), c_size_t]),
    "moe_rotate": (Status, [POINTER(moe_context), POINTER(moe_rotary_config), c_void_p]),
    "moe_attention_config_init": (None, [POINTER(moe_attention_config), c_size_t]),
    "moe_attention_forward": (Status, [
        POINTER(moe_context), POINTER(moe_attention_config), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
    ]),
    "moe_attention_gradients_init": (None, [POINTER(moe_attention_gradients), c_size_t]),
    "moe_attention_backward": (Status, [
        POINTER(moe_context), POINTER(moe_attention_config), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
        POINTER(moe_attention_gradients),
    ]),
    "moe_embedding_config_init": (None, [POINTER(moe_embedding_config), c_size_t]),
    "moe_embedding_forward": (Status, [
        POINTER(moe_context), POINTER(moe_embedding_config), c_void_p, c_void_p, c_void_p, c_void_p,
    ]),
    "moe_embedding_backward": (Status, [
        POINTER(moe_context), POINTER(moe_embedding_config), c_void_p, c_void_p, c_void_p, c_void_p,
    ]),
    "moe_cross_entropy_config_init": (None, [POINTER(moe_cross_entropy_config), c_size_t]),
    "moe_cross_entropy": (Status, [
        POINTER(moe_context), POINTER(moe_cross_entropy_config), c_void_p, c_void_p, c_void_p, c_void_p,
        c_void_p, c_void_p, c_void_p, c_void_p,
    ]),
    "moe_model_config_init": (None, [POINTER(moe_model_config), c_size_t]),
    "moe_encoder_layer_config_init": (None, [POINTER(moe_model_config), c_size_t]),
    "moe_model_create": (Status, [
        POINTER(moe_context), POINTER(moe_model_config), POINTER(POINTER(moe_model)),
    ]),
    "moe_model_free": (None, [POINTER(moe_model)]),
    "moe_model_configuration": (Status, [POINTER(moe_model), POINTER(moe_model_config)]),
    "moe_model_parameter_count": (Status, [POINTER(moe_model), c_void_p]),
    "moe_model_parameter": (Status, [POINTER(moe_model), c_int64, POINTER(moe_tensor)]),
    "moe_model_find_parameter": (Status, [POINTER(moe_model), c_char_p, c_void_p]),
    "moe_model_bind_parameter": (Status, [POINTER(moe_model), c_int64, c_void_p, c_void_p]),
    "moe_model_zero_grad": (Status, [POINTER(moe_model)]),
    "moe_model_freeze": (Status, [POINTER(moe_model), c_int64]),
    "moe_model_layer": (Status, [POINTER(moe_model), c_int64, POINTER(POINTER(moe_layer))]),
    "moe_model_prepare": (Status, [POINTER(moe_model), c_int32]),
    "moe_model_tape_create": (Status, [POINTER(moe_model), POINTER(POINTER(moe_model_tape))]),
    "moe_model_tape_free": (None, [POINTER(moe_model_tape)]),
    "moe_model_input_init": (None, [POINTER(moe_model_input), c_size_t]),
    "moe_model_report_init": (None, [POINTER(moe_model_report), c_size_t]),
    "moe_model_plan_init": (None, [POINTER(moe_model_plan), c_size_t]),
    "moe_model_plan_memory": (Status, [
        POINTER(moe_model), POINTER(moe_model_input), c_int32, POINTER(moe_model_plan),
    ]),
    "moe_model_forward": (Status, [
        POINTER(moe_model), POINTER(moe_model_input), c_void_p, c_void_p, POINTER(moe_model_tape),
        POINTER(moe_model_report),
    ]),
    "moe_model_backward": (Status, [
        POINTER(moe_model), POINTER(moe_model_tape), POINTER(moe_model_input), c_double, c_void_p, c_void_p,
    ]),
    "moe_model_backward_step": (Status, [
        POINTER(moe_model), POINTER(moe_model_tape), POINTER(moe_model_input), c_double, c_void_p, c_void_p,
        POINTER(moe_optimizer), c_float,
    ]),
    "moe_calibration_create": (Status, [POINTER(moe_model), c_size_t, POINTER(POINTER(moe_calibration))]),
    "moe_calibration_free": (None, [POINTER(moe_calibration)]),
    "moe_model_calibrate": (Status, [POINTER(moe_model), POINTER(moe_model_input), POINTER(moe_calibration)]),
    "moe_model_prepare_calibrated": (Status, [POINTER(moe_model), c_int32, POINTER(moe_calibration)]),
    "moe_calibrated_init": (None, [POINTER(moe_calibrated), c_size_t]),
    "moe_calibration_read": (Status, [POINTER(moe_calibration), c_int64, c_int64, POINTER(moe_calibrated)]),
    "moe_cache_create": (Status, [POINTER(moe_model), c_int64, c_int64, POINTER(POINTER(moe_cache))]),
    "moe_cache_free": (None, [POINTER(moe_cache)]),
    "moe_cache_truncate": (Status, [POINTER(moe_cache), c_int64]),
    "moe_cache_size": (Status, [POINTER(moe_cache), c_void_p, c_void_p, c_void_p]),
    "moe_cache_save": (Status, [POINTER(moe_cache), c_char_p]),
    "moe_cache_load": (Status, [POINTER(moe_model), c_char_p, c_int64, POINTER(POINTER(moe_cache))]),
    "moe_model_read": (Status, [POINTER(moe_model), POINTER(moe_cache), c_void_p, c_int64, c_void_p]),
    "moe_read_options_init": (None, [POINTER(moe_read_options), c_size_t]),
    "moe_model_read_with": (Status, [
        POINTER(moe_model), POINTER(moe_cache), c_void_p, c_int64, POINTER(moe_read_options), c_void_p,
    ]),
    "moe_sampling_init": (None, [POINTER(moe_sampling), c_size_t]),
    "moe_sample": (Status, [
        POINTER(moe_context), c_void_p, c_int64, POINTER(moe_sampling), c_uint64, c_void_p,
    ]),
    "moe_generation_init": (None, [POINTER(moe_generation), c_size_t]),
    "moe_generate": (Status, [
        POINTER(moe_model), POINTER(moe_generation), c_void_p, c_void_p, c_int64, c_void_p, c_void_p,
    ]),
    "moe_pretrained_options_init": (None, [POINTER(moe_pretrained_options), c_size_t]),
    "moe_pretrained_open": (Status, [
        POINTER(moe_context), c_char_p, POINTER(moe_pretrained_options), POINTER(POINTER(moe_pretrained)),
    ]),
    "moe_pretrained_free": (None, [POINTER(moe_pretrained)]),
    "moe_pretrained_config": (Status, [POINTER(moe_pretrained), POINTER(moe_model_config)]),
    "moe_pretrained_info_init": (None, [POINTER(moe_pretrained_info), c_size_t]),
    "moe_pretrained_describe": (Status, [POINTER(moe_pretrained), POINTER(moe_pretrained_info)]),
    "moe_pretrained_load": (Status, [POINTER(moe_pretrained), POINTER(moe_model)]),
    "moe_model_load": (Status, [
        POINTER(moe_context), c_char_p, POINTER(moe_pretrained_options), POINTER(POINTER(moe_model)),
    ]),
    "moe_save_options_init": (None, [POINTER(moe_save_options), c_size_t]),
    "moe_model_save": (Status, [POINTER(moe_model), c_char_p, POINTER(moe_save_options)]),
    "moe_pretrained_family": (c_char_p, [c_int64]),
    "moe_communicator_init": (None, [POINTER(moe_communicator), c_size_t]),
    "moe_placement_init": (None, [POINTER(moe_placement), c_size_t]),
    "moe_layer_create_distributed": (Status, [
        POINTER(moe_context), POINTER(moe_layer_config), POINTER(moe_communicator), POINTER(moe_placement),
        POINTER(POINTER(moe_layer)),
    ]),
    "moe_layer_clip_grad_norm": (Status, [POINTER(moe_layer), c_double, c_void_p]),
    "moe_experts_ranks_create": (Status, [
        POINTER(moe_context), POINTER(moe_communicator), c_int64, c_void_p,
        POINTER(POINTER(moe_experts_ranks)),
    ]),
    "moe_experts_ranks_free": (None, [POINTER(moe_experts_ranks)]),
    "moe_model_create_distributed": (Status, [
        POINTER(moe_context), POINTER(moe_model_config), POINTER(moe_communicator), POINTER(moe_placement),
        POINTER(POINTER(moe_model)),
    ]),
    "moe_model_load_distributed": (Status, [
        POINTER(moe_context), c_char_p, POINTER(moe_pretrained_options), POINTER(moe_communicator),
        POINTER(moe_placement), POINTER(POINTER(moe_model)),
    ]),
    "moe_model_clip_grad_norm": (Status, [POINTER(moe_model), c_double, c_void_p]),
    "moe_training_save_distributed": (Status, [
        POINTER(moe_context), POINTER(moe_training), POINTER(moe_communicator), c_void_p, c_char_p,
    ]),
    "moe_training_load_distributed": (Status, [
        POINTER(moe_context), POINTER(moe_training), POINTER(moe_communicator), c_void_p, c_char_p,
    ]),
}
