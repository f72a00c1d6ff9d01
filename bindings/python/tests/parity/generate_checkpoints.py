"""Write checkpoints/: small models as transformers saves them, and what their blocks compute.

    pip install -r requirements.txt
    python generate_checkpoints.py

Each model has two layers; the tensors of the blocks are kept, x and y are of layer 1.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.dbrx.modeling_dbrx import DbrxFFN

FOLDER = Path(__file__).with_name("checkpoints")
H, WIDTH, E, K = 8, 12, 4, 2
SIZES: dict[str, Any] = dict(
    hidden_size=H,
    intermediate_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_experts_per_tok=K,
    vocab_size=16,
    pad_token_id=0,
)
DEEPSEEK = dict(
    n_routed_experts=E,
    moe_intermediate_size=WIDTH,
    first_k_dense_replace=0,
    n_group=1,
    topk_group=1,
    q_lora_rank=4,
    kv_lora_rank=4,
    qk_rope_head_dim=2,
    qk_nope_head_dim=2,
    v_head_dim=2,
)
SWITCH = dict(
    d_model=H,
    d_ff=WIDTH,
    d_kv=4,
    num_heads=2,
    num_experts=E,
    num_layers=2,
    num_decoder_layers=2,
    num_sparse_encoder_layers=2,
    num_sparse_decoder_layers=2,
    vocab_size=16,
)


def models() -> dict[str, tuple[str, Any, str]]:
    """Class, configuration, and the block of layer 1."""
    t = transformers
    mlp = "model.layers.1.mlp"
    return {
        "mixtral": ("MixtralForCausalLM", t.MixtralConfig(num_local_experts=E, **SIZES), mlp),
        "qwen2_moe": (
            "Qwen2MoeForCausalLM",
            t.Qwen2MoeConfig(
                num_experts=E, moe_intermediate_size=WIDTH, shared_expert_intermediate_size=6, **SIZES
            ),
            mlp,
        ),
        "qwen3_moe": (
            "Qwen3MoeForCausalLM",
            t.Qwen3MoeConfig(num_experts=E, moe_intermediate_size=WIDTH, norm_topk_prob=True, **SIZES),
            mlp,
        ),
        "olmoe": ("OlmoeForCausalLM", t.OlmoeConfig(num_experts=E, **SIZES), mlp),
        "deepseek": ("DeepseekV3ForCausalLM", t.DeepseekV3Config(**DEEPSEEK, **SIZES), mlp),
        "gpt_oss": ("GptOssForCausalLM", t.GptOssConfig(num_local_experts=E, head_dim=4, **SIZES), mlp),
        "granite_moe": (
            "GraniteMoeForCausalLM",
            t.GraniteMoeConfig(num_local_experts=E, **SIZES),
            "model.layers.1.block_sparse_moe",
        ),
        "llama4_text": (
            "Llama4ForCausalLM",
            t.Llama4TextConfig(
                num_local_experts=E,
                interleave_moe_layer_step=1,
                head_dim=4,
                **{**SIZES, "num_experts_per_tok": 1},
            ),
            "model.layers.1.feed_forward",
        ),
        "switch_encoder": (
            "SwitchTransformersForConditionalGeneration",
            t.SwitchTransformersConfig(**SWITCH),
            "encoder.block.1.layer.1.mlp",
        ),
        "switch_decoder": (
            "SwitchTransformersForConditionalGeneration",
            t.SwitchTransformersConfig(**SWITCH),
            "decoder.block.1.layer.2.mlp",
        ),
    }


def save_dbrx(arrays: dict[str, Any]) -> None:
    """Write the block of DBRX, whose model does not run in this version."""
    torch.manual_seed(100)
    config = transformers.DbrxConfig(
        d_model=H,
        ffn_config={"ffn_hidden_size": WIDTH, "moe_num_experts": E, "moe_top_k": K, "hidden_size": H},
    )
    block = DbrxFFN(config).eval()
    for tensor in block.parameters():
        torch.nn.init.normal_(tensor, std=0.5)
    x = torch.randn(1, 10, H)
    with torch.no_grad():
        y = block(x)
    y = y[0] if isinstance(y, tuple) else y
    arrays["dbrx.x"], arrays["dbrx.y"] = x.reshape(10, H).numpy(), y.reshape(10, H).numpy()
    named = {f"transformer.blocks.1.ffn.{key}": value for key, value in block.state_dict().items()}
    save_file(named, FOLDER / "dbrx.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Write every model's file, and x and y of all of them."""
    FOLDER.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {}
    for number, (name, (kind, config, path)) in enumerate(models().items()):
        torch.manual_seed(number)
        config._attn_implementation = config._experts_implementation = "eager"
        model = getattr(transformers, kind)(config).eval().float()
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dtype == torch.float32:
                torch.nn.init.normal_(tensor, std=0.5)
        block = model.get_submodule(path)
        x = torch.randn(1, 10, H)
        with torch.no_grad():
            y = block(x)
        y = y[0] if isinstance(y, tuple) else y
        arrays[f"{name}.x"] = x.reshape(10, H).numpy()
        arrays[f"{name}.y"] = y.reshape(10, H).numpy()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            saved = load_file(Path(folder) / "model.safetensors")
        marks = ("mlp", "block_sparse_moe", "feed_forward")
        kept = {key: value for key, value in saved.items() if any(mark in key for mark in marks)}
        if name == "switch_encoder":
            kept = {key: value for key, value in kept.items() if key.startswith("encoder")}
        if name == "switch_decoder":
            kept = {key: value for key, value in kept.items() if key.startswith("decoder")}
        save_file(kept, FOLDER / f"{name}.safetensors", metadata={"format": "pt"})
        if name in ("mixtral", "qwen2_moe", "deepseek"):
            memory = {key: value for key, value in model.state_dict().items() if key.startswith(f"{path}.")}
            save_file(memory, FOLDER / f"{name}-transformers_5.safetensors", metadata={"format": "pt"})
    save_dbrx(arrays)
    for file in FOLDER.iterdir():
        file.chmod(0o644)
    np.savez(FOLDER / "blocks.npz", **arrays)


main()
