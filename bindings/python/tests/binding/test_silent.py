"""What would be taken without a word and change nothing: each is refused, with what would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe.cli import main
from libmoe.train.config import mebibytes
from libmoe.train.errors import UserError


def make_layer() -> libmoe.Layer:
    return libmoe.Layer(8, 16, n_experts=4, top_k=2)


def make_model(**options: Any) -> libmoe.Model:
    return libmoe.Model(16, 1, 2, dense_intermediate_size=16, **options)


MADE: dict[str, Callable[[], Any]] = {
    "Layer": make_layer,
    "Model": lambda: make_model(vocabulary_size=10),
    "AdamW": lambda: libmoe.AdamW(make_layer().parameters),
    "SGD": lambda: libmoe.SGD(make_layer().parameters),
    "Context": lambda: libmoe.Context(1),
    "Tape": lambda: make_layer().tape(),
}


@pytest.mark.parametrize("name", MADE)
def test_a_name_that_a_class_has_not(name: str) -> None:
    with pytest.raises(AttributeError, match=f"{name}: unknown names \\['a_name_like_this'\\]"):
        MADE[name]().a_name_like_this = 1


def test_the_name_that_is_meant() -> None:
    optimizer = MADE["AdamW"]()
    with pytest.raises(AttributeError, match="did you mean learning_rate"):
        optimizer.lr = 0.1
    optimizer.learning_rate = 0.1
    assert optimizer.learning_rate == 0.1


def test_classes_of_users_have_names_of_their_own() -> None:
    class Named(libmoe.Layer):
        def __init__(self) -> None:
            super().__init__(8, 16, n_experts=4, top_k=2)
            self.note = "mine"

    assert Named().note == "mine"


def test_an_array_among_the_parameters() -> None:
    layer = make_layer()
    weight = layer.parameters["router.weight"]
    ones: Any = np.ones(weight.data.shape, np.float32)
    with pytest.raises(libmoe.ArgumentTypeError, match=r"\.data\[\.\.\.\] = values, or bind"):
        layer.parameters["router.weight"] = ones
    listed = layer.parameters
    listed["embedding"] = embedding = libmoe.Parameter(ones, name="embedding")  # a list of the user's own
    assert listed["embedding"] is embedding


def test_nothing_to_train() -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="parameters: there is none to train"):
        libmoe.AdamW([])


@pytest.mark.parametrize("token", [-1, 10])
def test_a_prompt_is_checked_when_it_is_given(token: int) -> None:
    model = make_model(vocabulary_size=10)
    with pytest.raises(
        libmoe.InvalidArgumentError, match=f"prompt: {token} is no token of a vocabulary_size of 10"
    ):
        model.generate([1, token], 3)
    with pytest.raises(libmoe.InvalidArgumentError, match=f"prompts: {token} is no token"):
        model.generate_batch(np.array([[1, 2], [token, 2]], np.int32), 3)


def test_a_model_without_tokens_generates_none() -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="no vocabulary, its input are vectors"):
        make_model().generate([1, 2], 3)


def test_a_limit_below_what_a_setting_can_hold() -> None:
    with pytest.raises(UserError, match="memory_limit = '1KB' is less than 1 MiB, the least"):
        mebibytes("1KB")
    assert mebibytes("1.5 MiB") == 1
    assert mebibytes("0B") == 0


def test_options_are_written_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "--out", str(tmp_path / "run")])
    assert left.value.code == 2
    assert "did you mean --output?" in capsys.readouterr().err
