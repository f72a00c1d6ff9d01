"""Folders whose weights are kept as they are stored: quantised ones of every scheme, and gpt-oss's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantised_folders
from safetensors.numpy import load_file, save_file
from stored_models import AWQ, NUMBERS, SCHEMES, assert_stored, mxfp4_folder, products, read, released
from wide_models import wide

import libmoe
from oracle import quantised as q
from oracle.low_bits import multiples, usable
from pretrained_models import logits_of, reference


@pytest.mark.parametrize("scheme", [*SCHEMES, *NUMBERS])
def test_folders(scheme: str, tmp_path: Path) -> None:
    config, make = (SCHEMES | NUMBERS)[scheme]
    packed, plain = quantised_folders.folders(tmp_path, config, make, products, hidden=192, width=96)
    assert_stored(packed, reference("olmoe")["tokens"], plain, packed=scheme in SCHEMES)


@pytest.mark.parametrize("how", [{}, {"instructions": "avx2"}, {"instructions": "base"}], ids=str)
def test_int8_of_a_row_times_integers(how: dict[str, Any], tmp_path: Path) -> None:
    """Numbers of -128 too, which packing does not make."""
    packed, plain = quantised_folders.folders(
        tmp_path, *SCHEMES["int8 of a row"], lambda name: "lm_head" in name, hidden=192, width=96
    )
    tensors = load_file(packed / "model.safetensors")
    numbers, scales = tensors["lm_head.weight"].astype(np.int64), tensors["lm_head.weight_scale"]
    assert (numbers == -128).any()
    with libmoe.Context(**how) as context:
        model = read(packed, prepared="stored_a8", context=context)
        found = model.forward(reference("olmoe")["tokens"], logits=True, hidden=True)
        assert found.logits is not None and found.hidden is not None
    x = found.hidden.reshape(-1, 192)
    step = usable(np.abs(x).max(-1) / np.float32(127))
    sums = multiples(x, step[:, None]) @ numbers.T
    wanted = (step[:, None] * scales[:, 0]) * sums.astype(np.float32)
    np.testing.assert_array_equal(found.logits.reshape(wanted.shape), wanted)


def test_gates_among_queries(tmp_path: Path) -> None:
    """A head's queries and gates are one after the other in the file, and apart in the model."""
    plain, rng = wide("qwen3_5_moe_text", tmp_path), np.random.default_rng(1)
    folder = tmp_path / "packed"
    folder.mkdir()
    config = json.loads((plain / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": AWQ}))
    numbers, made = load_file(plain / "model.safetensors"), {}
    for name, values in list(numbers.items()):
        if "proj" not in name:
            made[name] = values
            continue
        own = q.awq(rng, values.shape[0], values.shape[1], 32)
        made |= {f"{name.removesuffix('weight')}{end}": tensor for end, tensor in own.tensors.items()}
        numbers[name] = own.weights
    save_file(made, folder / "model.safetensors")
    save_file(numbers, plain / "model.safetensors")
    assert_stored(folder, reference("qwen3_5_moe_text")["tokens"], plain)


@pytest.mark.parametrize("scheme", ["int4, bf16", "fp8 blocks", "nvfp4"])
def test_routed_experts_alone(scheme: str, tmp_path: Path) -> None:
    """As Kimi-K2 has it: the rest is what it was, in the weights' own type."""
    packed, plain = quantised_folders.folders(
        tmp_path, *SCHEMES[scheme], quantised_folders.experts, hidden=128, width=64
    )
    assert_stored(packed, reference("olmoe")["tokens"], plain)
    model = read(packed, prepared="stored", weight_dtype="bf16")
    assert released(model) == {
        f"layers.{n}.ffn.experts.{each}.weight" for n in range(2) for each in ("gate", "up", "down")
    }


def test_experts_that_differ_stay_numbers(tmp_path: Path) -> None:
    """Beside an expert in 4 bits another is not: a form is that of all of them."""
    packed, plain = quantised_folders.folders(
        tmp_path, *SCHEMES["awq"], lambda name: ".experts." in name and ".experts.3.up" not in name
    )
    assert_stored(packed, reference("olmoe")["tokens"], plain)
    # Gate and down are blocks, and so up is float32 beside them.
    model = read(packed, prepared="stored")
    assert "layers.0.ffn.experts.up.weight" in released(model)


def test_gpt_oss(tmp_path: Path) -> None:
    """Rows of gate and up in turn."""
    folder, plain = mxfp4_folder(tmp_path)
    assert_stored(folder, reference("gpt_oss")["tokens"], plain)


def test_exponents_of_mxfp4_that_are_no_number(tmp_path: Path) -> None:
    folder, _ = mxfp4_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj_scales"][2, 5, 0] = 255
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(libmoe.NotFiniteError, match="layers.1.*experts.down.weight"):
        read(folder, prepared="stored")


def test_numbers_in_place_of_what_is_stored(tmp_path: Path) -> None:
    packed, plain = quantised_folders.folders(tmp_path, *SCHEMES["gptq"])
    tokens = reference("olmoe")["tokens"]
    model = read(packed, prepared="stored")
    with pytest.raises(libmoe.BadStateError, match="kept as it was packed alone"):
        model.prepare("int8")
    wanted = logits_of(read(plain), tokens).tobytes()
    assert logits_of(model, tokens).tobytes() == wanted
    # Numbers of the caller's take their place again; others are noticed.
    numbers = read(plain)
    for name in sorted(released(model)):
        model.bind(name, numbers.parameters[name].data.copy())
    assert logits_of(model, tokens).tobytes() == wanted
    model.parameters["layers.0.attention.qkv.weight"].data[...] += 1
    with pytest.raises(libmoe.BadStateError, match="qkv.weight has changed"):
        logits_of(model, tokens)
