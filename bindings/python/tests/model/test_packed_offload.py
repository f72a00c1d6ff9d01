"""Experts that stay in original files, and become panels when they are read: as stored, and by patterns."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import quantised_folders
from gguf import GGMLQuantizationType as Q
from stored_models import SCHEMES, medium, mxfp4_folder, of_one, products, read
from wide_models import wide, wide_qwen, write_blocks

import libmoe
from pretrained_models import FOLDERS, logits_of, reference

EXPERTS = "layers.*.ffn.experts.*"


def least_limit(path: Path, **how: Any) -> int:
    """What two experts of each layer take, of the layer that takes most, beside all else as it is packed."""
    limit = 8
    while True:
        try:
            read(path, resident_limit=limit, **how)
            return limit
        except libmoe.InvalidArgumentError as refusal:
            found = int(re.findall(r"\d+", str(refusal))[-1])
            assert found >= limit
            limit = found + (found == limit)


def assert_same_within(path: Path, tokens: Any, prepared: Any, **of_context: Any) -> None:
    """The bits of the model that is packed in memory, with but a few experts of each layer there."""
    with libmoe.Context(**{"n_threads": 2, **of_context}) as context:
        how = {"prepared": prepared, "context": context}
        limit = least_limit(path, **how)
        wanted = logits_of(read(path, **how), tokens)
        limited = read(path, resident_limit=limit, **how)
        for _ in range(2):
            assert logits_of(limited, tokens).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("prepared", ["stored", "stored_a8", "stored_a16"])
@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_K, Q.MXFP4], ids=lambda kind: kind.name)
def test_blocks_of_a_file(kind: Q, prepared: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), partial(of_one, kind))
    assert_same_within(path, reference("qwen3_moe")["tokens"], prepared)


@pytest.mark.parametrize(
    "how", [{"n_threads": 1}, {"instructions": "avx2"}, {"matmul": "reference"}], ids=str
)
def test_however_it_is_computed(how: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), medium)
    assert_same_within(path, reference("qwen3_moe")["tokens"], "stored", **how)


@pytest.mark.parametrize(
    "prepared",
    [
        "stored",
        {"*attention*": "none", "*": "stored"},
        {"layers.1.ffn.*.down.weight": "q6_k", EXPERTS: "q4_k"},
        {"layers.0.*": "int4_a8", "layers.1.*": "int8"},
        {"*attention*": "int8"},  # the experts stay as they are
    ],
    ids=str,
)
def test_mixtures(prepared: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), medium)
    assert_same_within(path, reference("qwen3_moe")["tokens"], prepared)


@pytest.mark.parametrize(
    "prepared", ["stored", {"*.shared.*": "int8", "*.experts.*": "int4_a8"}, {"*.shared.*": "int4"}]
)
def test_shared_experts_are_in_memory(prepared: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("granitemoeshared", path, wide("granitemoeshared", tmp_path), partial(of_one, Q.Q8_0))
    assert_same_within(path, reference("granitemoeshared")["tokens"], prepared)


@pytest.mark.parametrize("scheme", ["awq", "gptq", "int4, bf16", "fp8 blocks", "nvfp4", "int8 of a row"])
def test_quantised_folders(scheme: str, tmp_path: Path) -> None:
    config, make = SCHEMES[scheme]
    packed, _ = quantised_folders.folders(tmp_path, config, make, products, hidden=192, width=96)
    assert_same_within(packed, reference("olmoe")["tokens"], "stored")


def test_gpt_oss(tmp_path: Path) -> None:
    """Gate and up in turn, biases beside them."""
    folder, _ = mxfp4_folder(tmp_path)
    assert_same_within(folder, reference("gpt_oss")["tokens"], "stored")


@pytest.mark.parametrize("prepared", ["f32", "int8", {EXPERTS: "int4_a8"}], ids=str)
@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_numbers_of_a_folder(name: str, prepared: Any) -> None:
    assert_same_within(FOLDERS / name, reference(name)["tokens"], prepared)


def test_what_is_in_memory(tmp_path: Path) -> None:
    """Slots of panels, and nothing of what is packed as numbers."""
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), partial(of_one, Q.Q4_K))
    limit = least_limit(path, prepared="stored")
    found = []
    for how in ({}, {"resident_limit": limit}):
        with libmoe.Context(2) as context:
            model = read(path, prepared="stored", context=context, **how)
            assert model.n_layers == 2
            found.append(context.memory()[0])
    whole, used = found
    expert = 3 * 256 * 256 * 4.625 / 8
    assert used < whole - 2 * 5 * expert  # of 8 experts two, and what reading takes


def test_a_limit_counts_what_is_packed(tmp_path: Path) -> None:
    """A model that fits as it is packed is in memory as a whole; what does not fit is said."""
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), partial(of_one, Q.Q4_K))
    with libmoe.Context(1) as context:
        whole = read(path, prepared="stored", context=context)
        used = context.memory()[0]
        del whole
    info = libmoe.describe_pretrained(path, weight_dtype="f32", inference_only=True)
    assert used < info.parameter_bytes // 4
    with pytest.raises(libmoe.BadStateError, match="not offloaded"):
        _ = read(path, prepared="stored", resident_limit=used).layers[0].offload_statistics
    part = read(path, prepared="stored", resident_limit=used * 3 // 4)
    assert 2 <= part.layers[0].offload_statistics.n_slots < 8
    dense = FOLDERS / "llama"
    info = libmoe.describe_pretrained(dense, weight_dtype="f32", inference_only=True)
    tokens = reference("llama")["tokens"]
    small = read(dense, prepared="int8", resident_limit=info.parameter_bytes // 2)
    assert logits_of(small, tokens).tobytes() == logits_of(read(dense, prepared="int8"), tokens).tobytes()
    for prepared in ("none", "int8"):
        with pytest.raises(libmoe.InvalidArgumentError, match="beside the routed experts take [0-9]+"):
            read(dense, prepared=prepared, resident_limit=info.parameter_bytes // 8)


@pytest.mark.parametrize("form", ["stored", "stored_a8"])
def test_scales_that_are_not_finite_are_named_when_they_are_read(form: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), partial(of_one, Q.Q8_0))
    tensor = next(each for each in gguf.GGUFReader(path).tensors if each.name == "blk.1.ffn_up_exps.weight")
    raw = bytearray(path.read_bytes())
    size = tensor.n_bytes // 8
    for expert in range(8):
        start = int(tensor.data_offset) + expert * size
        raw[start : start + 2] = np.float16("inf").tobytes()
    path.write_bytes(bytes(raw))
    tokens = reference("qwen3_moe")["tokens"]
    limit = least_limit(path, prepared=form)
    model = read(path, prepared=form, resident_limit=limit)
    with pytest.raises(libmoe.NotFiniteError, match="layers.1.*expert [0-7] in the file is not finite"):
        logits_of(model, tokens)


def test_packed_again(tmp_path: Path) -> None:
    """What is packed alone has nothing to be packed from; experts in files have."""
    path, tokens = wide_qwen(tmp_path), reference("qwen3_moe")["tokens"]
    info = libmoe.describe_pretrained(path, weight_dtype="f32", inference_only=True)
    limit = info.parameter_bytes - info.expert_bytes // 4
    model = read(path, prepared={EXPERTS: "f32"}, resident_limit=limit)
    whole = read(path)
    for form in ("int8", "none"):
        model.prepare(form)
        whole.prepare(form)
        assert logits_of(model, tokens).tobytes() == logits_of(whole, tokens).tobytes()
    alone = read(path, prepared="f32", resident_limit=limit)
    with pytest.raises(libmoe.BadStateError, match="kept as it was packed alone"):
        alone.prepare("int8")
    with pytest.raises(libmoe.BadStateError, match="has no memory"):
        alone.save_pretrained(tmp_path / "nowhere")
