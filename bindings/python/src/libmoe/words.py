"""The words that options take: those of the enums in C, without their prefix.

Written by scripts/abi from include/*.h; do not edit.
"""

from __future__ import annotations

from typing import Literal

Status = Literal[
    "ok", "error_invalid_argument", "error_out_of_memory", "error_bad_state", "error_not_finite",
    "error_cancelled", "error_io", "error_communication",
]
Matmul = Literal["auto", "openblas", "reference", "native"]
Instructions = Literal["all", "base", "avx2", "avx512", "avx512_bf16"]
LogLevel = Literal["info"]
Phase = Literal[
    "route", "dispatch", "gate_up", "down", "combine", "projection", "attention", "norm", "embedding", "loss",
    "optimizer",
]
DType = Literal[
    "f32", "bf16", "f16", "f64", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8", "bool", "f8_e4m3",
    "f8_e5m2", "f8_e8m0", "other", "f4", "f6_e2m3", "f6_e3m2", "c64", "f8_e4m3fnuz", "f8_e5m2fnuz", "q4_0",
    "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4",
    "nvfp4",
]
RouterWeights = Literal["scores", "topk_softmax", "topk_sigmoid", "equal", "sparsemixer", "group_softmax"]
Router = Literal["token_choice", "expert_choice", "hierarchical", "hash", "sinkhorn", "external", "relu"]
Noise = Literal["none", "gaussian", "learned"]
RouterNorm = Literal["none", "rms", "rms_weight"]
RouterDropout = Literal["input", "logits"]
DynamicK = Literal["none", "top_p", "threshold", "complexity"]
Capacity = Literal[
    "none", "constant", "megatron", "deepspeed", "megablocks", "tutel", "fastmoe", "lucidrains", "nllb",
    "flaxformer", "classic", "classic_total",
]
Drop = Literal["position", "choice_position", "probability", "batch_prioritized", "random"]
Overflow = Literal["drop", "next_best"]
Renormalize = Literal["before", "after"]
SharedGate = Literal["plain", "sigmoid", "residual"]
Loss = Literal[
    "balance", "balance_count", "transformers", "switch", "switch_sequence", "gshard", "deepspeed",
    "megatron", "megatron_sequence", "megatron_global", "variance", "importance", "load", "shazeer",
    "tutel_gshard", "tutel_importance_load", "z", "z_switch", "balance_positive", "l1", "l1_balanced",
]
Score = Literal["softmax", "sigmoid", "sqrt_softplus", "identity"]
Normalize = Literal["sum", "none", "norm1", "norm2", "normp"]
Epsilon = Literal["added", "least"]
GroupMask = Literal["minus_infinity", "zero"]
Bias = Literal["default", "off", "on"]
ExpertKind = Literal["mlp", "gated", "linear", "identity", "zero", "constant"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "quick_gelu"]
Unallocated = Literal["expert_gradients", "expert_weights"]
Prepared = Literal[
    "none", "f32", "bf16", "int8", "int8_a8", "int4", "int4_a8", "int4_g64", "int4_g64_a8", "int4_g128",
    "int4_g128_a8", "mxfp4", "mxfp4_a8", "iq4_nl", "iq4_nl_a8", "q4_k", "q4_k_a8", "q6_k", "q6_k_a8",
    "int8_row", "int8_row_a8", "fp8", "nvfp4", "nvfp4_a8", "int4_bf16", "int4_bf16_a8", "int4_zero",
    "int4_zero_a8", "int4_zero_g64", "int4_zero_g64_a8", "int4_zero_g128", "int4_zero_g128_a8", "stored",
    "stored_a8", "int8_a16", "int4_a16", "int4_g64_a16", "int4_g128_a16", "mxfp4_a16", "iq4_nl_a16",
    "q4_k_a16", "q6_k_a16", "int8_row_a16", "fp8_a16", "nvfp4_a16", "int4_bf16_a16", "int4_zero_a16",
    "int4_zero_g64_a16", "int4_zero_g128_a16", "stored_a16",
]
TapePolicy = Literal["auto", "full", "lean"]
ScheduleKind = Literal["constant", "linear", "cosine", "one_cycle", "one_cycle_linear"]
Layout = Literal[
    "libmoe", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek", "gpt_oss", "gpt_oss_mxfp4", "llama4",
    "granite_moe", "dbrx", "switch_encoder", "switch_decoder", "transformers_5", "llama4_text", "jetmoe",
    "minimax_m2", "ernie4_5", "longcat_flash", "jamba", "hunyuan", "nemotron_h", "lfm2_moe", "afmoe",
    "deepseek_v4", "nllb_encoder", "nllb_decoder", "qwen3_vl_moe", "qwen3_5_moe", "gemma4", "gguf",
]
ExpertPart = Literal["gate", "up", "down", "gate_bias", "up_bias", "down_bias", "constant"]
Norm = Literal["layer", "rms"]
NormPlace = Literal["pre", "post", "none"]
QkNorm = Literal["none", "head", "whole", "rotated", "plain"]
Keep = Literal["all", "lean", "input"]
Next = Literal["go_on", "end_sequence", "end_all"]
FolderDType = Literal["own", "f32", "bf16", "f16"]
CommunicatorFlag = Literal["any_thread"]
ChoiceScope = Literal["global", "local"]
Strategy = Literal["exclusive", "replicated", "sliced"]
TensorDType = Literal["f32", "bf16", "f16"]
IoDType = Literal["f32", "bf16"]
WeightDType = Literal["f32", "bf16", "f16"]
PlanTapePolicy = Literal["full", "lean"]
StateDType = Literal["f32", "bf16"]
ExpertTensorDType = Literal["f32", "bf16", "f16"]
IndexDType = Literal["i32", "i64"]
RoutingDType = Literal["f32", "bf16", "f16"]
ComputeDType = Literal["f32", "bf16"]
DenseKind = Literal["mlp", "gated"]
EmbeddingDType = Literal["f32", "bf16"]
LayerSaveDType = Literal["f32", "bf16", "f16"]
