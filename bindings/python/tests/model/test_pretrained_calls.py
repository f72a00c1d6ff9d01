"""Models from folders in use: what is left out or too long, and how wrong paths and values are answered."""

from __future__ import annotations

import codecs
import copy
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import libmoe
from pretrained_models import FOLDERS, loaded, reference, tensors

MIXTRAL = FOLDERS / "mixtral"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(MIXTRAL, tmp_path / "mixtral")
    return tmp_path / "mixtral"


def changed(folder: Path, file: str, **keys: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder


def test_what_is_not_written_is_said(tmp_path: Path) -> None:
    model = loaded("glm4_moe")
    with pytest.warns(UserWarning, match=r"2 of the \d+ tensors in .*glm4_moe.*left out.*model\.layers\.3\."):
        model.save_pretrained(tmp_path / "glm")
    left = tensors(FOLDERS / "glm4_moe").keys() - tensors(tmp_path / "glm").keys()
    assert len(left) == 2 and all(name.startswith("model.layers.3.") for name in left)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded("mixtral").save_pretrained(tmp_path / "all")


def test_a_text_beyond_the_positions_is_warned_of_once() -> None:
    limit = json.loads((FOLDERS / "llama/config.json").read_text())["max_position_embeddings"]
    said = rf"position {limit + 1} is beyond the {limit} that"
    model = loaded("llama")
    short = list(range(3, limit))  # and 3 more are drawn, of which the last is not read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(model.generate(short, 4, temperature=0, end_tokens=()))
    with pytest.warns(RuntimeWarning, match=said):
        list(model.generate(short, 6, temperature=0, end_tokens=()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(model.generate(short, 9, temperature=0, end_tokens=()))
    tokens = reference("llama")["tokens"].ravel()[: limit + 1].reshape(1, -1).copy()
    with pytest.warns(RuntimeWarning, match=said):
        copy.deepcopy(loaded("llama")).forward(tokens)


NO_PATHS: dict[str, tuple[Any, type[Exception], str]] = {
    "None": (None, libmoe.ArgumentTypeError, "path: expected a str or path, got NoneType"),
    "a number": (5, libmoe.ArgumentTypeError, "path: expected a str or path, got int"),
    "character 0": ("a\0b", libmoe.InvalidArgumentError, "contains the character 0"),
    "a file": (
        str(MIXTRAL / "config.json"),
        libmoe.InvalidArgumentError,
        "no.* begin as a GGUF file does.*config.json",
    ),
}


@pytest.mark.parametrize("what", NO_PATHS)
def test_paths_are_answered_alike(what: str) -> None:
    path, error, says = NO_PATHS[what]
    calls: list[Callable[[Any], Any]] = [libmoe.Model.from_pretrained, libmoe.describe_pretrained]
    calls += [] if what == "a file" else [libmoe.Tokenizer, libmoe.Sampling.from_pretrained]
    for call in calls:
        with pytest.raises(error, match=says):
            call(path)


def test_a_path_may_be_bytes_and_need_not_be_utf8(folder: Path, tmp_path: Path) -> None:
    wild = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.rename(folder, wild)
    prompt = loaded("mixtral").tokenizer.encode("the cat")
    for path in (wild, os.fsdecode(wild), Path(os.fsdecode(wild))):
        model = libmoe.Model.from_pretrained(path)  # type: ignore[arg-type]
        assert model.tokenizer.encode("the cat") == prompt
    model.save_pretrained(os.fsencode(tmp_path) + b"/\xfe")  # type: ignore[arg-type]
    assert (tmp_path / os.fsdecode(b"\xfe") / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"hello", "config.json.* is no JSON"),
        (codecs.BOM_UTF8 + b"{}", "config.json.*byte order mark: write it as UTF-8 without"),
    ],
)
def test_a_config_that_is_no_json(folder: Path, text: bytes, says: str) -> None:
    (folder / "config.json").write_bytes(text)
    for call in (libmoe.Model.from_pretrained, libmoe.describe_pretrained):
        with pytest.raises(libmoe.InvalidArgumentError, match=says):
            call(folder)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("eos_token_id", "2", r"generation_config.json.*eos_token_id = \"2\" is not a token's number"),
        ("stop_strings", [""], r"stop_strings = \[\"\"\] is not a text"),
        ("max_new_tokens", -1, "max_new_tokens = -1 is not a number of tokens"),
        ("max_length", "9", 'max_length = "9" is not a number of tokens'),
    ],
)
def test_a_wrong_default_is_named_as_in_the_file(folder: Path, key: str, value: Any, says: str) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match=says):
        libmoe.Sampling.from_pretrained(changed(folder, "generation_config.json", **{key: value}))


def test_defaults_of_length_and_of_several_answers(folder: Path) -> None:
    model = libmoe.Model.from_pretrained(
        changed(folder, "generation_config.json", max_length=9, eos_token_id=None)
    )
    assert len(list(model.generate([5, 6, 7]))) == 6
    assert len(list(model.generate_batch([[5], [5, 6]]))) == 7
    with pytest.raises(libmoe.InvalidArgumentError, match="max_length = 9 .*which has 9 already"):
        model.generate(range(5, 14))
    several = libmoe.Sampling.from_pretrained(
        changed(folder, "generation_config.json", num_return_sequences=3)
    )
    assert several.not_computed == ("num_return_sequences = 3",)


def test_a_family_that_is_not_known_is_answered_in_pythons_words(folder: Path) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="libmoe.pretrained_families lists"):
        libmoe.Model.from_pretrained(changed(folder, "config.json", model_type="unheard_of"))


def test_wrong_arguments_of_generation_are_named() -> None:
    model = loaded("mixtral")
    calls: list[Callable[..., Any]] = [model.generate, model.generate_batch]
    for call in calls:
        with pytest.raises(libmoe.ArgumentTypeError, match="seed: expected an int, got NoneType"):
            call([[1]], 3, seed=None)
        with pytest.raises(libmoe.InvalidArgumentError, match="part_tokens = 0 would read nothing"):
            call([[1]], 3, part_tokens=0)
    with pytest.raises(libmoe.ArgumentTypeError, match="seed: expected an int"):
        model.write("the", 3, seed=None)  # type: ignore[arg-type]
    with pytest.raises(libmoe.ArgumentTypeError, match="did you mean temperature"):
        libmoe.Sampling(temp=1)  # type: ignore[call-arg]


def test_a_loaded_model_says_what_it_is_in_brief() -> None:
    told = repr(loaded("mixtral"))
    assert len(told) < 700 and "'n_experts': 4" in told and "'window': 7" in told
    assert "capacity" not in told and "chunk" not in told
