"""The Qwen3-MoE block of transformers in the sizes of a shape, without weights."""
# Types are checked where PyTorch and transformers need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import torch
from shapes import Shape
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock


def empty_block(shape: Shape) -> torch.nn.Module:
    """Return the block; it is SwiGLU."""
    config = Qwen3MoeConfig(
        hidden_size=shape.hidden,
        moe_intermediate_size=shape.inner,
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        norm_topk_prob=True,
    )
    with torch.device("meta"):
        return Qwen3MoeSparseMoeBlock(config)
