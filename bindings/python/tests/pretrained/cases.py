"""Tiny models of the families that libmoe reads, as settings of transformers' configurations.

Each uses what its family has: windows and chunks shorter than the text, positions stretched beyond the
original length, sinks, dense layers, groups, biases, several kinds of layers, tied and untied outputs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Settings = dict[str, Any]

V, H = 80, 32  # vocabulary and hidden size
WHOLE = 40  # numbers of a gradient that is kept as it is
PROJECTIONS = 3  # sums that are kept of a larger one


def fingerprint(name: str, gradient: NDArray[Any]) -> NDArray[np.float64]:
    """A gradient if it is small, else its norm and a few sums with signs that its name decides."""
    flat = gradient.astype(np.float64).ravel()
    if flat.size <= WHOLE:
        return flat
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(PROJECTIONS * flat.size)
    signs = 1.0 - 2.0 * (words >> np.uint64(63)).astype(np.float64).reshape(PROJECTIONS, -1)
    return np.concatenate([[np.linalg.norm(flat)], signs @ flat])


_SIZES: Settings = {
    "vocab_size": V,
    "hidden_size": H,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Case:
    """A model and how it is written.

    Attributes
    ----------
    kind : str
        Stem of transformers' names: ``MixtralConfig``, ``MixtralForCausalLM``.
    settings : dict
        Of the configuration, beside the common sizes.
    dtype : str
        Of the files.
    shard : str
        ``max_shard_size``; empty: one file.
    older : bool
        Whether config.json is written as transformers 4 did: ``rope_theta`` and ``rope_scaling``.
    text_only : bool
        False: a text model within one of text and pictures.
    prompts : tuple of int
        Lengths of the prompts that are continued.
    short : int
        Tokens of a second text, which is not beyond the original length; 0: none.
    left_over : dict
        Tensors that published files hold and the model does not read, by name: shapes.
    tokenizer : bool
        Whether there is one beside the model, with a chat template.
    """

    kind: str
    settings: Settings
    dtype: str = "float32"
    shard: str = ""
    older: bool = False
    text_only: bool = True
    prompts: tuple[int, ...] = (5, 11)
    short: int = 0
    left_over: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tokenizer: bool = False

    @property
    def arguments(self) -> Settings:
        """All settings of the text model."""
        return {**_SIZES, **self.settings}


_YARN = {"rope_type": "yarn", "rope_theta": 1e2, "factor": 4.0, "original_max_position_embeddings": 8}
_YARN |= {"beta_fast": 4.0, "beta_slow": 0.2}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e3, "factor": 4.0, "original_max_position_embeddings": 12}
_LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LATENT = {"kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 6}
_LATENT |= {"num_key_value_heads": 4, "intermediate_size": 24, "moe_intermediate_size": 8}
_LATENT |= {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

CASES: dict[str, Case] = {
    "mixtral": Case(
        "Mixtral",
        {
            "intermediate_size": 12,
            "num_local_experts": 4,
            "head_dim": 10,
            "sliding_window": 7,
            "output_router_logits": True,
            "router_aux_loss_coef": 0.02,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        },
        shard="60KB",
        tokenizer=True,
    ),
    "qwen2_moe": Case(
        "Qwen2Moe",
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 12,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "qwen3_moe": Case(
        "Qwen3Moe",
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 8,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": _YARN,
        },
        dtype="bfloat16",
        shard="40KB",
    ),
    "olmoe": Case(
        "Olmoe",
        {"intermediate_size": 12, "num_experts": 6, "num_experts_per_tok": 3, "num_hidden_layers": 2},
    ),
    "granitemoe": Case(
        "GraniteMoe",
        {
            "intermediate_size": 12,
            "num_local_experts": 4,
            "num_hidden_layers": 2,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.5,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.4,
        },
    ),
    "granitemoeshared": Case(
        "GraniteMoeShared",
        {
            "intermediate_size": 12,
            "shared_intermediate_size": 12,
            "num_local_experts": 4,
            "num_hidden_layers": 2,
            "embedding_multiplier": 2.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 1.5,
            "attention_multiplier": 0.25,
        },
    ),
    # transformers 5.24 always turns by the short factors; beyond the original length it has the long scale.
    "phimoe": Case(
        "Phimoe",
        {
            "intermediate_size": 12,
            "num_local_experts": 5,
            "num_hidden_layers": 2,
            "attention_bias": True,
            "lm_head_bias": True,
            "sliding_window": 9,
            "router_jitter_noise": 0.1,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.1, 1.3, 1.6],
                "long_factor": [1.2, 2.0, 4.0, 8.0],
                "short_mscale": 1.1,
                "long_mscale": 1.3,
                "original_max_position_embeddings": 16,
            },
        },
        prompts=(3, 7),
        short=12,
    ),
    "gpt_oss": Case(
        "GptOss",
        {
            "intermediate_size": 12,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "sliding_window": 5,
            "layer_types": _SLIDING,
            "swiglu_limit": 1.5,
            "rope_parameters": {**_YARN, "truncate": False},
        },
    ),
    "glm4_moe": Case(
        "Glm4Moe",
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 8,
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "n_group": 3,
            "topk_group": 2,
            "routed_scaling_factor": 1.5,
            "use_qk_norm": True,
            "attention_bias": True,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
        left_over={
            "model.layers.3.eh_proj.weight": (H, 2 * H),
            "model.layers.3.self_attn.q_proj.weight": (H, H),
        },
    ),
    "ernie4_5_moe": Case(
        "Ernie4_5_Moe",
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 8,
            "moe_num_experts": 5,
            "moe_k": 2,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 2,
            "num_hidden_layers": 4,
            "use_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "minimax_m2": Case(
        "MiniMaxM2",
        {
            "intermediate_size": 12,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "num_hidden_layers": 2,
            "head_dim": 10,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
        },
    ),
    "dots1": Case(
        "Dots1",
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 8,
            "n_routed_experts": 6,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.7,
            "sliding_window": 6,
            "max_window_layers": 2,
            "head_dim": 8,
        },
    ),
    "hunyuan_v1_moe": Case(
        "HunYuanMoEV1",
        {
            "intermediate_size": 12,
            "num_experts": 4,
            "moe_topk": 2,
            "num_hidden_layers": 2,
            "head_dim": 8,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 20.0},
        },
    ),
    "deepseek_v2_lite": Case(
        "DeepseekV2",
        {
            **_LATENT,
            "q_lora_rank": None,
            "topk_method": "greedy",
            "routed_scaling_factor": 1.3,
            "rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
        },
    ),
    "deepseek_v2": Case(
        "DeepseekV2",
        {
            **_LATENT,
            "num_hidden_layers": 2,
            "q_lora_rank": 10,
            "topk_method": "group_limited_greedy",
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 2.0,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "deepseek_v3": Case(
        "DeepseekV3",
        {
            **_LATENT,
            "q_lora_rank": 10,
            "n_shared_experts": 1,
            "n_group": 3,
            "topk_group": 2,
            "norm_topk_prob": True,
            "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        older=True,
        left_over={"model.layers.3.enorm.weight": (H,), "model.layers.3.eh_proj.weight": (H, 2 * H)},
    ),
    "llama4_text": Case(
        "Llama4",
        {
            "intermediate_size": 12,
            "intermediate_size_mlp": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "num_hidden_layers": 4,
            "no_rope_layer_interval": 2,
            "head_dim": 8,
            "attention_chunk_size": 8,
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "floor_scale": 4,
            "attn_scale": 0.5,
            "rope_parameters": _LLAMA3,
        },
    ),
    "qwen3_vl_moe": Case(
        "Qwen3VLMoe",
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "num_hidden_layers": 2,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 1, 1]},
        },
        text_only=False,
    ),
    "qwen3_5_moe_text": Case(
        "Qwen3_5Moe",
        {
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 12,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 2,
            "head_dim": 16,
            "layer_types": ["full_attention", "full_attention"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e5,
                "partial_rotary_factor": 0.25,
                "mrope_section": [1, 1, 0],
            },
        },
    ),
    "llama": Case(
        "Llama",
        {
            "intermediate_size": 24,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": _LLAMA3,
        },
        older=True,
        tokenizer=True,
    ),
    "qwen3": Case(
        "Qwen3",
        {
            "intermediate_size": 24,
            "head_dim": 10,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": Case(
        "Mistral", {"intermediate_size": 24, "head_dim": 10, "sliding_window": 6}, dtype="float16"
    ),
}
