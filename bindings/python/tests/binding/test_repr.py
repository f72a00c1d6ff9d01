"""What objects say of themselves: a line or two of what a person looks for, no address, and no array."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal


def make_layer() -> libmoe.Layer:
    return libmoe.Layer(64, 256, 8, 2, score="sigmoid", losses={"switch": 0.01}, seed=5)


def make_model() -> libmoe.Model:
    moe = dict(n_experts=4, top_k=2, intermediate_size=32)
    return libmoe.Model(32, 3, 2, vocabulary_size=16, moe=moe, causal=True)


def filled_tape() -> libmoe.Tape:
    layer = make_layer()
    tape = layer.tape()
    layer.forward(normal(5, 64), tape=tape)
    return tape


def model_output() -> libmoe.ModelOutput:
    ids = np.zeros((2, 5), np.int32)
    return make_model().forward(ids, ids, tape=True, logits=True)


def checkpoint(folder: Path) -> libmoe.Checkpoint:
    libmoe.save(folder / "a.safetensors", {"a": normal(2, 3), "b": normal(4)})
    return libmoe.Checkpoint(folder / "a.safetensors")


def profile() -> libmoe.Profile:
    layer = libmoe.Layer(8, 8, 2, 1, context=(context := libmoe.Context(1)))
    with context.profile() as measured:
        layer(normal(3, 8))
    return measured


def many() -> libmoe.ModelPlan:
    return libmoe.Model(8, 40, 2, vocabulary_size=16, dense_intermediate_size=8).plan(1, 4)


EXPECTED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "layer": (
        lambda _: make_layer(),
        r"Layer\(hidden_size=64, intermediate_size=256, n_experts=8, top_k=2, score='sigmoid', "
        r"losses=\{'switch': 0.01\}, seed=5\)",
    ),
    "hash layer": (
        lambda _: libmoe.Layer(
            4, 8, 4, 1, router="hash", hash_table=np.zeros((9, 1), np.int32), context=libmoe.Context(1)
        ),
        r"Layer\(hidden_size=4, .*router='hash', hash_table=int32 \[9, 1\]\)",
    ),
    "model": (
        lambda _: make_model(),
        r"Model\(hidden_size=32, n_layers=3, n_heads=2, vocabulary_size=16, "
        r"moe=\{'n_experts': 4, 'top_k': 2, 'intermediate_size': 32\}\)",
    ),
    "a model's layer": (
        lambda _: make_model().layers[0],
        r"Layer\(hidden_size=32, intermediate_size=32, .*\)",
    ),
    "encoder layer": (
        lambda _: libmoe.EncoderLayer(64, 4, 256),
        r"EncoderLayer\(hidden_size=64, n_heads=4, intermediate_size=256\)",
    ),
    "context": (lambda _: libmoe.Context(2, "reference"), r"Context\(n_threads=2, matmul='reference'\)"),
    "new tape": (lambda _: make_layer().tape(), r"Tape\(empty\)"),
    "tape": (lambda _: filled_tape(), r"Tape\(of x: float32 \[5, 64\]\)"),
    "model tape": (lambda _: model_output().tape, r"ModelTape\(of 2 sequences of 5\)"),
    "cache": (lambda _: make_model().cache(2, 9), r"Cache\(2 sequences, 0 of 9 tokens each\)"),
    "parameter": (
        lambda _: make_layer().parameters["router.weight"],
        r"Parameter\('router.weight', float32 \[8, 64\]\)",
    ),
    "bfloat16 parameter": (
        lambda _: libmoe.Parameter(np.zeros((2, 3), np.uint16), name="half"),
        r"Parameter\('half', bfloat16 \[2, 3\]\)",
    ),
    "AdamW": (
        lambda _: libmoe.AdamW([libmoe.Parameter(normal(20, 100))], 0.01),
        r"AdamW\(1 parameters of 2,000 elements, learning_rate=0.01\)",
    ),
    "SGD": (lambda _: libmoe.SGD([libmoe.Parameter(normal(5))]), r"SGD\(1 parameters of 5 elements, .*\)"),
    "Muon": (
        lambda _: libmoe.Muon([libmoe.Parameter(normal(5, 4))], 0.02),
        r"Muon\(1 parameters of 20 elements, learning_rate=0.02\)",
    ),
    "clip": (
        lambda _: libmoe.AdaptiveClip(),
        r"AdaptiveClip\(decay=0.97, threshold=2.5, warmup_steps=25; .*\)",
    ),
    "schedule": (
        lambda _: libmoe.Schedule("cosine", 0.5, 2, 10),
        r"Schedule\(kind='cosine', learning_rate=0.5, warmup_steps=2, total_steps=10, .*\)",
    ),
    "statistics": (lambda _: libmoe.Statistics(8), r"Statistics\(n_experts=8\)"),
    "routing": (lambda _: libmoe.Routing(), r"Routing\(\)"),
    "calibration": (
        lambda _: libmoe.Calibration(make_model()),
        r"Calibration\(n_tokens=0, \d+ experts with few\)",
    ),
    "checkpoint": (checkpoint, r"Checkpoint\('.*/a.safetensors', 2 tensors\)"),
    "mapped file": (
        lambda folder: libmoe.MappedFile(folder / "m", 4096),
        r"MappedFile\('.*/m', 4,096 bytes\)",
    ),
    "profile": (lambda _: profile(), r"Profile\(\d+ phases, .* seconds\)"),
    "plan": (
        lambda _: make_layer().plan(100),
        r"Plan\(100 tokens at once, full tape; scratch [\d.]+ \w+ forward, .* in all\)",
    ),
    "model plan": (lambda _: many(), r"ModelPlan\([\d.]+ MiB; of 40 layers 40 keep all\)"),
    "output": (
        lambda _: make_layer().forward(normal(5, 64)),
        r"Output\(y=float32 \[5, 64\], report=Report\(5 tokens to 8 experts: \d to \d each, "
        r"\d experts without, 0 choices dropped; aux_loss=[\d.]+, balance_loss=[\d.]+, .*, switch=[\d.]+\)\)",
    ),
    "model output": (
        lambda _: model_output(),
        r"ModelOutput\(loss=[\d.]+, .*, n_targets=10; 3 of 3 layers with a report; "
        r"logits=float32 \[2, 5, 16\], tape=ModelTape\(of 2 sequences of 5\)\)",
    ),
    "summary": (
        lambda _: libmoe.Statistics(3).read(),
        r"Summary\(0 tokens to 3 experts: 0 to 0 each, 3 experts without, 0 choices dropped; .*\)",
    ),
}


@pytest.mark.parametrize("what", EXPECTED)
def test_repr(what: str, tmp_path: Path) -> None:
    make, expected = EXPECTED[what]
    thing = make(tmp_path)
    text = repr(thing)
    assert re.fullmatch(expected, text), text
    assert "0x" not in text
    assert "array(" not in text
    assert "\n" not in text
    assert len(text) < 250 or "/" in text  # two lines, unless it has a long path
    notebooks = [name for name in dir(thing) if re.fullmatch(r"_repr_\w+_|_ipython_\w+_", name)]
    assert notebooks == []  # they show no more


def test_closed_objects_say_so() -> None:
    for thing in (make_layer(), make_model(), libmoe.Context(1), libmoe.Statistics(3), libmoe.Routing()):
        thing.close()
        assert repr(thing) == f"{type(thing).__name__}(closed)"


def test_every_class_says_what_it_is() -> None:
    """Of those that the package gives away; exceptions and dicts have words of their own."""
    kinds = [kind for kind in vars(libmoe).values() if isinstance(kind, type)]
    ours = [kind for kind in kinds if not issubclass(kind, (BaseException, dict))]
    assert libmoe.Layer in ours
    assert [kind for kind in ours if kind.__repr__ is object.__repr__] == []


def test_a_report_tells_what_the_router_did() -> None:
    """Counted by hand: a hash table sends the five tokens to experts 0, 0, 0, 2 and 2."""
    table = np.array([[0], [2]], np.int32)
    layer = libmoe.Layer(4, 8, 4, 1, router="hash", hash_table=table, balance_coef=0.0, z_coef=0.0)
    report = layer.forward(normal(5, 4), token_ids=np.array([0, 0, 0, 1, 1])).report
    assert repr(report).startswith(
        "Report(5 tokens to 4 experts: 0 to 3 each, 2 experts without, 0 choices dropped;"
    )
    assert f"aux_loss={report.aux_loss:.4g}, " in repr(report)
    dropping = libmoe.Layer(
        4, 8, 4, 1, router="hash", hash_table=table, capacity_formula="constant", capacity=1
    )
    dropped = dropping.forward(normal(5, 4), token_ids=np.array([0, 0, 0, 1, 1])).report
    assert "0 to 1 each, 2 experts without, 3 choices dropped" in repr(dropped)


def test_what_is_large_is_told_briefly() -> None:
    layer = libmoe.Layer(8, 8, 64, 2, losses=dict.fromkeys(typing.get_args(libmoe.words.Loss)[:6], 0.0))
    assert len(repr(layer.forward(normal(200_000, 8)))) < 300
    model = libmoe.Model(8, 30, 2, vocabulary_size=16, moe=dict(n_experts=4, top_k=2, intermediate_size=8))
    assert len(repr(model.forward(np.zeros((1, 4), np.int32)))) < 250
