"""Models in folders: what is read and written beyond what the committed models of transformers show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from stored_models import mxfp4_folder

import libmoe
from pretrained_models import FOLDERS, logits_of, reference, tensors

OLMOE: dict[str, Any] = json.loads((FOLDERS / "olmoe" / "config.json").read_text())
TOKENS = reference("olmoe")["tokens"]
Tensors = dict[str, NDArray[Any]]


def olmoe() -> Tensors:
    return tensors(FOLDERS / "olmoe")


def written(folder: Path, config: dict[str, Any], values: Tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(values, folder / "model.safetensors")
    return folder


def logits(folder: Path, tokens: NDArray[np.int32] = TOKENS, **options: Any) -> NDArray[np.float32]:
    return logits_of(libmoe.Model.from_pretrained(folder, **options), tokens)


def test_experts_in_mxfp4_are_their_numbers(tmp_path: Path) -> None:
    packed, plain = mxfp4_folder(tmp_path)
    model = libmoe.Model.from_pretrained(packed, weight_dtype="f32")
    tokens = reference("gpt_oss")["tokens"]
    np.testing.assert_array_equal(logits_of(model, tokens), logits(plain, tokens))

    # They are saved as numbers, without the key that says otherwise.
    model.save_pretrained(tmp_path / "saved", dtype="f32")
    config = json.loads((plain / "config.json").read_text())
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == config
    again, numbers = (
        load_file(tmp_path / "saved" / "model.safetensors"),
        load_file(plain / "model.safetensors"),
    )
    assert again.keys() == numbers.keys()
    for name, tensor in numbers.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_older_and_newer_keys_of_positions_say_the_same(tmp_path: Path) -> None:
    newer = {key: value for key, value in OLMOE.items() if key != "rope_parameters"}
    older = newer | {"rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}
    first = logits(written(tmp_path / "older", older, olmoe()))
    np.testing.assert_array_equal(first, logits(written(tmp_path / "newer", newer, olmoe())))
    assert np.abs(first - logits(FOLDERS / "olmoe")).max() > 1e-3


def test_a_tied_output_beside_the_embedding_must_be_it(tmp_path: Path) -> None:
    tied, values = OLMOE | {"tie_word_embeddings": True}, olmoe()
    with pytest.raises(libmoe.InvalidArgumentError, match=r"lm_head\.weight.*tie_word_embeddings"):
        logits(written(tmp_path / "other", tied, values))
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    both = logits(written(tmp_path / "both", tied, values))
    np.testing.assert_array_equal(both, logits(written(tmp_path / "untied", OLMOE, values)))
    del values["lm_head.weight"]
    np.testing.assert_array_equal(both, logits(written(tmp_path / "one", tied, values)))


@pytest.mark.parametrize("most", [0, 4000, 1 << 40])
def test_bfloat16_comes_back_byte_for_byte(tmp_path: Path, most: int) -> None:
    halves = {name: libmoe.to_bfloat16(tensor) for name, tensor in olmoe().items()}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(OLMOE | {"dtype": "bfloat16"}))
    libmoe.save(folder / "model.safetensors", halves)
    for dtype in ("own", "f32"):
        saved = tmp_path / f"saved-{dtype}"
        model = libmoe.Model.from_pretrained(folder, weight_dtype=dtype)
        model.save_pretrained(saved, max_shard_size=most)
        assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
        assert (saved / "model.safetensors").exists() == (most != 4000)
        name = "model.safetensors.index.json" if most == 4000 else "model.safetensors"
        with libmoe.Checkpoint(saved / name) as found:
            assert set(found) == set(halves)
            for each, tensor in halves.items():
                raw = np.ascontiguousarray(found.raw(each))
                assert raw.tobytes() == tensor.tobytes(), each
