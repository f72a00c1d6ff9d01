"""The words that options take: those of the enums in ``include/moe.h``, lower-case, without their prefix."""

from __future__ import annotations

from typing import Literal

Router = Literal["token_choice", "expert_choice", "hierarchical", "hash", "sinkhorn", "external"]
RouterWeights = Literal["scores", "topk_softmax", "topk_sigmoid", "equal", "sparsemixer", "group_softmax"]
Score = Literal["softmax", "sigmoid", "sqrt_softplus", "identity"]
Normalize = Literal["sum", "none", "norm1", "norm2", "normp"]
EpsilonForm = Literal["added", "least"]
GroupMask = Literal["minus_infinity", "zero"]
ExpertKind = Literal["mlp", "gated", "linear", "identity", "zero", "constant"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "quick_gelu"]
SharedGate = Literal["plain", "sigmoid", "residual"]
Noise = Literal["none", "gaussian", "learned"]
RouterNorm = Literal["none", "rms", "rms_weight"]
RouterDropout = Literal["input", "logits"]
DynamicK = Literal["none", "top_p", "threshold", "complexity"]
Capacity = Literal[
    "none",
    "constant",
    "megatron",
    "deepspeed",
    "megablocks",
    "tutel",
    "fastmoe",
    "lucidrains",
    "nllb",
    "flaxformer",
    "classic",
    "classic_total",
]
Drop = Literal["position", "choice_position", "probability", "batch_prioritized", "random"]
Overflow = Literal["drop", "next_best"]
Renormalize = Literal["before", "after"]
Loss = Literal[
    "balance",
    "balance_count",
    "transformers",
    "switch",
    "switch_sequence",
    "gshard",
    "deepspeed",
    "megatron",
    "megatron_sequence",
    "megatron_global",
    "variance",
    "importance",
    "load",
    "shazeer",
    "tutel_gshard",
    "tutel_importance_load",
    "z",
    "z_switch",
    "balance_positive",
]
DType = Literal["f32", "bf16"]
ScheduleKind = Literal["constant", "linear", "cosine", "one_cycle", "one_cycle_linear"]
Unallocated = Literal["expert_gradients", "expert_weights"]
Prepared = Literal["none", "f32", "bf16"]
Layout = Literal[
    "libmoe",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek",
    "gpt_oss",
    "gpt_oss_mxfp4",
    "llama4",
    "granite_moe",
    "dbrx",
    "switch_encoder",
    "switch_decoder",
    "transformers_5",
    "llama4_text",
    "jetmoe",
    "minimax_m2",
    "ernie4_5",
    "longcat_flash",
    "jamba",
    "hunyuan",
    "nemotron_h",
    "lfm2_moe",
    "afmoe",
    "deepseek_v4",
    "nllb_encoder",
    "nllb_decoder",
    "qwen3_vl_moe",
    "qwen3_5_moe",
]
