"""Latent attention of DeepSeek-V2 and V3 as transformers computes it: logits, the loss and all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

import libmoe
from comparison import assert_all_close, assert_close

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
Arrays = dict[str, NDArray[np.float32]]


def theirs(name: str) -> Any:
    config, model, more = MODELS[name]
    torch.manual_seed(0)
    made = model(config(**{**SIZES, **more})).eval()
    for key, parameter in made.named_parameters():
        if "norm" in key or key.endswith("bias"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def ours(model: Any) -> libmoe.Model:
    c, rotary = model.config, model.model.rotary_emb
    return libmoe.Model(
        c.hidden_size,
        c.num_hidden_layers,
        c.num_attention_heads,
        head_size=c.qk_nope_head_dim + c.qk_rope_head_dim,
        value_head_size=c.v_head_dim,
        latent_rank=c.kv_lora_rank,
        query_rank=c.q_lora_rank or 0,
        rope_theta=0.0,
        rotary_tables=[
            {
                "rotary_size": c.qk_rope_head_dim,
                "frequencies": rotary.inv_freq.double().numpy(),
                "scale": rotary.attention_scaling,
            }
        ],
        attention_scale=float(model.model.layers[0].self_attn.scaling),
        qkv_bias=c.attention_bias,
        output_bias=c.attention_bias,
        norm_epsilon=c.rms_norm_eps,
        latent_norm_epsilon=1e-6,
        vocabulary_size=c.vocab_size,
        dense_intermediate_size=c.intermediate_size,
        tied_output=False,
    )


def halves(rows: torch.Tensor, turning: int) -> torch.Tensor:
    """Of each head's rows the last `turning`: pairs (2 i, 2 i + 1) become (i, i + turning / 2)."""
    last = rows[..., -turning:, :].unflatten(-2, (-1, 2)).transpose(-3, -2).flatten(-3, -2)
    return torch.cat([rows[..., :-turning, :], last], dim=-2)


def renamed(model: Any, tensors: dict[str, torch.Tensor]) -> Arrays:
    """Theirs, or their gradients, by our names and in our order of what turns."""
    c, found = model.config, {}
    names = {
        "model.embed_tokens.weight": "embed.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.": "layers.",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "self_attn.q_proj": "attention.q_b",
        "self_attn.q_a_proj": "attention.q_a",
        "self_attn.q_a_layernorm": "attention.q_a_norm",
        "self_attn.q_b_proj": "attention.q_b",
        "self_attn.kv_a_proj_with_mqa": "attention.kv_a",
        "self_attn.kv_a_layernorm": "attention.kv_a_norm",
        "self_attn.kv_b_proj": "attention.kv_b",
        "self_attn.o_proj": "attention.output",
        "mlp.gate_proj": "ffn.experts.gate",
        "mlp.up_proj": "ffn.experts.up",
        "mlp.down_proj": "ffn.experts.down",
    }
    for key, tensor in tensors.items():
        name = key
        for old, new in names.items():
            name = name.replace(old, new)
        tensor = tensor.detach()
        if "attention.q_b" in name:
            heads = tensor.unflatten(0, (c.num_attention_heads, -1))
            tensor = halves(heads, c.qk_rope_head_dim).flatten(0, 1)
        elif "attention.kv_a." in name:
            rows = tensor if tensor.ndim == 2 else tensor[:, None]
            tensor = halves(rows, c.qk_rope_head_dim).reshape(tensor.shape)
        found[name] = tensor[None].numpy() if "ffn" in name else tensor.numpy()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients(name: str) -> None:
    model = theirs(name)
    random = np.random.default_rng(1)
    tokens = random.integers(1, 40, (2, 29))
    labels = np.roll(tokens, -1, axis=1)
    wanted = model(input_ids=torch.tensor(tokens))
    loss = torch.nn.functional.cross_entropy(wanted.logits.flatten(0, 1), torch.tensor(labels).flatten())
    loss.backward()
    copy = ours(model)
    copy.load_state_dict(renamed(model, dict(model.named_parameters())))
    tokens, labels = tokens.astype(np.int32), labels.astype(np.int32)
    for tape in (None, True):
        output = copy.forward(tokens, labels, logits=True, tape=tape)
        assert_close("logits", output.logits, wanted.logits.detach(), 1e-5)
        assert abs(output.loss - loss.item()) < 1e-5
    copy.backward(output)
    gradients = renamed(model, {key: value.grad for key, value in model.named_parameters()})
    found = {key: parameter.grad for key, parameter in copy.parameters.items()}
    assert_all_close(found, gradients, 1e-4, floor=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokens_are_chosen(name: str) -> None:
    model = theirs(name)
    prompt = [3, 1, 4, 1, 5]
    said = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    copy = ours(model)
    copy.load_state_dict(renamed(model, dict(model.named_parameters())))
    assert list(copy.generate(prompt, 20, temperature=0)) == said[0, len(prompt) :].tolist()
