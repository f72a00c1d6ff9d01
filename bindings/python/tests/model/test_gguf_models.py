"""Models from GGUF files: the same numbers as from the folders that they were converted from."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf_models import (
    CASES,
    Array,
    changed_folder,
    converted,
    finish,
    with_gate_and_up_fused,
    write_gguf,
    write_keys,
)
from safetensors.numpy import load_file, save_file
from wide_models import random_blocks, wide_qwen

import libmoe
from pretrained_models import FOLDERS, as_transformers, logits_of, reference, tensors


def read(path: Path, **how: Any) -> libmoe.Model:
    return libmoe.Model.from_pretrained(path, **{"weight_dtype": "f32", **how})


@pytest.mark.parametrize("name", list(CASES))
def test_a_file_gives_the_folders_logits(name: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "model.gguf", changed_folder(name, tmp_path)
    write_gguf(name, path)
    tokens = reference(name)["tokens"]
    wanted = logits_of(read(folder), tokens)
    assert logits_of(read(path), tokens).tobytes() == wanted.tobytes()
    info = libmoe.describe_pretrained(path)
    said = json.loads((folder / "config.json").read_text())
    assert info.model_type == said.get("text_config", said)["model_type"]
    assert info.n_parameters == libmoe.describe_pretrained(folder).n_parameters
    assert json.loads(info.config)["model_type"] == info.model_type


@pytest.mark.parametrize("name", ["olmoe", "deepseek_v3", "gpt_oss", "llama", "qwen3_moe"])
def test_what_is_saved_is_the_folder_again(name: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "model.gguf", changed_folder(name, tmp_path)
    write_gguf(name, path)
    read(path).save_pretrained(tmp_path / "saved", dtype="f32")
    saved, was = tensors(tmp_path / "saved"), tensors(folder)
    assert saved.keys() == {each for each in was if ".layers.3." not in each or "deepseek" not in name}
    for each, values in as_transformers(saved).items():
        np.testing.assert_array_equal(values, was[each].astype(np.float32), err_msg=each)
    tokens = reference(name)["tokens"]
    assert logits_of(read(tmp_path / "saved"), tokens).tobytes() == logits_of(read(folder), tokens).tobytes()


def test_split_files_are_one_model(tmp_path: Path) -> None:
    write_gguf("olmoe", tmp_path / "model.gguf")
    write_gguf("olmoe", tmp_path / "part.gguf", split=7)
    parts = sorted(tmp_path.glob("part-*.gguf"))
    assert len(parts) > 2
    tokens = reference("olmoe")["tokens"]
    wanted = logits_of(read(tmp_path / "model.gguf"), tokens)
    assert logits_of(read(parts[0]), tokens).tobytes() == wanted.tobytes()
    with pytest.raises(libmoe.InvalidArgumentError, match="name the first one"):
        read(parts[1])
    parts[-1].unlink()
    with pytest.raises(libmoe.FileError, match="part-0000"):
        read(parts[0])


def test_latent_attention_in_one_matrix(tmp_path: Path) -> None:
    """As files of 2024 have it: keys and values that follow from the latent are not split."""
    path, folder = tmp_path / "model.gguf", changed_folder("deepseek_v3", tmp_path)
    own = tensors(folder)

    def older(found: dict[str, Array]) -> dict[str, Array]:
        whole = {
            each.replace("attn_k_b", "attn_kv_b"): own[
                f"model.layers.{each.split('.')[1]}.self_attn.kv_b_proj.weight"
            ]
            for each in found
            if each.endswith("attn_k_b.weight")
        }
        rest = {
            each: values
            for each, values in found.items()
            if not each.endswith(("_k_b.weight", "_v_b.weight"))
        }
        return rest | whole

    write_gguf("deepseek_v3", path, change=older)
    tokens = reference("deepseek_v3")["tokens"]
    assert logits_of(read(path), tokens).tobytes() == logits_of(read(folder), tokens).tobytes()


def test_gate_and_up_in_one_stack(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"

    write_gguf("olmoe", path, change=with_gate_and_up_fused)
    tokens = reference("olmoe")["tokens"]
    assert logits_of(read(path), tokens).tobytes() == logits_of(read(FOLDERS / "olmoe"), tokens).tobytes()


def test_vectors_may_be_matrices_of_one_row(tmp_path: Path) -> None:
    path, folder = tmp_path / "model.gguf", changed_folder("qwen2_moe", tmp_path)

    def matrices(found: dict[str, Array]) -> dict[str, Array]:
        return {
            each: values[None] if each.endswith("_inp_shexp.weight") else values
            for each, values in found.items()
        }

    write_gguf("qwen2_moe", path, change=matrices)
    tokens = reference("qwen2_moe")["tokens"]
    assert logits_of(read(path), tokens).tobytes() == logits_of(read(folder), tokens).tobytes()


# ---- quantised


MIXED = [Q.Q4_K, Q.Q6_K, Q.Q8_0, Q.Q5_K, Q.Q4_0, Q.IQ4_NL, Q.MXFP4, Q.IQ4_XS, Q.Q2_K, Q.Q3_K, Q.Q5_0, Q.Q5_1]
MIXED += [Q.Q4_1, Q.NVFP4]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file with all types, and the folder of the numbers that the package ``gguf`` makes of it."""
    place = tmp_path_factory.mktemp("quantised")
    source, folder, path = wide_qwen(place), place / "numbers", place / "model.gguf"
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen3moe")
    write_keys(writer, config, CASES["qwen3_moe"])
    rng, numbers, kinds = np.random.default_rng(6), load_file(source / "model.safetensors"), list(MIXED)
    for name, values in converted("qwen3_moe", config, dict(numbers)).items():
        if values.ndim == 1 or "ffn_gate_inp" in name or values.shape[-1] % 256:
            writer.add_tensor(name, values)
            continue
        kind = kinds[0]
        kinds = [*kinds[1:], kind]
        data = random_blocks(rng, kind, values.shape, 0.05)
        writer.add_tensor(name, data, raw_dtype=kind)
        floats = gguf.quants.dequantize(data, kind).reshape(values.shape)
        numbers.update(_back(name, floats))
    finish(writer)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(numbers, folder / "model.safetensors")
    return path, folder


