"""A model that is saved into a folder where another one was: what is read from there is the new one."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path

import pytest

import libmoe
from pretrained_models import FOLDERS, loaded, logits_of, reference, shards

WHOLE, SHARDED = 0, 20_000


def saved(name: str, folder: Path, shard_size: int) -> libmoe.Model:
    model = libmoe.Model.from_pretrained(FOLDERS / name)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


@pytest.mark.parametrize("before", [WHOLE, SHARDED])
@pytest.mark.parametrize("now", [WHOLE, SHARDED])
def test_weights_and_config_are_those_of_the_new_model(before: int, now: int, tmp_path: Path) -> None:
    saved("mixtral", tmp_path, before)
    assert (len(set(shards(tmp_path).values())) > 1) == (before == SHARDED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the tokenizer, which is mixtral's
        saved("olmoe", tmp_path, now)
    tokens = reference("olmoe")["tokens"]
    again = libmoe.Model.from_pretrained(tmp_path, weight_dtype="f32")
    assert logits_of(again, tokens).tobytes() == logits_of(loaded("olmoe"), tokens).tobytes()
    assert {path.name for path in tmp_path.glob("*.safetensors")} == set(shards(tmp_path).values())
    assert (tmp_path / "model.safetensors.index.json").exists() == (now == SHARDED)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "olmoe"


def test_tokenizer_and_defaults_are_those_of_the_new_model(tmp_path: Path) -> None:
    saved("olmoe", tmp_path, WHOLE)
    for name in ("tokenizer.json", "generation_config.json", "merges.txt", "notes.md"):
        (tmp_path / name).write_text("{}")
    with pytest.warns(UserWarning, match="held another model, of which merges.txt stay beside"):
        saved("mixtral", tmp_path, WHOLE)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDERS / "mixtral" / name).read_bytes()
    assert (tmp_path / "notes.md").read_text() == "{}" == (tmp_path / "merges.txt").read_text()


def test_what_the_user_has_changed_stays_beside_the_same_model(tmp_path: Path) -> None:
    saved("mixtral", tmp_path, WHOLE)
    (tmp_path / "generation_config.json").write_text('{"top_k": 3}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = saved("mixtral", tmp_path, SHARDED)
        model.save_pretrained(tmp_path, dtype="bf16")
    assert (tmp_path / "generation_config.json").read_text() == '{"top_k": 3}'


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    folder, first = tmp_path / "folder", tmp_path / "first"
    saved("olmoe", folder, WHOLE)
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(libmoe.FileError, match="tokenizer.json': Is a directory"):
        saved("mixtral", folder, WHOLE)
    assert not list(folder.glob("*.unfinished"))

    shutil.copytree(FOLDERS / "mixtral", first)
    model = libmoe.Model.from_pretrained(first)
    (first / "tokenizer.json").unlink()
    (first / "tokenizer.json").symlink_to("/proc/self/mem")  # no byte of which can be read at its beginning
    with pytest.raises(libmoe.FileError, match="first/tokenizer.json': Input/output error"):
        model.save_pretrained(tmp_path / "other")
    (first / "config.json").unlink()
    with pytest.raises(libmoe.FileError, match="first/config.json': No such file"):
        copy.copy(model).save_pretrained(tmp_path / "other")
