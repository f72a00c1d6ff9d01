"""Folders whose config.json has a quantization_config: models of the numbers that weights stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import quantised_folders
from quantised_folders import Make, experts
from safetensors.numpy import load_file, save_file

import libmoe
from oracle import quantised as q
from pretrained_models import FOLDERS, logits_of, reference

CT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 8}

SCHEMES: dict[str, tuple[dict[str, Any], Make]] = {
    "int4 groups": (CT, lambda rng, r, c: q.compressed(rng, r, c, 8)),
    "int4 of groups that are said": (
        {**CT, "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}}}},
        lambda rng, r, c: q.compressed(rng, r, c, 16),
    ),
    "int4 of a row": (CT, lambda rng, r, c: q.compressed(rng, r, c, 0, dtype=np.float32)),
    "int4 with zero points": (CT, lambda rng, r, c: q.compressed(rng, r, c, 8, zeros=True, dtype=np.float16)),
    "int4 in an order": (CT, lambda rng, r, c: q.compressed(rng, r, c, 8, ordered=True)),
    "int8 groups": (CT, lambda rng, r, c: q.compressed(rng, r, c, 8, bits=8, zeros=True)),
    "int8 of a row": ({**CT, "format": "int-quantized"}, q.int8),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"},
        lambda rng, r, c: q.awq(rng, r, c, 8),
    ),
    "gptq": (GPTQ, lambda rng, r, c: q.gptq(rng, r, c, 8)),
    "gptq without a list": (GPTQ, lambda rng, r, c: q.gptq(rng, r, c, 8, listed=False)),
    "gptq in an order": ({**GPTQ, "desc_act": True}, lambda rng, r, c: q.gptq(rng, r, c, 8, ordered=True)),
    "gptq of 8 bits": ({**GPTQ, "bits": 8}, lambda rng, r, c: q.gptq(rng, r, c, 8, bits=8)),
    "gptq of 2 bits": ({**GPTQ, "bits": 2}, lambda rng, r, c: q.gptq(rng, r, c, 8, bits=2)),
    "gptq version 2": (
        {**GPTQ, "checkpoint_format": "gptq_v2"},
        lambda rng, r, c: q.gptq(rng, r, c, 8, shift=0),
    ),
    "fp8 blocks": (
        {"quant_method": "fp8", "weight_block_size": [12, 20]},
        lambda rng, r, c: q.fp8(rng, r, c, (12, 20)),
    ),
    "fp8 of a tensor": ({"quant_method": "fp8"}, lambda rng, r, c: q.fp8(rng, r, c, (r, c), "weight_scale")),
    "fp8 of a row": (
        {**CT, "format": "float-quantized"},
        lambda rng, r, c: q.fp8(rng, r, c, (1, c), "weight_scale"),
    ),
    "nvfp4": ({**CT, "format": "nvfp4-pack-quantized"}, q.nvfp4),
    "nvfp4 of modelopt": ({"quant_method": "modelopt"}, lambda rng, r, c: q.nvfp4(rng, r, c, modelopt=True)),
    "mxfp4": ({**CT, "format": "mxfp4-pack-quantized"}, q.mxfp4),
}


def folders(place: Path, scheme: str, *how: Any, **more: Any) -> tuple[Path, Path]:
    """A folder in a scheme, and one with its numbers."""
    return quantised_folders.folders(place, *SCHEMES[scheme], *how, **more)


def read(folder: Path, **how: Any) -> libmoe.Model:
    return libmoe.Model.from_pretrained(folder, **{"weight_dtype": "f32", **how})


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_weights_are_the_numbers_that_they_stand_for(scheme: str, tmp_path: Path) -> None:
    packed, plain = folders(tmp_path, scheme)
    model, wanted = read(packed), read(plain)
    for name, parameter in wanted.parameters.items():
        assert model.parameters[name].data.tobytes() == parameter.data.tobytes(), name
    tokens = reference("olmoe")["tokens"]
    found = logits_of(model, tokens)
    assert np.isfinite(found).all()
    assert found.tobytes() == logits_of(wanted, tokens).tobytes()


@pytest.mark.parametrize("scheme", ["int4 groups", "awq", "gptq in an order", "fp8 blocks"])
@pytest.mark.parametrize(
    "how",
    [
        {"weight_dtype": "bf16"},
        {"inference_only": True, "prepared": "int8"},
        {"inference_only": True, "prepared": "int4_g64_a8", "weight_dtype": "bf16"},
    ],
)
def test_they_go_the_usual_ways(scheme: str, how: dict[str, Any], tmp_path: Path) -> None:
    packed, plain = folders(tmp_path, scheme, experts)
    tokens = reference("olmoe")["tokens"]
    assert logits_of(read(packed, **how), tokens).tobytes() == logits_of(read(plain, **how), tokens).tobytes()


@pytest.mark.parametrize("scheme", ["int4 with zero points", "awq", "nvfp4", "fp8 blocks"])
def test_experts_stay_in_the_files(scheme: str, tmp_path: Path) -> None:
    packed, plain = folders(tmp_path, scheme)
    info = libmoe.describe_pretrained(packed, weight_dtype="f32", inference_only=True)
    assert info.parameter_bytes == libmoe.describe_pretrained(plain).parameter_bytes
    assert info.dtype == "bf16"
    limit = info.parameter_bytes - info.expert_bytes // 4
    limited = read(packed, inference_only=True, resident_limit=limit)
    tokens = reference("olmoe")["tokens"]
    assert logits_of(limited, tokens).tobytes() == logits_of(read(plain), tokens).tobytes()


def test_what_is_saved_is_quantised_no_longer(tmp_path: Path) -> None:
    packed, plain = folders(tmp_path, "awq")
    read(packed).save_pretrained(tmp_path / "saved", dtype="f32")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    saved, wanted = (
        load_file(tmp_path / "saved" / "model.safetensors"),
        load_file(plain / "model.safetensors"),
    )
    assert saved.keys() == wanted.keys()
    assert all(saved[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_blocks_of_128_without_a_word_in_the_configuration(tmp_path: Path) -> None:
    """DeepSeek-V3's: the last blocks are smaller."""
    rng = np.random.default_rng(0)
    folder, own = tmp_path / "mixtral", "model.layers.0.block_sparse_moe.experts.0.w1."
    shutil.copytree(FOLDERS / "olmoe", folder)
    path = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 200, "head_dim": 8, "intermediate_size": 150, "num_hidden_layers": 1}
    config |= {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    del own
    heads = config["num_attention_heads"] * 8
    keys = config["num_key_value_heads"] * 8
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (80, 200), "model.norm.weight": (200,), "lm_head.weight": (80, 200),
    }  # fmt: skip
    layer = "model.layers.0."
    shapes |= {layer + f"{each}.weight": (200,) for each in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {layer + "self_attn.q_norm.weight": (heads,), layer + "self_attn.k_norm.weight": (keys,)}
    shapes |= {
        layer + "self_attn.q_proj.weight": (heads, 200),
        layer + "self_attn.o_proj.weight": (200, heads),
    }
    shapes |= {layer + f"self_attn.{each}_proj.weight": (keys, 200) for each in "kv"}
    shapes[layer + "mlp.gate.weight"] = (config["num_experts"], 200)
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    wanted = {}
    for e in range(config["num_experts"]):
        for each, shape in (("gate", (150, 200)), ("up", (150, 200)), ("down", (200, 150))):
            made = q.fp8(rng, *shape, (128, 128))
            name = layer + f"mlp.experts.{e}.{each}_proj."
            tensors |= {name + end: values for end, values in made.tensors.items()}
            wanted[each, e] = made.weights
    save_file(tensors, path)
    model = read(folder)
    for (each, e), weights in wanted.items():
        found = model.parameters[f"layers.0.ffn.experts.{each}.weight"].data[e]
        assert found.tobytes() == weights.tobytes()


# ---- what is wrong


@pytest.mark.parametrize(
    ("scheme", "changed", "says"),
    [
        ("int4 groups", {"weight_scale": lambda t: None}, "q_proj.weight_scale.*weight_packed needs"),
        (
            "int4 groups",
            {"weight_scale": lambda t: t[:, :3].copy()},
            r"weight_scale: \[64, 3\] does not share out",
        ),
        (
            "int4 groups",
            {"weight_scale": lambda t: t[:5].copy()},
            r"weight_scale: \[5, 8\] does not share out",
        ),
        ("int4 groups", {"weight_scale": lambda t: t.astype(np.int32)}, "weight_scale: I32 is not"),
        ("int4 groups", {"weight_shape": lambda t: np.array([64, 63], np.int64)}, "64 by 63 weights"),
        ("int4 groups", {"weight_shape": lambda t: np.array([64, 1 << 40], np.int64)}, "weight_shape: 64 by"),
        ("int4 groups", {"weight_shape": lambda t: np.array([-1, 64], np.int64)}, "weight_shape: -1 by 64"),
        ("int4 groups", {"weight_shape": lambda t: t[:1].copy()}, r"weight_shape: I64 of \[1\]"),
        ("int4 groups", {"weight_packed": lambda t: t[:, :3].copy()}, "q_proj.weight_packed|weight_shape"),
        ("int4 groups", {"weight_packed": lambda t: t.astype(np.int64)}, "weight_packed: I64 is not I32"),
        ("int4 groups", {"weight_packed": lambda t: t.ravel()}, "1 dimensions"),
        ("int4 groups", {"weight": lambda t: np.zeros((64, 64), np.float32)}, "twice"),
        ("int4 groups", {"weight_g_idx": lambda t: np.full(64, 8, np.int32)}, "input 0 is of group 8"),
        ("int4 groups", {"weight_g_idx": lambda t: np.full(64, -1, np.int32)}, "input 0 is of group -1"),
        ("int4 with zero points", {"weight_zero_point": lambda t: t[:3].copy()}, "weight_zero_point"),
        ("awq", {"qzeros": lambda t: None}, "q_proj.qzeros.*qweight needs"),
        ("awq", {"qzeros": lambda t: t[:3].copy()}, "qzeros"),
        ("awq", {"scales": lambda t: t[:, :40].copy()}, "q_proj.(qzeros|qweight)"),
        ("awq", {"scales": lambda t: t[:0].copy(), "qzeros": lambda t: t[:0].copy()}, "qzeros"),
        ("awq", {"scales": lambda t: t.astype(np.float64)}, "q_proj.scales: F64 is not what scales are"),
        ("gptq", {"g_idx": lambda t: t + 8}, "input 0 is of group 8, but there are 8"),
        ("gptq", {"g_idx": lambda t: t[:60].copy()}, r"g_idx: \[60\]"),
        ("gptq", {"qweight": lambda t: t[:, :63].copy()}, "q_proj.qweight"),
        ("fp8 blocks", {"weight_scale_inv": lambda t: t[:2].copy()}, "weight_scale_inv"),
        ("int4 of groups that are said", {"weight_scale": lambda t: t[:, :2].copy()}, "weight_scale"),
        (
            "gptq",
            {"scales": lambda t: t[:4].copy(), "qzeros": lambda t: t[:4].copy()},
            "4 groups of 64 inputs.*group_size = 8",
        ),
        ("fp8 blocks", {"weight_scale_inv": lambda t: t[None].copy()}, "weight_scale_inv"),
        ("fp8 blocks", {"weight_scale_inv": lambda t: None}, "q_proj.weight: F8_E4M3 is none of"),
        ("nvfp4", {"weight_global_scale": lambda t: np.zeros(1, np.float32)}, "weight_global_scale"),
        ("nvfp4", {"weight_global_scale": lambda t: np.ones(2, np.float32)}, "weight_global_scale"),
        ("nvfp4", {"weight_scale": lambda t: t[:, :3].copy()}, "weight_scale"),
        ("int8 of a row", {"weight_zero_point": lambda t: np.zeros((64, 1), np.int8)}, "weight_zero_point"),
    ],
)
def test_what_does_not_go_together_is_named(
    scheme: str, changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    packed, _ = folders(tmp_path, scheme, changed=changed)
    for call in (libmoe.describe_pretrained, libmoe.Model.from_pretrained):
        with libmoe.Context(1) as context:
            before = context.memory()[0]
            with pytest.raises(libmoe.InvalidArgumentError, match=says):
                call(packed, context=context)
            assert context.memory()[0] == before


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "bitsandbytes"}, "weights in bitsandbytes are not read"),
        ({"quant_method": "awq", "version": "gemv"}, 'version = "gemv" of awq'),
        ({"quant_method": "awq", "bits": 3}, "bits = 3 of awq"),
        ({"quant_method": "gptq", "bits": 3}, "bits = 3 of gptq"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, 'checkpoint_format = "marlin"'),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, 'format = "marlin-24"'),
        ({}, "an unknown format"),
    ],
)
def test_other_ways_are_refused_by_name(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, "awq")
    path = packed / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    with pytest.raises(libmoe.InvalidArgumentError, match=says):
        libmoe.Model.from_pretrained(packed)


