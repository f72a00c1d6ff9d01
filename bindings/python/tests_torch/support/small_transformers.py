"""Small models of transformers, and their experts computed by libmoe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import libmoe.torch
from comparison import assert_all_close

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
}


def mixtral(**more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=4, **more)
    return MixtralForCausalLM(config).eval()


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SIZES, intermediate_size=48, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2
        )
    ).eval()


def gpt_oss() -> PreTrainedModel:
    torch.manual_seed(0)
    return GptOssForCausalLM(
        GptOssConfig(**SIZES, intermediate_size=40, num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    ).eval()


MODELS = {"mixtral": mixtral, "qwen3_moe": qwen, "gpt_oss": gpt_oss}
IDS = torch.randint(1, 64, (2, 11), generator=torch.Generator().manual_seed(5))


def ours(model: PreTrainedModel) -> PreTrainedModel:
    model.set_experts_implementation("libmoe")
    return model


def loss_and_gradients(model: torch.nn.Module, **more: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, **more).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 3e-5
) -> None:
    """Both are float32; what is nearly 0 is a difference of larger numbers, and has their errors."""
    largest = max(value.abs().max().item() for value in expected.values())
    assert_all_close(actual, expected, tolerance, floor=0.01 * largest)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call that libmoe computes from now on."""
    seen: list[tuple[Any, ...]] = []
    forward = libmoe.torch._by_call.forward
    monkeypatch.setattr(
        libmoe.torch._by_call, "forward", lambda *a, **k: (seen.append(a), forward(*a, **k))[1]
    )
    return seen


LORA = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "experts": {
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
}
