"""pickle and copy: layers and models go along with their values, all else says what to do instead."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "old pickle": lambda thing: pickle.loads(pickle.dumps(thing, 2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
MOE = dict(n_experts=4, top_k=2, intermediate_size=16)
LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "buffers": {"score": "sigmoid", "selection_bias": True, "router_batch_norm": True},
    "hash": {"router": "hash", "hash_table": np.arange(20, dtype=np.int32).reshape(10, 2) % 4},
    "groups": {
        "intermediate_size": 0,
        "expert_groups": [
            libmoe.ExpertGroup(n_experts=3, intermediate_size=8),
            libmoe.ExpertGroup(n_experts=1, expert_kind="zero"),
        ],
    },
    "bf16": {"weight_dtype": "bf16"},
    "f16": {"weight_dtype": "f16"},
    "callbacks": {"context": libmoe.Context(1, log=lambda level, line: None)},
    "inference": {"inference_only": True},
    "no gradients": {"unallocated": "expert_gradients"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind: str, way: str) -> None:
    options = {"hidden_size": 8, "intermediate_size": 16, "n_experts": 4, "top_k": 2, **LAYERS[kind]}
    layer = libmoe.Layer(**options)
    for values in layer.state_dict().values():
        assert values.size
    if kind not in ("bf16", "f16"):
        for parameter in layer.parameters.values():
            parameter.data[...] = normal(*parameter.data.shape)
    for buffer in layer.buffers.values():
        buffer += 0.25
    made = WAYS[way](layer)
    ids: dict[str, Any] = {"token_ids": np.arange(5)} if kind == "hash" else {}
    x = normal(5, 8)
    np.testing.assert_array_equal(made.forward(x, **ids).y, layer.forward(x, **ids).y)
    assert {name: values.tobytes() for name, values in made.state_dict().items()} == {
        name: values.tobytes() for name, values in layer.state_dict().items()
    }
    assert repr(made) == repr(layer)
    next(iter(made.parameters.values())).data[...] = 9  # memory of its own
    assert not (next(iter(layer.parameters.values())).data == 9).any()


@pytest.mark.parametrize("way", WAYS)
def test_models(way: str) -> None:
    model = libmoe.Model(16, 2, 2, vocabulary_size=32, moe=MOE, dense_intermediate_size=8, moe_every=2)
    for parameter in model.parameters.values():
        parameter.data[...] += 0.5
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    made = WAYS[way](model)
    assert made.forward(ids, ids).loss == model.forward(ids, ids).loss
    encoder = libmoe.EncoderLayer(16, 2, 32, norm_first=True, seed=9)
    x = normal(2, 3, 16)
    np.testing.assert_array_equal(WAYS[way](encoder)(x), encoder(x))


class Named(libmoe.Layer):
    """A user's, which is made with other arguments and has more to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(8, 16, 4, 2)
        self.seen = [name]
        self.itself = self


class Wide(libmoe.EncoderLayer):
    def __init__(self) -> None:
        super().__init__(16, 2, 64)
        self.notes = {"wide": True}


@pytest.mark.parametrize("way", WAYS)
def test_classes_that_users_derive(way: str) -> None:
    layer, x = Named("mine"), normal(3, 8)
    layer.parameters["router.weight"].data[...] = normal(4, 8)
    made = WAYS[way](layer)
    assert type(made) is Named and made.name == "mine" and made.seen == ["mine"]
    assert (made.seen is layer.seen) == (way == "copy")
    assert made.itself is (layer if way == "copy" else made)
    np.testing.assert_array_equal(made(x), layer(x))
    wide = WAYS[way](Wide())
    assert type(wide) is Wide and wide.notes == {"wide": True}
    assert repr(wide) == "Wide(hidden_size=16, n_heads=2, intermediate_size=64)"
    assert repr(made).startswith("Named(hidden_size=8, intermediate_size=16, n_experts=4, top_k=2")


def test_what_the_package_itself_puts_there_is_made_anew() -> None:
    model = libmoe.Model(16, 1, 2, vocabulary_size=32, moe=MOE)
    ids = np.zeros((1, 3), np.int32)
    model.forward(ids, ids, tape=True)  # the model's own tape, which cannot be pickled
    for thing in (model, libmoe.Layer(8, 16, 4, 2), libmoe.EncoderLayer(16, 2, 32), model.layers[0]):
        assert vars(thing).keys() <= libmoe.Layer._own
        assert pickle.loads(pickle.dumps(thing)).state_dict().keys() == thing.state_dict().keys()


def test_a_models_layer_becomes_one_of_its_own() -> None:
    model = libmoe.Model(16, 1, 2, vocabulary_size=32, moe=MOE)
    x = normal(3, 16)
    np.testing.assert_array_equal(copy.deepcopy(model.layers[0])(x), model.layers[0](x))


def test_a_table_that_the_caller_changes_afterwards() -> None:
    table = np.zeros((10, 1), np.int32)
    layer = libmoe.Layer(8, 16, 4, 1, router="hash", hash_table=table)
    table[:] = 3
    x, ids = normal(5, 8), np.arange(5)
    y = pickle.loads(pickle.dumps(layer)).forward(x, token_ids=ids).y
    np.testing.assert_array_equal(y, layer.forward(x, token_ids=ids).y)