def _back(name: str, values: Array) -> dict[str, Array]:
    """A tensor of the file as the folder has it."""
    if name in ("token_embd.weight", "output.weight"):
        return {"model.embed_tokens.weight" if "embd" in name else "lm_head.weight": values}
    _, layer, own, _ = name.split(".")
    place = f"model.layers.{layer}."
    if own.endswith("_exps"):
        return {place + f"mlp.experts.{e}.{own[4:-5]}_proj.weight": matrix for e, matrix in enumerate(values)}
    return {place + f"self_attn.{own[5]}_proj.weight": values}


@pytest.mark.parametrize("weight_dtype", ["f32", "bf16"])
def test_quantised_weights_are_their_numbers(quantised: tuple[Path, Path], weight_dtype: Any) -> None:
    path, folder = quantised
    tokens = reference("qwen3_moe")["tokens"]
    found = logits_of(read(path, weight_dtype=weight_dtype), tokens)
    assert np.isfinite(found).all()
    assert found.tobytes() == logits_of(read(folder, weight_dtype=weight_dtype), tokens).tobytes()


@pytest.mark.parametrize("prepared", ["int8", "int4_a8"])
def test_quantised_weights_are_packed_again(quantised: tuple[Path, Path], prepared: Any) -> None:
    how: dict[str, Any] = {"inference_only": True, "prepared": prepared}
    tokens = reference("qwen3_moe")["tokens"]
    path, folder = quantised
    assert logits_of(read(path, **how), tokens).tobytes() == logits_of(read(folder, **how), tokens).tobytes()