def test_kimi_is_a_deepseek(tmp_path: Path) -> None:
    """With routed experts in 4 bits, groups of 32 and bfloat16 scales."""
    folder, plain = tmp_path / "kimi", tmp_path / "plain"
    shutil.copytree(FOLDERS / "deepseek_v3", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "kimi_k2", "quantization_config": CT, "moe_intermediate_size": 32}
    tensors = {n: t for n, t in load_file(folder / "model.safetensors").items() if ".layers.3." not in n}
    numbers, rng = dict(tensors), np.random.default_rng(2)
    for name in list(tensors):
        if ".shared_experts." in name:
            shape = (32, 32)
            tensors[name] = numbers[name] = rng.normal(0, 0.2, shape).astype(np.float32)
        elif ".experts." in name:
            del tensors[name]
            made = q.compressed(rng, 32, 32, 32)
            tensors |= {f"{name.removesuffix('weight')}{own}": values for own, values in made.tensors.items()}
            numbers[name] = made.weights
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copytree(folder, plain)
    save_file(numbers, plain / "model.safetensors")
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps({**config, "model_type": "deepseek_v3"}))
    tokens = reference("deepseek_v3")["tokens"]
    assert logits_of(read(folder), tokens).tobytes() == logits_of(read(plain), tokens).tobytes()
    assert tensors[next(n for n in tensors if n.endswith("weight_scale"))].dtype == ml_dtypes.bfloat16
