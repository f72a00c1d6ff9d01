"""Models whose weights are kept as files store them, and what they have to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import quantised_folders
from gguf import GGMLQuantizationType as Q
from gguf_models import Array
from safetensors.numpy import load_file, save_file
from wide_models import wide

import libmoe
from oracle import quantised as q
from oracle.low_bits import E2M1
from oracle.quantised import Quantised
from pretrained_models import logits_of


def read(path: Path, **how: Any) -> libmoe.Model:
    return libmoe.Model.from_pretrained(path, **{"weight_dtype": "f32", "inference_only": True, **how})


def released(model: libmoe.Model) -> set[str]:
    """The parameters that have no memory."""
    found = set()
    for name, parameter in model.parameters.items():
        try:
            assert parameter.data.size
        except libmoe.BadStateError:
            found.add(name)
    return found


def assert_stored(
    path: Path, tokens: Array, numbers: Path | None = None, *, packed: bool = True, **how: Any
) -> None:
    """The logits are those of the numbers, which are not in memory; times integers each product is near."""
    plain = read(numbers or path, **how)
    wanted = logits_of(plain, tokens)
    assert np.isfinite(wanted).all()
    stored = read(path, prepared="stored", **how)
    assert logits_of(stored, tokens).tobytes() == wanted.tobytes()
    assert bool(released(stored)) == packed
    found = read(path, prepared="stored_a8", **how).forward(tokens, logits=True, hidden=True)
    assert found.logits is not None and found.hidden is not None
    tied = "output.weight" not in plain.parameters
    head = plain.parameters["embed.weight" if tied else "output.weight"].data
    exact = found.hidden.astype(np.float64) @ head.T.astype(np.float64)
    exact *= (exact * found.logits).sum() / (exact * exact).sum()  # a model may scale its logits
    assert np.linalg.norm(found.logits - exact) < 0.02 * np.linalg.norm(exact)


def of_one(kind: Q, name: str, values: Array) -> Q:
    """A type where rows are whole blocks of it, else Q8_0."""
    return kind if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Q.Q8_0


def medium(name: str, values: Array) -> Q:
    """As llama.cpp's Q4_K_M has it, and other mixtures: parts of fused matrices, and of experts, differ."""
    if values.shape[-1] % 256:
        return Q.Q5_0 if ".1." in name else Q.Q8_0
    if "blk.0" in name:
        return Q.Q6_K if "attn_v" in name or "down" in name or "output" in name else Q.Q4_K
    kinds = {"attn_k": Q.Q5_K, "attn_v": Q.Q8_0, "gate_exps": Q.Q4_K, "up_exps": Q.Q8_0, "down_exps": Q.Q3_K}
    return next((kind for part, kind in kinds.items() if part in name), Q.Q4_K)


CT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}


def groups(group: int, **how: Any) -> Callable[[np.random.Generator, int, int], Quantised]:
    return lambda rng, r, c: q.compressed(rng, r, c, min(group, c), **how)


SCHEMES: dict[str, tuple[dict[str, Any], quantised_folders.Make]] = {
    "int4, bf16": (CT, groups(32)),
    "int4, f16": (CT, groups(64, dtype=np.float16)),
    "int4 of 128, f16": (CT, groups(128, dtype=np.float16)),
    "int4 of 96, f32": (CT, groups(96, dtype=np.float32)),
    "int4 of a row": (CT, groups(1 << 20, dtype=np.float16)),
    "int4 of 128, bf16": (CT, groups(128)),
    "int4 with zero points": (CT, groups(64, zeros=True)),
    "int8 of a row": ({**CT, "format": "int-quantized"}, q.int8),
    "int8 of a row in words": (CT, groups(1 << 20, bits=8)),
    "awq": (AWQ, lambda rng, r, c: q.awq(rng, r, c, 32)),
    "gptq": (GPTQ, lambda rng, r, c: q.gptq(rng, r, c, 32)),
    "gptq without a list": (GPTQ, lambda rng, r, c: q.gptq(rng, r, c, 32, listed=False)),
    "gptq version 2": (
        {**GPTQ, "checkpoint_format": "gptq_v2"},
        lambda rng, r, c: q.gptq(rng, r, c, 32, shift=0),
    ),
    "fp8 blocks": (
        {"quant_method": "fp8", "weight_block_size": [32, 128]},
        lambda rng, r, c: q.fp8(rng, r, c, (32, 128)),
    ),
    "fp8 of a tensor": ({"quant_method": "fp8"}, lambda rng, r, c: q.fp8(rng, r, c, (r, c), "weight_scale")),
    "nvfp4": ({**CT, "format": "nvfp4-pack-quantized"}, q.nvfp4),
    "nvfp4 of modelopt": ({"quant_method": "modelopt"}, lambda rng, r, c: q.nvfp4(rng, r, c, modelopt=True)),
    "mxfp4": ({**CT, "format": "mxfp4-pack-quantized"}, q.mxfp4),
}
# Those that no form has stay numbers.
NUMBERS: dict[str, tuple[dict[str, Any], quantised_folders.Make]] = {
    "int4 of 16": (CT, groups(16)),
    "int4 in an order": (CT, groups(32, ordered=True)),
    "int8 groups": (CT, groups(32, bits=8)),
    "gptq in an order": ({**GPTQ, "desc_act": True}, lambda rng, r, c: q.gptq(rng, r, c, 32, ordered=True)),
    "gptq of 2 bits": ({**GPTQ, "bits": 2}, lambda rng, r, c: q.gptq(rng, r, c, 32, bits=2)),
    "fp8 of a row": (
        {**CT, "format": "float-quantized"},
        lambda rng, r, c: q.fp8(rng, r, c, (1, c), "weight_scale"),
    ),
    "fp8 blocks of 16": (
        {"quant_method": "fp8", "weight_block_size": [16, 128]},
        lambda rng, r, c: q.fp8(rng, r, c, (16, 128)),
    ),
}


def products(name: str) -> bool:
    return "proj" in name or "lm_head" in name


def mxfp4_folder(place: Path) -> tuple[Path, Path]:
    """A gpt-oss as it is published, its experts in MXFP4, and one of their numbers."""
    plain, rng = wide("gpt_oss", place), np.random.default_rng(4)
    folder = place / "mxfp4"
    folder.mkdir()
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    numbers = load_file(plain / "model.safetensors")
    made = {}
    for name, values in numbers.items():
        if not name.endswith("_proj") or values.ndim != 3:
            made[name] = values
            continue
        experts, columns, rows = values.shape
        codes = rng.integers(0, 16, (experts, rows, columns), np.uint8)
        scales = rng.integers(118, 124, (experts, rows, columns // 32), np.uint8)
        made[name + "_blocks"] = (codes[..., ::2] | codes[..., 1::2] << np.uint8(4)).reshape(
            experts, rows, columns // 32, 16
        )
        made[name + "_scales"] = scales
        weights = E2M1[codes] / 2 * np.exp2(scales.astype(np.float32) - 127).repeat(32, -1)
        numbers[name] = np.ascontiguousarray(weights.swapaxes(1, 2).astype(np.float32))
    save_file(made, folder / "model.safetensors")
    save_file(numbers, plain / "model.safetensors")
    return folder, plain
