"""Weights kept as files store them: the same numbers to the last bit, and no other copy of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from gguf_models import Array, with_gate_and_up_fused, write_gguf
from stored_models import assert_stored, medium, of_one, read, released
from wide_models import wide, wide_qwen, write_blocks

import libmoe
from oracle.low_bits import unpacked
from pretrained_models import logits_of, reference

# ---- GGUF


@pytest.mark.parametrize(
    "kind", [Q.Q8_0, Q.Q4_0, Q.Q4_K, Q.Q6_K, Q.IQ4_NL, Q.MXFP4, Q.NVFP4], ids=lambda kind: kind.name
)
def test_blocks_of_one_type(kind: Q, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), partial(of_one, kind))
    assert_stored(path, reference("qwen3_moe")["tokens"])


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"context": {"n_threads": 1}},
        {"context": {"instructions": "avx2"}},
        {"context": {"matmul": "reference"}},
    ],
    ids=str,
)
def test_mixtures(how: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), medium)
    with libmoe.Context(**how.get("context", {})) as context:
        assert_stored(path, reference("qwen3_moe")["tokens"], context=context)


@pytest.mark.parametrize("name", ["llama", "granitemoeshared", "gpt_oss"])
@pytest.mark.parametrize("kind", [Q.Q8_0, Q.MXFP4], ids=lambda kind: kind.name)
def test_rows_in_another_order(name: str, kind: Q, tmp_path: Path) -> None:
    """Heads in pairs, fused and tied matrices, shared experts, dense layers."""
    path = tmp_path / "model.gguf"
    write_blocks(name, path, wide(name, tmp_path), partial(of_one, kind))
    assert_stored(path, reference(name)["tokens"])


def test_gate_and_up_in_one_stack(tmp_path: Path) -> None:
    path, folder = tmp_path / "model.gguf", wide_qwen(tmp_path)

    def types(name: str, values: Array) -> Q:
        return Q.Q4_0 if "exps" in name else Q.F32

    write_gguf("qwen3_moe", path, folder=folder, types=types, change=with_gate_and_up_fused)
    assert_stored(path, reference("qwen3_moe")["tokens"])


@pytest.mark.parametrize(
    ("kind", "form"), [(Q.Q8_0, "int8"), (Q.Q4_0, "int4"), (Q.MXFP4, "mxfp4")], ids=lambda each: str(each)
)
def test_packing_again_makes_the_same(kind: Q, form: Any, tmp_path: Path) -> None:
    """Of blocks that were made of numbers, their numbers make the same ones: times integers too."""
    path = tmp_path / "model.gguf"

    def types(name: str, values: Array) -> Q:
        return Q.F32 if values.ndim == 1 or "_inp" in name else kind

    write_gguf("qwen3_moe", path, folder=wide_qwen(tmp_path), types=types)
    tokens = reference("qwen3_moe")["tokens"]
    for end in ("", "_a8", "_a16"):
        stored, again = read(path, prepared=f"stored{end}"), read(path, prepared=f"{form}{end}")
        assert logits_of(stored, tokens).tobytes() == logits_of(again, tokens).tobytes()


# ---- memory


@pytest.mark.parametrize(("kind", "bits"), [(Q.Q4_K, 4.625), (Q.Q8_0, 8.5)], ids=lambda each: str(each))
def test_there_is_no_copy_in_numbers(kind: Q, bits: float, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks(
        "qwen3_moe",
        path,
        wide_qwen(tmp_path),
        lambda name, values: None if "attn" in name else of_one(kind, name, values),
    )
    experts = 2 * 3 * 8 * 256 * 256
    with libmoe.Context(1) as context:
        before = context.memory()[0]
        model = read(path, prepared="stored", context=context)
        used, most = (each - before for each in context.memory())
        plain = read(path, context=context)
        without = context.memory()[0] - before - used
        saved = without - used
        # The experts' matrices, the head's and the embedding's are packed, all else is as it was.
        packed = experts + 2 * 96 * 256
        assert abs(saved - (4 * (experts + 2 * 80 * 256) - packed * bits / 8)) < 20_000
        # One expert's matrices of each thread come from the file, and a panel's rows.
        assert most - used < 300_000 < experts // 8
        del model, plain


# ---- parts


def test_parts_by_patterns(tmp_path: Path) -> None:
    folder = wide_qwen(tmp_path)
    tokens = reference("qwen3_moe")["tokens"]
    whole = {form: logits_of(read(folder, prepared=form), tokens) for form in ("int8", "int4_a8")}
    found = read(folder, prepared={"*": "int8"})
    assert logits_of(found, tokens).tobytes() == whole["int8"].tobytes()
    found = read(folder, prepared={"layers.*": "int4_a8", "*.weight": "int4_a8"})
    assert logits_of(found, tokens).tobytes() == whole["int4_a8"].tobytes()
    mixed = read(
        folder,
        prepared={"layers.1.ffn.*.down.weight": "q6_k", "layers.*.ffn.*": "q4_k", "*.output.weight": "none"},
    )
    assert released(mixed) == {
        f"layers.{n}.ffn.experts.{each}.weight" for n in range(2) for each in ("gate", "up", "down")
    }
    # The same numbers, made by other parts of the same model.
    other = read(folder)
    other.load_state_dict(
        {
            name: kept(each.data, "q6_k" if ".1.ffn" in name and "down" in name else "q4_k")
            if ".experts." in name
            else each.data
            for name, each in other.parameters.items()
        }
    )
    assert logits_of(mixed, tokens).tobytes() == logits_of(other, tokens).tobytes()


def floats(values: Array) -> Array:
    return (values.view(ml_dtypes.bfloat16) if values.dtype == np.uint16 else values).astype(np.float32)


def kept(values: Array, form: str) -> Array:
    return np.stack([unpacked(matrix, form) for matrix in values])


def test_one_matrix_of_an_expert_alone(tmp_path: Path) -> None:
    """The others are float32 beside it, their values what they were."""
    folder = wide_qwen(tmp_path)
    tokens = reference("qwen3_moe")["tokens"]
    for dtype in ("f32", "bf16"):
        found = read(folder, prepared={"*.down.weight": "int8"}, weight_dtype=dtype)
        other = read(folder, weight_dtype=dtype)
        state = {name: floats(each.data) for name, each in other.parameters.items()}
        wanted = read(folder)
        wanted.load_state_dict(
            {
                name: kept(each, "int8") if name.endswith("down.weight") else each
                for name, each in state.items()
            }
        )
        if dtype == "f32":
            assert logits_of(found, tokens).tobytes() == logits_of(wanted, tokens).tobytes()
        else:  # attention is that of bfloat16
            np.testing.assert_allclose(
                logits_of(found, tokens), logits_of(wanted, tokens), rtol=0.1, atol=0.1
            )


def test_patterns_and_stored(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), medium)
    tokens = reference("qwen3_moe")["tokens"]
    wanted = logits_of(read(path), tokens)
    found = read(path, prepared={"*attention*": "none", "*": "stored"})
    assert logits_of(found, tokens).tobytes() == wanted.tobytes()
    assert "layers.0.attention.qkv.weight" not in released(found)
    assert "layers.0.ffn.experts.up.weight" in released(found)


# ---- what is wrong


@pytest.mark.parametrize(
    ("prepared", "says"),
    [
        (
            {"layers.*.fnn.*": "int8"},
            r"prepared: the pattern layers\.\*\.fnn\.\*.*as embed.weight has",
        ),
        ({"*": "int8", "norm.weight": "int8"}, "prepared: the pattern norm.weight: no matrix"),
        ({"embed.weight": "bf16"}, "pattern embed.weight"),
        ({"": "int8"}, "pattern : no matrix"),
        (
            {"*.down.weight": "int8", "*": "int8_a8"},
            "layers.0.ffn.experts.gate.weight and layers.0.ffn.experts.down.weight: one expert's matrices "
            "cannot be 'int8_a8' and 'int8': tokens",
        ),
        ({"*.down.weight": "int8_row_a8", "*": "int8_a8"}, "integers with a scale for a row"),
        ({"*.down.weight": "int4_a16", "*": "int8_a8"}, "bfloat16 beside blocks"),
        ({"*": "int3"}, r"prepared\['\*'\]"),
        ({3: "int8"}, "3 is no pattern"),
    ],
)
def test_parts_that_are_refused(prepared: Any, says: str, tmp_path: Path) -> None:
    folder = wide_qwen(tmp_path)
    with libmoe.Context(1) as context:
        before = context.memory()[0]
        with pytest.raises(libmoe.InvalidArgumentError, match=says):
            read(folder, prepared=prepared, context=context)
        assert context.memory()[0] == before


@pytest.mark.parametrize("form", ["stored", "stored_a8"])
def test_what_is_in_memory_is_not_stored(form: Any) -> None:
    says = f"= '{form}' keeps weights as a file has them.*when the model is loaded"
    layer = libmoe.Layer(32, 32, 4, 2)
    model = libmoe.Model(
        hidden_size=32,
        n_layers=1,
        n_heads=2,
        vocabulary_size=8,
        moe={"n_experts": 2, "top_k": 1, "intermediate_size": 32},
    )
    for owner in (layer, model):
        with pytest.raises(libmoe.InvalidArgumentError, match=says):
            owner.prepare(form)
    weights = libmoe.ExpertWeights(
        up=np.zeros((2, 32, 32), np.float32), down=np.zeros((2, 32, 32), np.float32)
    )
    with pytest.raises(libmoe.InvalidArgumentError, match=says):
        libmoe.PreparedExperts(weights, form)


@pytest.mark.parametrize("place", ["attn_output", "ffn_up_exps"])
def test_scales_that_are_not_finite_are_named(place: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), partial(of_one, Q.Q8_0))
    tensor = next(each for each in gguf.GGUFReader(path).tensors if each.name == f"blk.1.{place}.weight")
    raw = bytearray(path.read_bytes())
    raw[int(tensor.data_offset) : int(tensor.data_offset) + 2] = np.float16("inf").tobytes()
    path.write_bytes(bytes(raw))
    name = "layers.1.attention.output.weight" if "attn" in place else "layers.1.*experts.up.weight"
    with libmoe.Context(1) as context:
        before = context.memory()[0]
        for form in ("stored", "stored_a8"):
            with pytest.raises(libmoe.NotFiniteError, match=f"{name}.*in the file is not finite"):
                read(path, prepared=form, context=context)
        assert context.memory()[0] == before


@pytest.mark.parametrize("name", ["qwen3_moe", "llama"])
def test_saved_and_mapped(name: str, tmp_path: Path) -> None:
    """Mixtures of forms, and the embedding, tied or not."""
    path = tmp_path / "model.gguf"
    if name == "llama":
        write_blocks(name, path, wide(name, tmp_path), partial(of_one, Q.Q8_0))
    else:
        write_blocks(name, path, wide_qwen(tmp_path), medium)
    tokens = reference(name)["tokens"]
    model = read(path, prepared="stored")
    assert "embed.weight" in released(model)
    model.save_pretrained(tmp_path / "saved")
    mapped = libmoe.Model.from_pretrained(tmp_path / "saved", inference_only=True)
    assert released(mapped) == released(model)
    assert logits_of(mapped, tokens).tobytes() == logits_of(read(path), tokens).tobytes()


def test_parts_of_a_matrix_in_files_take_the_same_tokens(tmp_path: Path) -> None:
    path, file = tmp_path / "model.gguf", tmp_path / "saved" / "model.safetensors"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), medium)
    read(path, prepared="stored").save_pretrained(tmp_path / "saved")
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    name = next(each for each in header if each.startswith("layers.1.attention.qkv.weight.packed.q4_k-"))
    header[name.replace("q4_k-", "q4_k_a8-")] = header.pop(name)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(
        libmoe.InvalidArgumentError, match="qkv.weight: rows in .* not multiplied by the same"
    ):
        libmoe.Model.from_pretrained(tmp_path / "saved", inference_only=True)
