"""Messages of the library have Python's words: those that its arguments are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe._native import abi
from libmoe._native.wording import in_python

ROOT = Path(__file__).resolve().parents[4]
X = np.zeros((3, 8), np.float32)


def test_every_constant_of_the_headers_has_a_word() -> None:
    """But statuses, which are exceptions here."""
    text = "".join(path.read_text() for path in sorted((ROOT / "include").glob("moe*.h")))
    constants = re.findall(r"^ +(MOE_[A-Z0-9_]+) *= *\d", text, re.M)
    assert len(constants) > 100
    for name in constants:
        if name == "MOE_OK" or name.startswith("MOE_ERROR_"):
            continue
        told = in_python(f"this is not {name}: choose another")
        assert re.fullmatch("this is not ('[a-z0-9_]+'|None|True|False): choose another", told), told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("router = 3 is not MOE_ROUTER_RELU", "router = 'hash' is not 'relu'"),
        ("score = 1 beside router_weights = 5", "score = 'sigmoid' beside router_weights = 'group_softmax'"),
        ("inference_only = 1: there are none", "inference_only = True: there are none"),
        ("expert_bias = 0, router_bias = 2", "expert_bias = None, router_bias = True"),
        ("options.noise is not NULL, but training = 0", "noise is not None, but training = False"),
        ("options.prepared: leave it NONE", "prepared: leave it 'none'"),
        ("options.prepared_parts[2].pattern = *: none", "prepared: the pattern *: none"),
        ("moe_model_parameter lists them", "Model.parameters lists them"),
        ("options.prepared_parts[0].prepared = 2 needs it", "prepared = 'bf16' needs it"),
        ("moe_experts_plan says so", "libmoe.experts_plan says so"),
        ("set it in moe_pretrained_options when", "set it in Model.from_pretrained when"),
        ("make one by moe_model_load, or", "make one by Model.from_pretrained, or"),
        ("kind of MOE_PREPARED_..._A8 or _A16", "kind of form, _a8 or _a16"),
        # What only looks alike stays.
        ("router = 30, n_experts = 3, glu_limit = 1", "router = 30, n_experts = 3, glu_limit = 1"),
        ("kind = 1 of two structs", "kind = 1 of two structs"),
        ("config.json: has no entry", "config.json: has no entry"),
        ("/data/MOE_ROUTER_HASH/x and /data/NULL", "/data/MOE_ROUTER_HASH/x and /data/NULL"),
        ("router = 1.5", "router = 1.5"),
    ],
)  # fmt: skip
def test_words(said: str, told: str) -> None:
    assert in_python(said) == told


CALLS: dict[str, tuple[Any, str]] = {
    "router and score": (
        lambda: libmoe.Layer(8, 16, 4, 2, router="relu", score="sigmoid"),
        "score = 'sigmoid' .*router = 'relu'.*'identity'",
    ),
    "kind": (
        lambda: libmoe.Layer(8, 16, 4, 2, expert_kind="mlp", glu_limit=1.0),
        "expert_kind is not 'gated'",
    ),
    "hash": (lambda: libmoe.Layer(8, 16, 4, 2, vocabulary_size=4), "router is not 'hash'"),
    "noise": (
        lambda: libmoe.Layer(8, 16, 4, 2).forward(X, noise=np.zeros((3, 4), np.float32)),
        "noise is not None, but training = False",
    ),
    "form": (
        lambda: libmoe.Layer(8, 16, 4, 2, inference_only=True).prepare("stored"),
        "set it in Model.from_pretrained when",
    ),
    "config.json": (
        lambda: libmoe.Model(8, 1, 2, dense_intermediate_size=8).save_pretrained("nowhere"),
        "give config, what a config.json has, as a dict",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls(call: str) -> None:
    run, text = CALLS[call]
    with pytest.raises(libmoe.InvalidArgumentError, match=text) as caught:
        run()
    assert not re.search(r"moe_|MOE_|NULL|\b(router|score|training) = \d", str(caught.value))


def test_files_are_named_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "MOE_ROUTER_HASH router = 3 NULL"
    with pytest.raises(libmoe.FileError, match=re.escape(str(path))):
        libmoe.Checkpoint(path)
    assert abi.ROUTER["hash"] == 3
