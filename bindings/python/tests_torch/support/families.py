"""Every class of experts in the installed transformers, and tiny random models that have it."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

_MODELS = Path(transformers.__file__).parent / "models"
_DECORATED = re.compile(r"^@use_experts_implementation.*?^class (\w+)\(", re.MULTILINE | re.DOTALL)


@functools.cache
def decorated() -> list[tuple[str, str]]:
    """(module, class) of each class that transformers lets others compute."""
    found = []
    for file in sorted(_MODELS.glob("*/modeling_*.py")):
        name = f"transformers.models.{file.parent.name}.{file.stem}"
        found += [(name, each) for each in _DECORATED.findall(file.read_text())]
    return found


# What sizes are called, and what they become.
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "n_shared_experts": 1,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "num_dense_layers": 0,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 4,
    "depth": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def shrink(config: PretrainedConfig) -> None:
    """Make a configuration and those within it small."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shrink(value)
        elif name in SIZES and value is not None:
            setattr(config, name, SIZES[name])