def test_quantised_experts_stay_in_the_file(quantised: tuple[Path, Path]) -> None:
    path, folder = quantised
    info = libmoe.describe_pretrained(path, weight_dtype="f32", inference_only=True)
    assert info.dtype == "bf16"
    assert info.file_bytes < info.parameter_bytes // 4
    how: dict[str, Any] = {"inference_only": True}
    limited = read(path, resident_limit=info.parameter_bytes - info.expert_bytes // 4, **how)
    tokens = reference("qwen3_moe")["tokens"]
    assert logits_of(limited, tokens).tobytes() == logits_of(read(folder), tokens).tobytes()


def test_experts_of_one_layer_by_themselves(quantised: tuple[Path, Path]) -> None:
    path, folder = quantised
    layer = libmoe.Layer(256, 256, 8, 2, expert_kind="gated", activation="silu", router_bias=False)
    layer.load(path, layout="gguf", layer=1)
    numbers = load_file(folder / "model.safetensors")
    for e in range(8):
        for each in ("gate", "up", "down"):
            wanted = numbers[f"model.layers.1.mlp.experts.{e}.{each}_proj.weight"]
            np.testing.assert_array_equal(layer.parameters[f"experts.{each}.weight"].data[e], wanted)


# ---- what is wrong


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (lambda w: w.add_string("general.type", "adapter"), "general.type = adapter"),
        (lambda w: w.add_uint32("olmoe.attention.clamp_kqv", 8), r"olmoe\.attention\.clamp_kqv.*unknown"),
        (lambda w: w.add_float32("olmoe.rope.scaling.yarn_ext_factor", 0.5), "yarn_ext_factor"),
        (lambda w: w.add_uint32("olmoe.rope.dimension_count", 6), "rope.dimension_count = 6"),
        (lambda w: w.add_uint32("olmoe.attention.value_length", 9), "attention.value_length = 9"),
        (lambda w: w.add_uint32("olmoe.nextn_predict_layers", 9), "block_count = 2, of which 9"),
        (lambda w: w.add_uint32("olmoe.expert_gating_func", 2), "expert_gating_func"),
        (lambda w: w.add_string("olmoe.rope.scaling.type", "odd"), "rope.scaling.type = odd"),
        (lambda w: w.add_float32("olmoe.rope.freq_base", float("nan")), "rope.freq_base"),
    ],
)
def test_keys_that_change_numbers_are_refused(keys: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if "freq_base" in says:
        # The writer takes no key twice.
        write_gguf("olmoe", path)
        raw = bytearray(path.read_bytes())
        at = raw.index(b"olmoe.rope.freq_base") + len("olmoe.rope.freq_base") + 4
        raw[at : at + 4] = np.float32("nan").tobytes()
        path.write_bytes(bytes(raw))
    else:
        write_gguf("olmoe", path, keys=keys)
    with libmoe.Context(1) as context:
        before = context.memory()[0]
        for call in (libmoe.describe_pretrained, libmoe.Model.from_pretrained):
            with pytest.raises(libmoe.InvalidArgumentError, match=says):
                call(path, context=context)
            assert context.memory()[0] == before


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    finish(writer)
    with pytest.raises(libmoe.InvalidArgumentError, match="general.architecture = mamba is not supported"):
        libmoe.Model.from_pretrained(tmp_path / "model.gguf")


def test_what_is_no_gguf_file_or_not_named(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_text("once upon a time")
    (tmp_path / "folder").mkdir()
    write_gguf("olmoe", tmp_path / "folder" / "x.gguf")
    (tmp_path / "bare").mkdir()
    for name, error, says in (
        ("empty.gguf", libmoe.InvalidArgumentError, "does not begin as a GGUF file does.*empty.gguf"),
        ("text.gguf", libmoe.InvalidArgumentError, "does not begin as a GGUF file does.*text.gguf"),
        ("nofile.gguf", libmoe.FileError, "no such file or folder.*nofile.gguf"),
        ("bare", libmoe.FileError, "there is no config.json: name the folder of a model.*bare/config.json"),
        ("folder", libmoe.FileError, "there is no config.json in .*folder': name the file '.*/x.gguf' in it"),
    ):
        for call in (libmoe.describe_pretrained, libmoe.Model.from_pretrained):
            with pytest.raises(error, match=says):
                call(tmp_path / name)


def taken_out(name: str, found: dict[str, Array]) -> dict[str, Array]:
    return {each: values for each, values in found.items() if each != name}


@pytest.mark.parametrize("name", ["olmoe", "deepseek_v3"])
def test_whichever_tensor_is_missing_is_named(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(name, whole)
    for each in libmoe.Checkpoint(whole):
        if each in ("output.weight", "rope_freqs.weight"):
            continue  # without it the embedding is tied
        path = tmp_path / "model.gguf"
        write_gguf(name, path, change=partial(taken_out, each))
        with pytest.raises(libmoe.InvalidArgumentError) as refusal:
            libmoe.describe_pretrained(path)
        layer = ".".join(each.split(".")[:2])
        assert each in str(refusal.value) or layer in str(refusal.value), str(refusal.value)


def test_tensors_that_no_rule_takes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(
        "olmoe", path, keys=lambda w: w.add_tensor("blk.0.attn_gate.weight", np.zeros((4, 4), np.float32))
    )
    with pytest.raises(libmoe.InvalidArgumentError, match="blk.0.attn_gate.weight"):
        libmoe.Model.from_pretrained(path)
