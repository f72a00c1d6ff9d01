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
    } | later_models()


def later_models() -> dict[str, tuple[str, Any, str]]:
    """Return the same for models whose names are their own."""
    t = transformers
    mlp, feed_forward = "model.layers.1.mlp", "model.layers.1.feed_forward"
    few = {
        key: value for key, value in SIZES.items() if key not in ("intermediate_size", "num_experts_per_tok")
    }
    fine: dict[str, Any] = dict(SIZES, intermediate_size=6, moe_intermediate_size=WIDTH)
    full = ["full_attention"] * 2
    text = dict(
        few,
        moe_intermediate_size=WIDTH,
        num_experts=E,
        num_experts_per_tok=K,
        head_dim=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]},
    )
    vision: dict[str, Any] = dict(
        depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=H, num_position_embeddings=4
    )
    nllb = t.NllbMoeConfig(
        d_model=H,
        encoder_ffn_dim=WIDTH,
        decoder_ffn_dim=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        num_experts=E,
        vocab_size=16,
    )
    return {
        "jetmoe": (
            "JetMoeForCausalLM",
            t.JetMoeConfig(
                hidden_size=H,
                intermediate_size=WIDTH,
                num_hidden_layers=2,
                num_key_value_heads=2,
                kv_channels=4,
                num_local_experts=E,
                num_experts_per_tok=K,
                vocab_size=16,
            ),
            mlp,
        ),
        "minimax_m2": (
            "MiniMaxM2ForCausalLM",
            t.MiniMaxM2Config(num_local_experts=E, head_dim=4, **SIZES),
            mlp,
        ),
        "ernie4_5": (
            "Ernie4_5_MoeForCausalLM",
            t.Ernie4_5_MoeConfig(
                moe_intermediate_size=WIDTH,
                moe_num_experts=E,
                moe_k=K,
                moe_num_shared_experts=2,
                moe_layer_start_index=0,
                **few,
            ),
            mlp,
        ),
        "longcat_flash": (
            "LongcatFlashForCausalLM",
            t.LongcatFlashConfig(
                hidden_size=H,
                ffn_hidden_size=6,
                expert_ffn_hidden_size=WIDTH,
                num_layers=2,
                num_attention_heads=2,
                n_routed_experts=E,
                zero_expert_num=2,
                moe_topk=K,
                q_lora_rank=4,
                kv_lora_rank=4,
                qk_rope_head_dim=2,
                qk_nope_head_dim=2,
                v_head_dim=2,
                vocab_size=16,
            ),
            mlp,
        ),
        "jamba": (
            "JambaForCausalLM",
            t.JambaConfig(
                num_experts=E,
                expert_layer_period=1,
                expert_layer_offset=0,
                attn_layer_period=1,
                attn_layer_offset=0,
                use_mamba_kernels=False,
                **SIZES,
            ),
            feed_forward,
        ),
        "hunyuan": (
            "HunYuanMoEV1ForCausalLM",
            t.HunYuanMoEV1Config(intermediate_size=WIDTH, num_experts=E, moe_topk=K, head_dim=4, **few),
            mlp,
        ),
        "dots1": (
            "Dots1ForCausalLM",
            t.Dots1Config(
                n_routed_experts=E,
                n_shared_experts=2,
                norm_topk_prob=True,
                routed_scaling_factor=2.5,
                head_dim=4,
                first_k_dense_replace=0,
                **fine,
            ),
            mlp,
        ),
        "nemotron_h": (
            "NemotronHForCausalLM",
            t.NemotronHConfig(
                hidden_size=H,
                layers_block_type=["attention", "moe"],
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=4,
                vocab_size=16,
                n_routed_experts=E,
                moe_intermediate_size=WIDTH,
                moe_shared_expert_intermediate_size=6,
                num_experts_per_tok=K,
                routed_scaling_factor=2.5,
                mamba_num_heads=2,
                mamba_head_dim=4,
                ssm_state_size=4,
                n_groups=1,
            ),
            "model.layers.1.mixer",
        ),
        "lfm2_moe": (
            "Lfm2MoeForCausalLM",
            t.Lfm2MoeConfig(num_experts=E, num_dense_layers=0, layer_types=full, **fine),
            feed_forward,
        ),
        "afmoe": (
            "AfmoeForCausalLM",
            t.AfmoeConfig(
                num_experts=E,
                num_shared_experts=2,
                num_dense_layers=0,
                head_dim=4,
                layer_types=full,
                route_scale=2.826,
                **fine,
            ),
            mlp,
        ),
        "deepseek_v4": (
            "DeepseekV4ForCausalLM",
            t.DeepseekV4Config(
                hidden_size=H,
                moe_intermediate_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                head_dim=8,
                n_routed_experts=E,
                num_experts_per_tok=K,
                vocab_size=16,
                q_lora_rank=4,
                o_lora_rank=4,
                o_groups=1,
                qk_rope_head_dim=4,
                partial_rotary_factor=0.5,
                layer_types=["sliding_attention"] * 2,
                mlp_layer_types=["hash_moe", "moe"],
                num_nextn_predict_layers=0,
                index_n_heads=2,
                index_head_dim=4,
                swiglu_limit=1.0,
            ),
            mlp,
        ),
        "nllb_encoder": ("NllbMoeForConditionalGeneration", nllb, "model.encoder.layers.1.ffn"),
        "nllb_decoder": ("NllbMoeForConditionalGeneration", nllb, "model.decoder.layers.1.ffn"),
        "qwen3_vl_moe": (
            "Qwen3VLMoeForConditionalGeneration",
            t.Qwen3VLMoeConfig(
                text_config=dict(text, intermediate_size=6),
                vision_config=dict(vision, deepstack_visual_indexes=[]),
            ),
            "model.language_model.layers.1.mlp",
        ),
        "qwen3_5_moe": (
            "Qwen3_5MoeForConditionalGeneration",
            t.Qwen3_5MoeConfig(
                text_config=dict(text, shared_expert_intermediate_size=6, layer_types=full),
                vision_config=vision,
            ),
            "model.language_model.layers.1.mlp",
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


def nllb(block: Any, x: Any) -> Any:
    """Return what NLLB-MoE's block computes: its class loops over other pairs since transformers 5.

    Of every expert its output times the router's weight, times the share of tokens that training keeps.
    """
    flat = x.reshape(-1, H)
    weights = block.router(flat)[1]
    outputs = [weights[:, n, None] * block.experts[f"expert_{n}"](flat) for n in range(E)]
    return sum(outputs) * (1 - block.experts.moe_token_dropout)


def set_eager(config: Any) -> None:
    """Let attention and experts be the loops that are the reference."""
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        if part is not None:
            part._attn_implementation = part._experts_implementation = "eager"


def main() -> None:
    """Write every model's file, and x and y of all of them."""
    FOLDER.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {}
    for number, (name, (kind, config, path)) in enumerate(models().items()):
        torch.manual_seed(number)
        set_eager(config)
        model = getattr(transformers, kind)(config).eval().float()
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dtype == torch.float32:
                torch.nn.init.normal_(tensor, std=0.5)
        block = model.get_submodule(path)
        x = torch.randn(1, 10, H)
        with torch.no_grad():
            y = nllb(block, x) if name.startswith("nllb") else block(x)
        y = y[0] if isinstance(y, tuple) else y
        arrays[f"{name}.x"] = x.reshape(10, H).numpy()
        arrays[f"{name}.y"] = y.reshape(10, H).numpy()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            saved = load_file(Path(folder) / "model.safetensors")
        marks = (".mlp.", ".block_sparse_moe.", ".feed_forward.", ".mixer.", ".ffn.")
        kept = {key: value for key, value in saved.items() if any(mark in key for mark in marks)}
        half = name.rpartition("_")[2]
        if half in ("encoder", "decoder"):
            kept = {key: value for key, value in kept.items() if key.startswith((half, f"model.{half}"))}
        kept = {key: value for key, value in kept.items() if "visual" not in key}
        save_file(kept, FOLDER / f"{name}.safetensors", metadata={"format": "pt"})
        if name in ("mixtral", "qwen2_moe", "deepseek"):
            memory = {key: value for key, value in model.state_dict().items() if key.startswith(f"{path}.")}
            save_file(memory, FOLDER / f"{name}-transformers_5.safetensors", metadata={"format": "pt"})
    save_dbrx(arrays)
    for file in FOLDER.iterdir():
        file.chmod(0o644)
    np.savez(FOLDER / "blocks.npz", **arrays)


main()
