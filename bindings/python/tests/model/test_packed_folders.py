"""Models whose weights are packed, written to folders and mapped again."""

from __future__ import annotations

import ctypes
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import libmoe
from libmoe._native import abi, fields
from libmoe._native.library import Handle, lib
from libmoe.context import handle_of
from pretrained_models import FOLDERS, loaded, logits_of, reference

NAMES = ["olmoe", "gpt_oss", "deepseek_v3", "mistral", "qwen2_moe", "llama4_text"]
FORMS: list[Any] = ["f32", "int8", "int4_zero_a8", "mxfp4_a16"]
PACKED = "model.safetensors"


def written(name: str, form: Any, folder: Path) -> libmoe.Model:
    """Return a model that is kept packed alone, once it is in a folder."""
    model = loaded(name, inference_only=True, prepared=form)
    model.save_pretrained(folder)
    return model


def mapped(folder: Path, **options: Any) -> libmoe.Model:
    return libmoe.Model.from_pretrained(folder, inference_only=True, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_mapped_model_has_the_bits_of_the_one_that_was_packed(name: str, form: Any, tmp_path: Path) -> None:
    tokens = reference(name)["tokens"]
    model = written(name, form, tmp_path / "packed")
    again = mapped(tmp_path / "packed")
    assert logits_of(again, tokens).tobytes() == logits_of(model, tokens).tobytes()
    assert again.forward(tokens, tokens).loss == model.forward(tokens, tokens).loss
    prompt = tokens[0, :4].tolist()
    assert list(again.generate(prompt, 6, temperature=0)) == list(model.generate(prompt, 6, temperature=0))
    again.save_pretrained(tmp_path / "twice")
    for file in (PACKED, "config.json"):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / "packed" / file).read_bytes()


def test_others_can_read_what_is_in_the_files(tmp_path: Path) -> None:
    """Rows of bytes, each at a cache line, beside the other parameters; config.json says so."""
    model = written("qwen2_moe", "int8", tmp_path)
    found = load_file(tmp_path / PACKED)
    packed = {name for name in found if name.endswith(".packed.int8")}
    for name, parameter in model.parameters.items():
        if f"{name}.packed.int8" in packed:
            assert found[f"{name}.packed.int8"].dtype == np.uint8
        else:
            np.testing.assert_array_equal(found[name], parameter.data)
    start = 8 + int.from_bytes((tmp_path / PACKED).read_bytes()[:8], "little")
    header = json.loads((tmp_path / PACKED).read_bytes()[8:start])
    assert all((start + header[name]["data_offsets"][0]) % 64 == 0 for name in packed)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "libmoe",
        "format": "panels",
        "dtype": "float32",
    }
    assert config == json.loads((FOLDERS / "qwen2_moe" / "config.json").read_text())


def test_nothing_of_the_panels_is_copied(tmp_path: Path) -> None:
    sizes = {}
    with libmoe.Context(1) as context:
        packed = loaded("olmoe", inference_only=True, prepared="int8", context=context)
        packed.save_pretrained(tmp_path)
        sizes["packed"] = context.memory()[0]
    with libmoe.Context(1) as context:
        model = mapped(tmp_path, context=context)
        sizes["mapped"] = context.memory()[0]
        assert model.n_layers == packed.n_layers
    panels = sum(value.size for name, value in load_file(tmp_path / PACKED).items() if ".packed." in name)
    assert sizes["packed"] - sizes["mapped"] > 0.9 * panels


def test_offloaded_within_a_limit(tmp_path: Path) -> None:
    """Experts' panels come from the file into slots, and change no bit."""
    tokens = reference("qwen2_moe")["tokens"]
    model = written("qwen2_moe", "int4_a8", tmp_path)
    info = libmoe.describe_pretrained(tmp_path)
    limit = info.parameter_bytes - info.expert_bytes // 4
    with libmoe.Context(2) as context:
        limited = mapped(tmp_path, resident_limit=limit, context=context)
        assert logits_of(limited, tokens).tobytes() == logits_of(model, tokens).tobytes()
        with pytest.raises(libmoe.BadStateError, match="packed alone"):
            limited.prepare("int8")
        with pytest.raises(libmoe.BadStateError, match="has no memory"):
            limited.save_pretrained(tmp_path / "again")


def test_what_a_folder_holds_is_known_before_it_is_read(tmp_path: Path) -> None:
    written("gpt_oss", "int4", tmp_path)
    found = libmoe.describe_pretrained(tmp_path)
    whole = libmoe.describe_pretrained(FOLDERS / "gpt_oss")
    assert (found.n_parameters, found.n_active) == (whole.n_parameters, whole.n_active)
    assert found.file_bytes == sum(value.nbytes for value in load_file(tmp_path / PACKED).values())
    assert found.parameter_bytes == found.file_bytes < whole.parameter_bytes


def test_several_files(tmp_path: Path) -> None:
    tokens = reference("olmoe")["tokens"]
    model = loaded("olmoe", inference_only=True, prepared="int8")
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert logits_of(mapped(tmp_path), tokens).tobytes() == logits_of(model, tokens).tobytes()


def test_a_model_may_be_written_over_the_files_that_it_is_mapped_from(tmp_path: Path) -> None:
    tokens = reference("olmoe")["tokens"]
    written("olmoe", "int8", tmp_path)
    model = mapped(tmp_path)
    wanted = logits_of(model, tokens).tobytes()
    model.save_pretrained(tmp_path)
    assert logits_of(model, tokens).tobytes() == wanted == logits_of(mapped(tmp_path), tokens).tobytes()


