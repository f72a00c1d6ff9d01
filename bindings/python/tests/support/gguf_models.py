"""GGUF files of the tiny models in folders, written by the package ``gguf`` as llama.cpp converts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from numpy.typing import NDArray

from pretrained_models import FOLDERS, tensors

Config = dict[str, Any]
Array = NDArray[Any]
Types = Callable[[str, Array], Q]
EXPERT = re.compile(r"model\.layers\.(\d+)\.\w+\.experts\.(\d+)\.(\w+)\.(weight|bias)")
MATRIX = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


@dataclass(frozen=True)
class Case:
    """How a folder is converted.

    Attributes
    ----------
    architecture : MODEL_ARCH
    keys : callable
        Writes those that are not every model's.
    changes : dict
        Of config.json: what a GGUF file has no keys for is made what such files mean.
    turned : bool
        Whether rows of queries and keys are put in pairs.
    """

    architecture: gguf.MODEL_ARCH
    keys: Callable[[gguf.GGUFWriter, Config], None] = lambda writer, config: None
    changes: Config = field(default_factory=dict)
    turned: bool = False


def _moe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _qwen2(writer: gguf.GGUFWriter, config: Config) -> None:
    _moe(writer, config)
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _vl(writer: gguf.GGUFWriter, config: Config) -> None:
    _moe(writer, config)
    writer.add_rope_dimension_sections([2, 1, 1, 0])
    writer.add_num_deepstack_layers(0)


def _granite(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    if config.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])


def _width(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def _gpt_oss(writer: gguf.GGUFWriter, config: Config) -> None:
    _width(writer, config)
    writer.add_sliding_window(config["sliding_window"])


def _scaled(writer: gguf.GGUFWriter, config: Config) -> None:
    _moe(writer, config)
    writer.add_expert_shared_count(config.get("n_shared_experts") or 0)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config.get("norm_topk_prob"):
        writer.add_expert_weights_norm(True)


def _glm(writer: gguf.GGUFWriter, config: Config) -> None:
    _scaled(writer, config)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_rope_dimension_count(config["head_dim"] // 2)
    writer.add_nextn_predict_layers(1)


def _dots(writer: gguf.GGUFWriter, config: Config) -> None:
    _scaled(writer, config)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _latent(writer: gguf.GGUFWriter, config: Config) -> None:
    _scaled(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    turned, own, rank = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["kv_lora_rank"]
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + turned)
    writer.add_value_length(rank)
    writer.add_key_length_mla(own + turned)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(turned)
    multiplier = _rope(config).get("mscale_all_dim")
    if multiplier is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * multiplier)


def _latent3(writer: gguf.GGUFWriter, config: Config) -> None:
    _latent(writer, config)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _ernie(writer: gguf.GGUFWriter, config: Config) -> None:
    _moe(writer, config)
    writer.add_expert_count(config["moe_num_experts"])
    writer.add_expert_used_count(config["moe_k"])
    writer.add_interleave_moe_layer_step(config.get("moe_layer_interval", 1))
    writer.add_leading_dense_block_count(config["moe_layer_start_index"])
    writer.add_expert_shared_count(config["moe_num_shared_experts"])
    writer.add_expert_shared_feed_forward_length(config["intermediate_size"])


def _minimax(writer: gguf.GGUFWriter, config: Config) -> None:
    _width(writer, config)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_rope_dimension_count(4)


def _hunyuan(writer: gguf.GGUFWriter, config: Config) -> None:
    _width(writer, config)
    writer.add_expert_used_count(config["moe_topk"])
    writer.add_expert_shared_count(1)
    writer.add_expert_shared_feed_forward_length(config["intermediate_size"])


def _phi(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = _rope(config)
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_attn_factors(rope["short_mscale"])


def _llama4(writer: gguf.GGUFWriter, config: Config) -> None:
    _width(writer, config)
    writer.add_feed_forward_length(config["intermediate_size_mlp"])
    writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])


_PLAIN = {"rope_type": "default", "rope_theta": 123456.0}
_PHI = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.125, 1.25, 1.625]}
_PHI |= {"long_factor": [1.25, 2.0, 4.0, 8.0], "short_mscale": 1.25, "long_mscale": 1.25}
_LITE = {"rope_type": "yarn", "rope_theta": 1e2, "factor": 4.0, "original_max_position_embeddings": 8}
_LITE |= {"beta_fast": 4.0, "beta_slow": 0.25, "mscale": 0.7, "mscale_all_dim": 0.7}
ARCH = gguf.MODEL_ARCH
CASES = {
    "mixtral": Case(ARCH.LLAMA, changes={"sliding_window": None}, turned=True),
    "llama": Case(ARCH.LLAMA, turned=True),
    "qwen2_moe": Case(ARCH.QWEN2MOE, _qwen2, {"use_sliding_window": False, "layer_types": None}),
    "qwen3_moe": Case(ARCH.QWEN3MOE, _moe),
    "qwen3_vl_moe": Case(ARCH.QWEN3VLMOE, _vl),
    "qwen3": Case(ARCH.QWEN3, changes={"use_sliding_window": False, "layer_types": None}),
    "olmoe": Case(ARCH.OLMOE),
    "granitemoe": Case(ARCH.GRANITE_MOE, _granite, turned=True),
    "granitemoeshared": Case(ARCH.GRANITE_MOE, _granite, turned=True),
    "gpt_oss": Case(ARCH.GPT_OSS, _gpt_oss, {"swiglu_limit": 7.0}),
    "glm4_moe": Case(ARCH.GLM4_MOE, _glm),
    "dots1": Case(ARCH.DOTS1, _dots, {"sliding_window": None, "layer_types": None}),
    "deepseek_v2_lite": Case(ARCH.DEEPSEEK2, _latent, {"rope_parameters": _LITE}),
    "deepseek_v2": Case(ARCH.DEEPSEEK2, _latent),
    "deepseek_v3": Case(ARCH.DEEPSEEK2, _latent3),
    "ernie4_5_moe": Case(ARCH.ERNIE4_5_MOE, _ernie),
    "minimax_m2": Case(ARCH.MINIMAXM2, _minimax, {"rotary_dim": 4}),
    "hunyuan_v1_moe": Case(ARCH.HUNYUAN_MOE, _hunyuan, {"rope_parameters": _PLAIN}),
    "phimoe": Case(
        ARCH.PHIMOE,
        _phi,
        {
            "sliding_window": None,
            "router_jitter_noise": 0.01,
            "original_max_position_embeddings": 16,
            "rope_parameters": {**_PHI, "original_max_position_embeddings": 16},
        },
    ),
    "llama4_text": Case(
        ARCH.LLAMA4,
        _llama4,
        {
            "attention_chunk_size": 8192,
            "layer_types": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
    ),
}


def _rope(config: Config) -> Config:
    own = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = config.get("rope_theta")
    kind = own.get("rope_type", own.get("type"))
    return {**own, **({"rope_theta": theta} if theta else {}), **({"rope_type": kind} if kind else {})}


def changed_folder(name: str, place: Path) -> Path:
    """A copy of a folder that says in config.json what its GGUF file means."""
    folder = place / f"{name}-folder"
    shutil.copytree(FOLDERS / name, folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **CASES[name].changes}
    if _rope(config).get("rope_type") == "llama3":
        # Divisors of float32, as a tensor has them.
        config["rope_parameters"] = {
            "rope_type": "longrope",
            "rope_theta": _rope(config)["rope_theta"],
            "short_factor": [float(x) for x in _divisors(config)],
            "long_factor": [float(x) for x in _divisors(config)],
            "attention_factor": 1.0,
            "factor": 1.0,
            "original_max_position_embeddings": config["max_position_embeddings"],
        }
        config.pop("rope_scaling", None)
        config.pop("rope_theta", None)
    path.write_text(json.dumps(config))
    return folder


def _divisors(config: Config) -> Array:
    """What llama 3 divides its frequencies by, as the converter computes it."""
    rope, size = (
        _rope(config),
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
    )
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    length = rope["original_max_position_embeddings"]
    found = []
    for own in 1.0 / rope["rope_theta"] ** (np.arange(0, size, 2) / size):
        turns = length * own / (2 * np.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, np.float32)


def write_gguf(
    name: str,
    path: Path,
    *,
    folder: Path | None = None,
    types: Types | None = None,
    keys: Callable[[gguf.GGUFWriter], None] | None = None,
    split: int = 0,
    change: Callable[[dict[str, Array]], dict[str, Array]] = dict,
) -> None:
    """Write a model's file.

    Parameters
    ----------
    name : str
        A case.
    path : Path
    folder : Path, optional
        Where its weights are in place of the committed folder.
    types : callable, optional
        Which type a tensor has, by its name and values; floats as they are without it.
    keys : callable, optional
        Writes more keys.
    split : int
        Tensors of a file; 0: one file.
    change : callable
        Makes others of the tensors.
    """
    case, source = CASES[name], folder or FOLDERS / name
    config = json.loads((source / "config.json").read_text())
    config |= config.get("text_config", {})
    config |= case.changes if folder is None else {}
    writer = gguf.GGUFWriter(
        path, gguf.MODEL_ARCH_NAMES[case.architecture], split_max_tensors=split, small_first_shard=False
    )
    write_keys(writer, config, case)
    if keys is not None:
        keys(writer)
    for each, values in change(converted(name, config, tensors(source))).items():
        kind = Q.F32 if types is None else types(each, values)
        if types is None and values.dtype.name in ("bfloat16", "float16") and values.ndim > 1:
            kind = Q.BF16 if values.dtype.name == "bfloat16" else Q.F16
        data = gguf.quants.quantize(np.ascontiguousarray(values.astype(np.float32)), kind)
        writer.add_tensor(each, data, raw_dtype=kind)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what has been added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_keys(writer: gguf.GGUFWriter, config: Config, case: Case) -> None:
    """Those of every model, then the architecture's."""
    latent = case.architecture == ARCH.DEEPSEEK2
    writer.add_block_count(config["num_hidden_layers"] + (case.architecture == ARCH.GLM4_MOE))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    if case.architecture != ARCH.LLAMA4:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1 if latent else config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for name, add in (
        (("num_local_experts", "num_experts", "n_routed_experts"), writer.add_expert_count),
        (("num_experts_per_tok",), writer.add_expert_used_count),
        (("n_group",), writer.add_expert_group_count),
        (("topk_group",), writer.add_expert_group_used_count),
    ):
        found = [config[each] for each in name if config.get(each) is not None]
        if found:
            add(found[0])
    if config.get("head_dim") and not latent:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    rope = _rope(config)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if rope.get("rope_theta") is not None:
        writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    case.keys(writer, config)