@pytest.mark.parametrize("way", WAYS)
def test_options_that_the_caller_changes_afterwards(way: str) -> None:
    """And coefficients that are set after the layer was made."""
    losses: dict[libmoe.words.Loss, float] = {"switch": 0.5, "z": 0.25}
    groups = [libmoe.ExpertGroup(n_experts=4, intermediate_size=8)]
    layer = libmoe.Layer(8, 0, 4, 2, expert_groups=groups, losses=losses)
    moe = dict(MOE, losses={"switch": 0.5})
    model = libmoe.Model(16, 2, 2, vocabulary_size=32, moe=moe)
    losses["switch"], groups[0]["intermediate_size"] = 9.0, 16
    moe["n_experts"] = 2
    layer.set_loss_coefficient(1, 0.75)
    model.layers[1].set_loss_coefficient(0, 2.0)
    x, ids = normal(5, 8), np.arange(6, dtype=np.int32).reshape(1, 6)
    report = WAYS[way](layer).forward(x).report
    expected = 0.01 * report.balance_loss + 0.001 * report.z_loss
    expected += 0.5 * report.losses["switch"] + 0.75 * report.losses["z"]
    assert report.aux_loss == pytest.approx(expected, rel=1e-5)
    assert report.aux_loss == layer.forward(x).report.aux_loss
    assert WAYS[way](model).forward(ids, ids).objective == model.forward(ids, ids).objective
    first, second = (each.forward(normal(5, 16)).report for each in WAYS[way](model).layers)
    for found, coefficient in ((first, 0.5), (second, 2.0)):
        own = 0.01 * found.balance_loss + 0.001 * found.z_loss
        assert found.aux_loss == pytest.approx(own + coefficient * found.losses["switch"], rel=1e-5)


def test_a_copy_computes_in_the_same_context_and_trains_by_itself() -> None:
    context = libmoe.Context(1)
    layer = libmoe.Layer(8, 16, 4, 2, context=context)
    before = context.memory()[0]
    made = copy.deepcopy(layer)
    assert context.memory()[0] > before
    tape, x = made.tape(), normal(5, 8)
    made.forward(x, tape=tape)
    made.backward(tape, x)
    libmoe.SGD(made.parameters, 0.1).step()
    assert (made(x) != layer(x)).any()


def test_reports_and_plans_are_data() -> None:
    layer = libmoe.Layer(8, 16, 4, 2)
    output = layer.forward(normal(5, 8))
    for way in WAYS.values():
        np.testing.assert_array_equal(way(output).report.tokens_per_expert, output.report.tokens_per_expert)
        assert way(layer.plan(10)) == layer.plan(10)
        schedule = libmoe.Schedule("cosine", 0.5, 2, 10)
        assert way(schedule) == schedule
        clip = libmoe.AdaptiveClip(warmup_steps=4)
        clip.max_norm(2.0)
        assert way(clip).state_dict() == clip.state_dict()


def refused(folder: Path) -> dict[str, tuple[Any, str]]:
    layer = libmoe.Layer(8, 16, 4, 2)
    model = libmoe.Model(16, 1, 2, vocabulary_size=32, moe=MOE)
    ids = np.zeros((1, 3), np.int32)
    libmoe.save(folder / "c.safetensors", {"a": normal(3)})
    unallocated = libmoe.Layer(8, 16, 4, 2, unallocated="expert_weights")
    bound = libmoe.Layer(8, 16, 4, 2, unallocated=["expert_weights"])
    for name, shape in (
        ("up.weight", (4, 16, 8)),
        ("up.bias", (4, 16)),
        ("down.weight", (4, 8, 16)),
        ("down.bias", (4, 8)),
    ):
        bound.bind(f"experts.{name}", normal(*shape), normal(*shape))
    closed = libmoe.Layer(8, 16, 4, 2)
    closed.close()
    return {
        "Context": (libmoe.Context(1), "in each process: libmoe.Context"),
        "Tape": (layer.tape(), "layer.tape()"),
        "ModelTape": (model.tape(), "model.tape()"),
        "ModelOutput": (model.forward(ids, ids), "output.loss"),
        "AdamW": (libmoe.AdamW(layer.parameters), "libmoe.save_training"),
        "SGD": (libmoe.SGD(layer.parameters), "libmoe.save_training"),
        "Parameter": (layer.parameters["router.weight"], "parameter.data"),
        "Checkpoint": (libmoe.Checkpoint(folder / "c.safetensors"), "libmoe.Checkpoint(path)"),
        "Statistics": (libmoe.Statistics(3), "read()"),
        "Routing": (libmoe.Routing(), "save()"),
        "Cache": (model.cache(1, 5), "model.cache"),
        "Calibration": (libmoe.Calibration(model), "libmoe.calibrate"),
        "MappedFile": (libmoe.MappedFile(folder / "m", 64), "path and size"),
        "Profile": (libmoe.Context(1).profile(), "profile.phases"),
        "unallocated": (unallocated, "files or memory of their own"),
        "bound": (bound, "files or memory of their own"),
        "closed": (closed, "is closed"),
    }


@pytest.mark.parametrize("way", WAYS)
def test_all_else_says_what_to_do(way: str, tmp_path: Path) -> None:
    for name, (thing, cure) in refused(tmp_path).items():
        with pytest.raises(TypeError) as error:
            WAYS[way](thing)
        assert cure in str(error.value), name
        assert isinstance(error.value, libmoe.MoeError)
