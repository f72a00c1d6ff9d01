"""Models in folders: what is read and written beyond what the committed models of transformers show."""

from __future__ import annotations

import ctypes
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import libmoe
from libmoe._native import abi, fields
from libmoe._native.library import Handle, lib
from libmoe.context import handle_of

Tensors = dict[str, NDArray[Any]]
V, H, INNER, E = 24, 32, 32, 4
TOKENS = np.arange(14, dtype=np.int32).reshape(2, 7) % V

GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": E,
    "num_experts_per_tok": 2,
    "sliding_window": 3,
    "max_position_embeddings": 64,
    "torch_dtype": "float32",
    "rope_theta": 100.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "truncate": False,
    },
}
QWEN3: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": V,
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 8,
    "num_experts": E,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "dtype": "float32",
    "mlp_only_layers": [0],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
}


def random(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (0.2 * generator.standard_normal(shape)).astype(np.float32)


def attention(draw: Any, n: int, bias: bool) -> Tensors:
    layer = f"model.layers.{n}."
    found = {
        layer + f"{name}.weight": 1 + draw(H) for name in ("input_layernorm", "post_attention_layernorm")
    }
    for name, rows, columns in (("q", 32, H), ("k", 16, H), ("v", 16, H), ("o", H, 32)):
        found[f"{layer}self_attn.{name}_proj.weight"] = draw(rows, columns)
        if bias:
            found[f"{layer}self_attn.{name}_proj.bias"] = draw(rows)
    return found


def ends(draw: Any) -> Tensors:
    return {
        "model.embed_tokens.weight": draw(V, H),
        "model.norm.weight": 1 + draw(H),
        "lm_head.weight": draw(V, H),
    }


def gpt_oss(seed: int = 1) -> Tensors:
    """Everything but the experts' matrices."""
    draw = partial(random, np.random.default_rng(seed))
    tensors = ends(draw)
    for n in range(2):
        mlp = f"model.layers.{n}.mlp."
        tensors |= attention(draw, n, bias=True)
        tensors[f"model.layers.{n}.self_attn.sinks"] = draw(4)
        tensors[mlp + "router.weight"], tensors[mlp + "router.bias"] = draw(E, H), draw(E)
        tensors[mlp + "experts.gate_up_proj_bias"] = draw(E, 2 * INNER)
        tensors[mlp + "experts.down_proj_bias"] = draw(E, H)
    return tensors


def qwen3(seed: int = 2) -> Tensors:
    draw = partial(random, np.random.default_rng(seed))
    tensors = ends(draw)
    for n in range(2):
        layer = f"model.layers.{n}."
        tensors |= attention(draw, n, bias=False)
        tensors |= {f"{layer}self_attn.{name}_norm.weight": 1 + draw(8) for name in "qk"}
        places = [(f"{layer}mlp.", INNER)] if n == 0 else [(f"{layer}mlp.experts.{e}.", 8) for e in range(E)]
        for place, width in places:
            tensors[place + "gate_proj.weight"], tensors[place + "up_proj.weight"] = (
                draw(width, H),
                draw(width, H),
            )
            tensors[place + "down_proj.weight"] = draw(H, width)
        if n == 1:
            tensors[layer + "mlp.gate.weight"] = draw(E, H)
    return tensors


def written(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, folder / "model.safetensors")
    return folder


def loaded(folder: Path, **options: Any) -> Handle:
    own = fields.filled(abi.moe_pretrained_options, **options)
    parent = handle_of(None)
    return Handle(
        lib.moe_model_load,
        lib.moe_model_free,
        parent,
        str(folder).encode(),
        ctypes.byref(own),
        keep={"context": parent},
    )


def logits(folder: Path, **options: Any) -> NDArray[np.float32]:
    model = loaded(folder, **options)
    batch, length = TOKENS.shape
    given = fields.filled(abi.moe_model_input, n_sequences=batch, sequence_length=length)
    given.tokens = TOKENS.ctypes.data
    found = np.empty((batch, length, V), np.float32)
    lib.moe_model_forward(model, ctypes.byref(given), None, found.ctypes.data, None, None)
    return found


def test_experts_in_mxfp4_are_their_numbers(tmp_path: Path) -> None:
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    generator = np.random.default_rng(3)
    packed, plain = gpt_oss(), gpt_oss()
    for n in range(2):
        for name, rows, columns in (("gate_up_proj", 2 * INNER, H), ("down_proj", H, INNER)):
            place = f"model.layers.{n}.mlp.experts.{name}"
            blocks = generator.integers(0, 256, (E, rows, columns // 32, 16), np.uint8)
            scales = generator.integers(121, 125, (E, rows, columns // 32), np.uint8)
            packed[place + "_blocks"], packed[place + "_scales"] = blocks, scales
            pairs = np.stack([values[blocks & 15], values[blocks >> 4]], axis=-1)
            numbers = (
                pairs.reshape(E, rows, columns // 32, 32)
                * np.exp2(scales.astype(np.float32) - 127)[..., None]
            )
            plain[place] = numbers.reshape(E, rows, columns).transpose(0, 2, 1).copy()
    quantised = GPT_OSS | {"quantization_config": {"quant_method": "mxfp4"}}
    first = written(tmp_path / "packed", quantised, packed)
    second = written(tmp_path / "plain", GPT_OSS, plain)
    np.testing.assert_array_equal(logits(first, weight_dtype="f32"), logits(second))

    # They are saved as numbers, without the key that says otherwise.
    options = fields.filled(abi.moe_save_options, dtype="f32")
    lib.moe_model_save(
        loaded(first, weight_dtype="f32"), str(tmp_path / "saved").encode(), ctypes.byref(options)
    )
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == GPT_OSS
    again = load_file(tmp_path / "saved" / "model.safetensors")
    assert again.keys() == plain.keys()
    for name, tensor in plain.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_older_and_newer_keys_of_positions_say_the_same(tmp_path: Path) -> None:
    newer = {key: value for key, value in QWEN3.items() if key != "rope_parameters"}
    older = newer | {"rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}
    first = logits(written(tmp_path / "older", older, qwen3()))
    np.testing.assert_array_equal(first, logits(written(tmp_path / "newer", newer, qwen3())))
    assert np.abs(first - logits(written(tmp_path / "other", QWEN3, qwen3()))).max() > 1e-3


def test_experts_that_stay_in_the_files_have_the_same_bits(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", QWEN3, qwen3())
    wanted = logits(folder)
    total = sum(tensor.nbytes for tensor in qwen3().values())
    experts = E * 3 * 8 * H * 4
    half = total - experts + experts // 2
    np.testing.assert_array_equal(logits(folder, inference_only=True, resident_limit=half), wanted)
    np.testing.assert_array_equal(logits(folder, inference_only=True, prepared="f32"), wanted)
    with pytest.raises(libmoe.InvalidArgumentError, match="resident_limit"):
        logits(folder, inference_only=True, resident_limit=total - experts)


def test_a_tied_output_beside_the_embedding_must_be_it(tmp_path: Path) -> None:
    tied = QWEN3 | {"tie_word_embeddings": True}
    tensors = qwen3()
    with pytest.raises(libmoe.InvalidArgumentError, match=r"lm_head\.weight.*tie_word_embeddings"):
        logits(written(tmp_path / "other", tied, tensors))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    both = logits(written(tmp_path / "both", tied, tensors))
    np.testing.assert_array_equal(both, logits(written(tmp_path / "untied", QWEN3, tensors)))
    del tensors["lm_head.weight"]
    np.testing.assert_array_equal(both, logits(written(tmp_path / "one", tied, tensors)))


@pytest.mark.parametrize("most", [0, 4000, 1 << 40])
def test_bfloat16_comes_back_byte_for_byte(tmp_path: Path, most: int) -> None:
    halves = {name: libmoe.to_bfloat16(tensor) for name, tensor in qwen3().items()}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3 | {"dtype": "bfloat16"}))
    libmoe.save(folder / "model.safetensors", halves)
    options = fields.filled(abi.moe_save_options, max_shard_size=most)
    for dtype in ("own", "f32"):
        saved = tmp_path / f"saved-{dtype}"
        model = loaded(folder, weight_dtype=dtype)
        lib.moe_model_save(model, str(saved).encode(), ctypes.byref(options))
        assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
        assert (saved / "model.safetensors").exists() == (most != 4000)
        name = "model.safetensors.index.json" if most == 4000 else "model.safetensors"
        with libmoe.Checkpoint(saved / name) as found:
            assert set(found) == set(halves)
            for each, tensor in halves.items():
                raw = np.ascontiguousarray(found.raw(each))
                assert raw.tobytes() == tensor.tobytes(), each