def converted(name: str, config: Config, found: dict[str, Array]) -> dict[str, Array]:
    """Tensors under llama.cpp's names."""
    case = CASES[name]
    layers = config["num_hidden_layers"] + 1
    names = gguf.get_tensor_name_map(case.architecture, layers)
    stacks: dict[str, dict[int, Array]] = {}
    made: dict[str, Array] = {}
    for each, values in found.items():
        expert = EXPERT.fullmatch(each)
        if expert:
            layer, number, matrix, kind = expert.groups()
            stacks.setdefault(f"blk.{layer}.ffn_{MATRIX[matrix]}_exps.{kind}", {})[int(number)] = values
            continue
        if "deepseek" in name and each.startswith(f"model.layers.{layers - 1}."):
            continue  # the converter leaves out what predicts further tokens
        if ".visual." in each:
            continue
        for own, part in _parts(each.replace("language_model.", ""), values, config, case):
            mapped = names.get_name(own, (".weight", ".bias")) or dense(own)
            assert mapped is not None, own
            made[mapped] = part
    for stack, experts in stacks.items():
        made[stack] = np.stack([experts[number] for number in range(len(experts))])
    rope = _rope(config)
    if rope.get("rope_type") == "llama3":
        made["rope_freqs.weight"] = _divisors(config)
    if rope.get("rope_type") == "longrope":
        made["rope_factors_short.weight"] = np.array(rope["short_factor"], np.float32)
        made["rope_factors_long.weight"] = np.array(rope["long_factor"], np.float32)
    return made


