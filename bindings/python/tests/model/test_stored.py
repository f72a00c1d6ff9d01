"""Weights kept as files store them: the same numbers to the last bit, and no other copy of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import quantised_folders
from gguf import GGMLQuantizationType as Q
from gguf_models import Array, write_gguf
from safetensors.numpy import load_file, save_file
from wide_models import wide, wide_qwen, write_blocks

import libmoe
from oracle import quantised as q
from oracle.low_bits import E2M1, multiples, unpacked, usable
from oracle.quantised import Quantised
from pretrained_models import logits_of, reference

CT = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}


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


# ---- GGUF


def of_one(kind: Q, name: str, values: Array) -> Q:
    """A type where rows are whole blocks of it, else Q8_0."""
    return kind if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Q.Q8_0


@pytest.mark.parametrize(
    "kind", [Q.Q8_0, Q.Q4_0, Q.Q4_K, Q.Q6_K, Q.IQ4_NL, Q.MXFP4, Q.NVFP4], ids=lambda kind: kind.name
)
def test_blocks_of_one_type(kind: Q, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_blocks("qwen3_moe", path, wide_qwen(tmp_path), partial(of_one, kind))
    assert_stored(path, reference("qwen3_moe")["tokens"])


def medium(name: str, values: Array) -> Q:
    """As llama.cpp's Q4_K_M has it, and other mixtures: parts of fused matrices, and of experts, differ."""
    if values.shape[-1] % 256:
        return Q.Q5_0 if ".1." in name else Q.Q8_0
    if "blk.0" in name:
        return Q.Q6_K if "attn_v" in name or "down" in name or "output" in name else Q.Q4_K
    kinds = {"attn_k": Q.Q5_K, "attn_v": Q.Q8_0, "gate_exps": Q.Q4_K, "up_exps": Q.Q8_0, "down_exps": Q.Q3_K}
    return next((kind for part, kind in kinds.items() if part in name), Q.Q4_K)


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

    def fused(found: dict[str, Array]) -> dict[str, Array]:
        made = {}
        for each, values in found.items():
            if each.endswith("ffn_gate_exps.weight"):
                up = found[each.replace("gate_exps", "up_exps")]
                made[each.replace("gate_exps", "gate_up_exps")] = np.concatenate([values, up], 1)
            elif not each.endswith("ffn_up_exps.weight"):
                made[each] = values
        return made

    def types(name: str, values: Array) -> Q:
        return Q.Q4_0 if "exps" in name else Q.F32

    write_gguf("qwen3_moe", path, folder=folder, types=types, change=fused)
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


# ---- safetensors


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


def test_gpt_oss(tmp_path: Path) -> None:
    """Rows of gate and up in turn."""
    folder, plain = mxfp4_folder(tmp_path)
    assert_stored(folder, reference("gpt_oss")["tokens"], plain)


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
            "layers.0.ffn: one expert's matrices cannot be 'int8_a8' and 'int8': tokens",
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
