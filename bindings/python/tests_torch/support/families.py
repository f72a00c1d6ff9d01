"""Every class of experts in the installed transformers, and tiny random models that have it."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
import transformers
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
    "num_key_value_heads": 4,
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
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 2,
    "linear_head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "chunk_size": 8,
    "depth": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# Of single families: what the sizes above do not make small, or not consistent.
SPARSE = {"mlp_layer_types": ["sparse", "sparse"]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OVERRIDES: dict[str, dict[str, Any]] = {
    "beam": SPARSE,
    "deepseek_ocr2": SPARSE,
    "ernie4_5_vl_moe": {
        "moe_intermediate_size": [24, 24],
        "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]},
        **SPARSE,
    },
    "flint": {"mlp_only_layers": []},
    "gemma4": {"enable_moe_block": True, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    "glm5_next": {"index_topk": 16, "qk_rope_head_dim": 0, **SPARSE},
    "glm4v_moe": {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    "hy_v4_vl": {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 2},
    "qwen3_omni_moe": {"shared_expert_intermediate_size": 24},
    "zaya": {"num_experts_per_tok": 1},
}
_ORDER = (
    "ForCausalLM",
    "ForTokenClassification",
    "TextModel",
    "DecoderModel",
    "Model",
    "ForConditionalGeneration",
)


def models_of(module: str) -> list[type[PreTrainedModel]]:
    """The classes of models that take tokens, the most suitable first."""
    found = [
        each
        for each in vars(importlib.import_module(module)).values()
        if inspect.isclass(each) and issubclass(each, PreTrainedModel) and each.__module__ == module
    ]
    ranked = [
        (order, kind) for order, end in enumerate(_ORDER) for kind in found if kind.__name__.endswith(end)
    ]
    unique = dict.fromkeys(kind for _, kind in sorted(ranked, key=lambda pair: pair[0]))
    return [kind for kind in unique if isinstance(kind.config_class, type)]


def small_config(kind: type[PretrainedConfig], family: str) -> PretrainedConfig:
    """The family's own configuration with few and small layers."""
    known = inspect.signature(kind).parameters
    given = {name: value for name, value in SIZES.items() if name in known}
    given |= {name: value for name, value in OVERRIDES.get(family, {}).items() if name in known}
    config = kind(**given)
    for name, value in OVERRIDES.get(family, {}).items():
        if not hasattr(config, name):  # read by the model, and no field of the configuration
            setattr(config, name, value)
    return config


def small_model(module: str, name: str) -> PreTrainedModel:
    """A model, random in every parameter and small enough to compare, that has this class of experts."""
    family, reasons = module.split(".")[2], []
    for kind in models_of(module):
        try:
            config = small_config(kind.config_class, family)
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in kind(copy.deepcopy(config)).parameters())
            if size > 8_000_000:
                reasons.append(f"{kind.__name__}: has {size} parameters")
                continue
            torch.manual_seed(0)
            model = kind(config)
        except Exception as error:
            reasons.append(f"{kind.__name__}: {type(error).__name__}: {error}")
            continue
        if any(type(each).__name__ == name for each in model.modules()):
            return unsettled(model)
        reasons.append(f"{kind.__name__}: has no {name}")
    raise LookupError(
        f"{name}: no small model; add to OVERRIDES[{family!r}] what this says: " + "; ".join(reasons)
    )


def unsettled(model: PreTrainedModel) -> PreTrainedModel:
    """Give parameters that begin at 0 or 1 other values, so that nothing is right by chance."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.ndim < 3:
                parameter += 0.05 * torch.randn(parameter.shape, generator=random)
            elif parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=random) * parameter.shape[-1] ** -0.5)
    return model.eval()


def result(model: PreTrainedModel, n_tokens: int = 9) -> torch.Tensor:
    """Logits, or what the model has instead of them, of two sequences."""
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(3, SIZES["vocab_size"], (2, n_tokens), generator=random)
    given = {"input_ids": ids}
    if not any(name.endswith("embed_tokens") for name, _ in model.named_modules()):
        given = {"inputs_embeds": torch.randn(2, n_tokens, SIZES["hidden_size"], generator=random)}
    output = model(**given, use_cache=False)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def gradients(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the model says, and the gradients of its product with numbers that are always the same."""
    model.zero_grad()
    said = result(model)
    random = torch.Generator().manual_seed(3)
    (said * torch.randn(said.shape, generator=random).to(said.dtype)).sum().backward()
    named = model.named_parameters()
    return said.detach(), {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}