def dense(name: str) -> str | None:
    """The name of a layer without experts, where the architecture's own table has none."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.(weight|bias)", name)
    return found and "blk.{}.ffn_{}.{}".format(*found.groups())


def _parts(name: str, values: Array, config: Config, case: Case) -> list[tuple[str, Array]]:
    """What the converter makes of one tensor, under names that it maps."""
    base, _, kind = name.rpartition(".")
    if case.turned and base.endswith(("q_proj", "k_proj")):
        heads = config["num_attention_heads" if base.endswith("q_proj") else "num_key_value_heads"]
        pairs = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return [(name, pairs.swapaxes(1, 2).reshape(values.shape))]
    if name.endswith("sinks"):
        return [(f"{name}.weight", values)]
    if name.endswith("e_score_correction_bias"):
        return [(name.replace("_correction_bias", "_correction.bias"), values.reshape(-1))]
    if name.endswith("shared_expert_gate.weight"):
        return [(name, values.reshape(-1))]
    if base.endswith("kv_b_proj"):
        own, width = config["qk_nope_head_dim"], config["v_head_dim"]
        heads = values.reshape(config["num_attention_heads"], own + width, values.shape[1])
        keys = heads[:, :own].swapaxes(1, 2)
        return [(name.replace("kv_b", "k_b"), keys), (name.replace("kv_b", "v_b"), heads[:, own:])]
    if base.endswith("input_linear"):
        half = values.shape[-2] // 2
        return _pair(base, values[..., :half, :], values[..., half:, :])
    if name.endswith("experts.gate_up_proj"):
        up = values if case.architecture == ARCH.QWEN3VLMOE else values.swapaxes(1, 2)
        half = up.shape[1] // 2
        if case.architecture == ARCH.GPT_OSS:
            return _pair(base, up[:, ::2], up[:, 1::2])
        return _pair(base, up[:, :half], up[:, half:])
    if name.endswith("experts.gate_up_proj_bias"):
        return [
            (f"{base}.gate_proj.bias", values[:, ::2]),
            (f"{base}.up_proj.bias", values[:, 1::2]),
        ]
    if name.endswith("experts.down_proj"):
        down = values if case.architecture == ARCH.QWEN3VLMOE else values.swapaxes(1, 2)
        return [(f"{name}.weight", down)]
    if name.endswith("experts.down_proj_bias"):
        return [(f"{base}.down_proj.bias", values)]
    return [(name, values)]


def _pair(base: str, gate: Array, up: Array) -> list[tuple[str, Array]]:
    """Gate and up, under names that the package maps."""
    layer = base.split(".")[2]
    if base.endswith("shared_mlp.input_linear"):
        place = f"model.layers.{layer}.mlp.shared_experts"
    else:
        place = f"model.layers.{layer}.mlp.experts"
    return [(f"{place}.gate_proj.weight", gate), (f"{place}.up_proj.weight", up)]


def with_gate_and_up_fused(found: dict[str, Array]) -> dict[str, Array]:
    """A file's tensors, with gate and up of the experts in one stack."""
    made = {}
    for each, values in found.items():
        if each.endswith("ffn_gate_exps.weight"):
            up = found[each.replace("gate_exps", "up_exps")]
            made[each.replace("gate_exps", "gate_up_exps")] = np.concatenate([values, up], 1)
        elif not each.endswith("ffn_up_exps.weight"):
            made[each] = values
    return made