@pytest.mark.parametrize("options, said", [
    ({"weight_dtype": "bf16"}, "weight_dtype.*packed already"),
    ({"prepared": "int4"}, "prepared.*packed already"),
])  # fmt: skip
def test_packed_weights_stay_as_they_are(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = written("olmoe", "int8", tmp_path)
    with pytest.raises(libmoe.InvalidArgumentError, match=said):
        libmoe.Model.from_pretrained(tmp_path, **{"inference_only": True, **options})
    with pytest.raises(libmoe.InvalidArgumentError, match=r"dtype.*packed"):
        model.save_pretrained(tmp_path, dtype="f32")
    with pytest.raises(libmoe.BadStateError, match="packed alone"):
        mapped(tmp_path).prepare("int8")


MATRIX = "layers.1.attention.output.weight.packed.int8"
EMBED = "embed.weight.packed"


@pytest.mark.parametrize("changes, said", [
    ({MATRIX: None}, "layers.1.attention.output.weight"),
    ({MATRIX: np.zeros(64, np.uint8)}, "bytes of panels"),
    ({MATRIX: np.zeros(320, np.float32)}, "bytes of panels"),
    ({MATRIX: None, MATRIX.replace("int8", "int9"): np.zeros(1280, np.uint8)}, "no form int9"),
    ({"norm.weight": None}, "norm.weight"),
    ({"norm.weight": np.zeros(31, np.float32)}, r"norm.weight: \[31\]"),
    ({"norm.weight": np.zeros(32, np.float16)}, "norm.weight: F16"),
    ({"norm.weight.packed.int8": np.zeros(64, np.uint8)}, "no matrix"),
    # Tokens are not looked up in panels of floats, here of 80 words, filled up to 96, and 32 features.
    ({f"{EMBED}.int8": None, f"{EMBED}.f32": np.zeros(96 * 32 * 4, np.uint8)}, "embed.weight: .*no such"),
    ({"layers.9.norm1.weight": np.zeros(32, np.float32)}, "no such parameter"),
])  # fmt: skip
def test_files_that_do_not_hold_the_model_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    written("olmoe", "int8", tmp_path)
    tensors = {**load_file(tmp_path / PACKED), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, tmp_path / PACKED)
    with pytest.raises(libmoe.InvalidArgumentError, match=said):
        mapped(tmp_path)


def test_a_config_that_speaks_of_another_model_is_refused(tmp_path: Path) -> None:
    written("olmoe", "int8", tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    for keys in (
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 10**6},
        {"hidden_size": 64},
        {"num_experts": 3},
    ):
        folder = tmp_path / str(keys)
        shutil.copytree(tmp_path / "packed", folder)
        (folder / "config.json").write_text(json.dumps({**config, **keys}))
        with pytest.raises(libmoe.InvalidArgumentError):
            mapped(folder)
    quantised = {"quant_method": "libmoe", "format": "rows"}
    (tmp_path / "packed" / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    with pytest.raises(libmoe.InvalidArgumentError, match="must be panels"):
        mapped(tmp_path / "packed")


def test_what_is_mapped_stays_so_when_reading_is_cancelled(tmp_path: Path) -> None:
    """The panels are in use by then; another folder goes into another model."""
    tokens = reference("olmoe")["tokens"]
    wanted = logits_of(written("olmoe", "int8", tmp_path), tokens)
    options = fields.filled(abi.moe_pretrained_options, inference_only=True)
    options.progress = type(options.progress)(lambda _, done, total: int(done > 0))
    parent = handle_of(None)
    place = (parent, str(tmp_path).encode(), ctypes.byref(options))
    opened = Handle(lib.moe_pretrained_open, lib.moe_pretrained_free, *place, keep={"context": parent})
    model = loaded("olmoe", inference_only=True)
    with pytest.raises(libmoe.MoeError, match="cancelled by the progress callback"):
        lib.moe_pretrained_load(opened, model._handle)
    assert logits_of(model, tokens).tobytes() == wanted.tobytes()
    with pytest.raises(libmoe.BadStateError, match="mapped from a folder already"):
        lib.moe_pretrained_load(opened, model._handle)


def test_what_is_packed_has_no_gradients(tmp_path: Path) -> None:
    """A model that has some already is left alone; panels of whole numbers are for inference."""
    written("olmoe", "int8", tmp_path / "few")
    parent = handle_of(None)
    options = fields.filled(abi.moe_pretrained_options)
    place = (parent, str(tmp_path / "few").encode(), ctypes.byref(options))
    opened = Handle(lib.moe_pretrained_open, lib.moe_pretrained_free, *place, keep={"context": parent})
    model = loaded("olmoe")
    before = model.state_dict()
    with pytest.raises(
        libmoe.InvalidArgumentError, match="has gradients of them: make one by Model.from_pretrained"
    ):
        lib.moe_pretrained_load(opened, model._handle)
    assert all(before[name].tobytes() == value.tobytes() for name, value in model.state_dict().items())
    written("olmoe", "f32", tmp_path / "whole")
    with pytest.raises(libmoe.InvalidArgumentError, match="is packed in a form that is for inference"):
        libmoe.Model.from_pretrained(tmp_path / "whole")
