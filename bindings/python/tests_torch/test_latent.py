"""Latent attention of DeepSeek-V2 and V3 as transformers computes it: logits, the loss and all gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

import libmoe
from comparison import assert_all_close, assert_close
from pretrained_models import saved_gradients

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 36,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
MODELS: dict[str, Any] = {
    "v2": (DeepseekV2Config, DeepseekV2ForCausalLM, {}),
    "v2 lite": (DeepseekV2Config, DeepseekV2ForCausalLM, {"q_lora_rank": None, "rope_parameters": YARN}),
    "v3": (DeepseekV3Config, DeepseekV3ForCausalLM, {"attention_bias": True}),
    "v3 yarn": (DeepseekV3Config, DeepseekV3ForCausalLM, {"rope_parameters": YARN, "rms_norm_eps": 1e-3}),
}


def theirs(name: str) -> Any:
    config, model, more = MODELS[name]
    torch.manual_seed(0)
    made = model(config(**{**SIZES, **more})).eval()
    for key, parameter in made.named_parameters():
        if "norm" in key or key.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def ours(model: Any, folder: Path) -> libmoe.Model:
    model.save_pretrained(folder)
    return libmoe.Model.from_pretrained(folder, weight_dtype="f32")


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    random = np.random.default_rng(1)
    tokens = random.integers(1, 40, (2, 29))
    labels = np.roll(tokens, -1, axis=1)
    said = model(input_ids=torch.tensor(tokens))
    loss = torch.nn.functional.cross_entropy(said.logits.flatten(0, 1), torch.tensor(labels).flatten())
    loss.backward()
    copy = ours(model, tmp_path)
    tokens, labels = tokens.astype(np.int32), labels.astype(np.int32)
    for tape in (None, True):
        output = copy.forward(tokens, labels, logits=True, tape=tape)
        assert_close("logits", output.logits, said.logits.detach(), 1e-5)
        assert abs(output.loss - loss.item()) < 1e-5
    copy.backward(output)
    found = saved_gradients(copy, tmp_path / "gradients")
    wanted = {key: value.grad for key, value in model.named_parameters()}
    assert_all_close(found, wanted, 1e-4, floor=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokens_are_chosen(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    prompt = [3, 1, 4, 1, 5]
    said = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    copy = ours(model, tmp_path)
    assert list(copy.generate(prompt, 20, temperature=0, end_tokens=[])) == said[0, len(prompt) :].tolist()
