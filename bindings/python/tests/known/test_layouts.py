"""Layers in the layouts of known models: files that transformers wrote, and files built here with numpy."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isfunction
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import libmoe
from arrays import normal
from comparison import assert_close
from small_models import (
    BLOCKS,
    FOLDER,
    LONGCAT,
    MODELS,
    SIZES,
    UNGROUPED,
    WIDTH,
    E,
    H,
    K,
    as_saved,
    beginning_of,
    layout_of,
    make,
    of_layer_1,
    read_of,
    same,
)


@pytest.mark.parametrize("model", MODELS)
def test_transformers_checkpoints_compute_the_same(model: str, tmp_path: Path) -> None:
    layer, again = make(model), make(model, seed=1)
    layer.load(FOLDER / f"{model}.safetensors", layout=layout_of(model), layer=1)
    assert_close("y", layer(BLOCKS[f"{model}.x"]), BLOCKS[f"{model}.y"], 1e-5)

    layer.save(tmp_path / "saved", layout=layout_of(model), layer=1)
    expected, ours = as_saved(model), load_file(tmp_path / "saved")
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        assert ours[name].dtype == array.dtype and (ours[name] == array).all(), name
    again.load(tmp_path / "saved", layout=layout_of(model), layer=1)
    same(layer, again)


@pytest.mark.parametrize("model", MODELS)
def test_experts_left_in_the_file_compute_the_same(model: str) -> None:
    path = FOLDER / f"{model}.safetensors"
    loaded, offloaded = make(model), make(model, unallocated="expert_weights", inference_only=True)
    loaded.load(path, layout=layout_of(model), layer=1)
    offloaded.offload(path, layout=layout_of(model), layer=1, resident_limit=1 << 20)
    x = BLOCKS[f"{model}.x"]
    assert (loaded(x) == offloaded(x)).all()


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_of_the_layer_is_needed_or_refused(model: str, tmp_path: Path) -> None:
    layer, tensors = make(model), of_layer_1(model)
    before = layer.state_dict()

    def refused(changed: dict[str, NDArray[Any]], name: str) -> None:
        save_file(changed, tmp_path / "a")
        with pytest.raises(libmoe.InvalidArgumentError) as caught:
            layer.load(tmp_path / "a", layout=layout_of(model), layer=1)
        assert name in str(caught.value), (name, str(caught.value))
        assert all((before[key] == array).all() for key, array in layer.state_dict().items())

    for name in read_of(model):
        refused({key: array for key, array in tensors.items() if key != name}, name)
    unknown = ["zz.weight", "experts.0.zz.weight", "experts.zz", "router.zz"]
    if model == "gemma4":  # whose attention's names begin in the same way
        unknown.remove("zz.weight")
    for name in unknown:
        # What the layer's own names begin with, where other things stand beside them.
        begun = beginning_of(model) + name
        refused({**tensors, begun: normal(3)}, begun)


@pytest.mark.parametrize("model", ["mixtral", "qwen2_moe", "deepseek"])
def test_the_fused_tensors_of_transformers_5(model: str, tmp_path: Path) -> None:
    published, fused = make(model), make(model, seed=1)
    published.load(FOLDER / f"{model}.safetensors", layout=model, layer=1)  # type: ignore[arg-type]
    fused.load(FOLDER / f"{model}-transformers_5.safetensors", layout="transformers_5", layer=1)
    same(published, fused)
    fused.save(tmp_path / "saved", layout="transformers_5", layer=1)
    theirs, ours = load_file(FOLDER / f"{model}-transformers_5.safetensors"), load_file(tmp_path / "saved")
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def test_llama4_with_its_pictures_has_a_longer_prefix(tmp_path: Path) -> None:
    tensors = load_file(FOLDER / "llama4_text.safetensors")
    save_file({f"language_model.{name}": array for name, array in tensors.items()}, tmp_path / "a")
    text, whole = make("llama4_text"), make("llama4_text", seed=1)
    text.load(FOLDER / "llama4_text.safetensors", layout="llama4_text", layer=0)
    whole.load(tmp_path / "a", layout="llama4", layer=0)
    same(text, whole)


# MXFP4, decoded by another hand: the table of values, and ldexp.
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def decoded(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[..., rows, columns / 32, 16] and [..., rows, columns / 32] -> [..., rows, columns]"""
    pairs = np.stack([VALUES[blocks & 15], VALUES[blocks >> 4]], axis=-1).reshape(*blocks.shape[:-1], 32)
    numbers = np.ldexp(pairs, scales.astype(np.int32)[..., None] - 127).astype(np.float32)
    whole: NDArray[np.float32] = numbers.reshape(*blocks.shape[:-2], -1)
    return whole


def test_mxfp4(tmp_path: Path) -> None:
    hidden, inner = 64, 96
    random = np.random.default_rng(3)
    layer = libmoe.Layer(
        **libmoe.presets.gpt_oss(hidden_size=hidden, intermediate_size=inner, n_experts=E, top_k=K)
    )
    base = "model.layers.5.mlp."
    tensors: dict[str, NDArray[Any]] = {
        f"{base}router.weight": normal(E, hidden),
        f"{base}router.bias": normal(E, seed=1),
        f"{base}experts.gate_up_proj_bias": normal(E, 2 * inner, seed=2),
        f"{base}experts.down_proj_bias": normal(E, hidden, seed=3),
    }
    for name, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        tensors[f"{base}experts.{name}_blocks"] = random.integers(
            0, 256, (E, rows, columns // 32, 16), np.uint8
        )
        # From denormal numbers to infinity.
        tensors[f"{base}experts.{name}_scales"] = random.integers(0, 255, (E, rows, columns // 32), np.uint8)
    save_file(tensors, tmp_path / "a")
    with np.errstate(over="ignore"):
        gate_up, down = (
            decoded(tensors[f"{base}experts.{name}_blocks"], tensors[f"{base}experts.{name}_scales"])
            for name in ("gate_up_proj", "down_proj")
        )
    layer.load(tmp_path / "a", layout="gpt_oss_mxfp4", layer=5)
    assert np.isinf(gate_up).any() and (np.abs(gate_up) < 1e-38).any()
    expected = {
        "router.weight": tensors[f"{base}router.weight"],
        "router.bias": tensors[f"{base}router.bias"],
        "experts.gate.weight": gate_up[:, 0::2],
        "experts.up.weight": gate_up[:, 1::2],
        "experts.gate.bias": tensors[f"{base}experts.gate_up_proj_bias"][:, 0::2],
        "experts.up.bias": tensors[f"{base}experts.gate_up_proj_bias"][:, 1::2],
        "experts.down.weight": down,
        "experts.down.bias": tensors[f"{base}experts.down_proj_bias"],
    }
    state = layer.state_dict()
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].tobytes() == np.ascontiguousarray(array).tobytes(), name

    with pytest.raises(libmoe.InvalidArgumentError, match="gpt_oss_mxfp4"):
        layer.save(tmp_path / "b", layout="gpt_oss_mxfp4", layer=5)
    fitting = {name: array for name, array in tensors.items() if "gate_up" not in name}
    fitting[f"{base}experts.gate_up_proj_bias"] = normal(E, 2 * WIDTH)
    for part, shape in (("blocks", (E, 2 * WIDTH, 2, 16)), ("scales", (E, 2 * WIDTH, 2))):
        fitting[f"{base}experts.gate_up_proj_{part}"] = np.zeros(shape, np.uint8)
    save_file(fitting, tmp_path / "b")
    narrow = make("gpt_oss", hidden_size=hidden)  # 12 columns of down_proj are no block
    with pytest.raises(libmoe.InvalidArgumentError, match="blocks of 32"):
        narrow.load(tmp_path / "b", layout="gpt_oss_mxfp4", layer=5)
    tensors[f"{base}experts.down_proj_scales"] = tensors[f"{base}experts.down_proj_scales"].astype(np.int32)
    save_file(tensors, tmp_path / "a")
    with pytest.raises(libmoe.InvalidArgumentError, match="down_proj_scales: I32 is not U8"):
        layer.load(tmp_path / "a", layout="gpt_oss_mxfp4", layer=5)


def halves() -> NDArray[np.uint16]:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def test_every_float16_is_exact(tmp_path: Path) -> None:
    layer = libmoe.Layer(256, 4, 256, 1)
    numbers = halves().view(np.float16).reshape(256, 256)
    state = layer.state_dict() | {"router.weight": numbers}
    save_file(state, tmp_path / "a")
    layer.load(tmp_path / "a")
    found, expected = layer.parameters["router.weight"].data, numbers.astype(np.float32)
    numeric = ~np.isnan(expected)
    assert (np.isnan(found) == ~numeric).all()
    assert (found[numeric].view(np.uint32) == expected[numeric].view(np.uint32)).all()


@pytest.mark.parametrize("stored", ["f4", "f2", "bf16"])
@pytest.mark.parametrize("weight_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("layout", ["libmoe", "gpt_oss", "mixtral"])
def test_types_are_converted(stored: str, weight_dtype: Any, layout: Any, tmp_path: Path) -> None:
    """Sizes beyond the library's stretches of 64, 128 and 256 numbers."""
    wide = {"hidden_size": 70, "intermediate_size": 301}
    source = make("gpt_oss" if layout == "gpt_oss" else "mixtral", **wide)
    source.save(tmp_path / "a", layout=layout, layer=2)
    dtype = ml_dtypes.bfloat16 if stored == "bf16" else stored
    save_file(
        {name: array.astype(dtype) for name, array in load_file(tmp_path / "a").items()}, tmp_path / "b"
    )
    layer = make("gpt_oss" if layout == "gpt_oss" else "mixtral", weight_dtype=weight_dtype, seed=9, **wide)
    layer.load(tmp_path / "b", layout=layout, layer=2)
    for name, array in source.state_dict().items():
        expected = array.astype(dtype).astype(np.float32)
        found = layer.state_dict()[name]
        if weight_dtype == "bf16" and array.ndim == 3:
            assert (found == expected.astype(ml_dtypes.bfloat16).view(np.uint16)).all(), name
        else:
            assert (found == expected).all(), name

    layer.save(tmp_path / "c", layout=layout, layer=2, dtype="bf16")
    layer.save(tmp_path / "d", layout=layout, layer=2)
    rounded, exact = load_file(tmp_path / "c"), load_file(tmp_path / "d")
    assert all(array.dtype == np.float32 for array in exact.values())
    assert all((rounded[name] == exact[name].astype(ml_dtypes.bfloat16)).all() for name in exact)
    assert all(array.dtype == ml_dtypes.bfloat16 for array in rounded.values())


def test_any_layer_in_its_own_layout(tmp_path: Path) -> None:
    groups = [
        libmoe.ExpertGroup(n_experts=2, expert_kind="gated", activation="silu", intermediate_size=5),
        libmoe.ExpertGroup(n_experts=2, expert_kind="constant"),
    ]
    options: dict[str, Any] = {"expert_groups": groups, "selection_bias": True, "warmup_steps": 5}
    one, other = (
        libmoe.Layer(H, 0, 4, 2, router_batch_norm=True, noise="learned", seed=seed, **options)
        for seed in (1, 2)
    )
    one.save(tmp_path / "a", layer=3)
    other.load(tmp_path / "a", layer=3)
    same(one, other)
    one.save(tmp_path / "b", dtype="bf16")
    saved = load_file(tmp_path / "b")
    assert saved.keys() == one.state_dict().keys()
    assert {name for name, array in saved.items() if array.dtype == np.float32} == one.buffers.keys()


@pytest.mark.parametrize("number", [None, 3])
def test_what_the_layer_does_not_have_is_not_lost(number: int | None, tmp_path: Path) -> None:
    biased, plain = (libmoe.Layer(H, WIDTH, E, K, router_bias=bias) for bias in (True, False))
    biased.save(tmp_path / "a", layer=number)
    with pytest.raises(libmoe.InvalidArgumentError, match="router.bias: the checkpoint has it"):
        plain.load(tmp_path / "a", layer=number)
    # Tensors of the rest of a model are no parameters of a layer, and layer 30 is not layer 3.
    plain.save(tmp_path / "b", layer=number)
    others = {"embedding": normal(3), "layers.3.seed": normal(1), "layers.30.router.bias": normal(E)}
    save_file({**load_file(tmp_path / "b"), **others}, tmp_path / "c")
    plain.load(tmp_path / "c", layer=number)


def test_buffers_stay_float32(tmp_path: Path) -> None:
    make("deepseek").save(tmp_path / "a", layout="deepseek", layer=0, dtype="bf16")
    found = {name: array.dtype.name for name, array in load_file(tmp_path / "a").items()}
    assert found.pop("model.layers.0.mlp.gate.e_score_correction_bias") == "float32"
    assert set(found.values()) == {"bfloat16"}


Change = Callable[[dict[str, Any]], None]
LAYER = "model.layers.1.mlp."
DAMAGE: dict[str, tuple[Change, str]] = {
    "missing": (
        lambda t: t.pop(f"{LAYER}experts.3.up_proj.weight"),
        "experts.3.up_proj.weight: the checkpoint has no",
    ),
    "shape": (lambda t: t.update({f"{LAYER}gate.weight": normal(E, H + 1)}), "gate.weight: dimension 1 is 9"),
    "rank": (lambda t: t.update({f"{LAYER}gate.weight": normal(E)}), "gate.weight: 1 dimensions"),
    "type": (lambda t: t.update({f"{LAYER}gate.weight": np.zeros((E, H), np.int32)}), "gate.weight: I32"),
    "one more": (
        lambda t: t.update({f"{LAYER}experts.4.gate_proj.weight": normal(WIDTH, H)}),
        "more experts",
    ),
    "unknown bias": (
        lambda t: t.update({f"{LAYER}gate.e_score_correction_bias": normal(E)}),
        "selection_bias",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_does_not_fit_changes_nothing(name: str, tmp_path: Path) -> None:
    change, message = DAMAGE[name]
    layer = make("deepseek", selection_bias=name != "unknown bias")
    tensors = load_file(FOLDER / "deepseek.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "a")
    before = layer.state_dict()
    with pytest.raises(libmoe.InvalidArgumentError, match=message):
        layer.load(tmp_path / "a", layout="deepseek", layer=1)
    assert all((before[key] == array).all() for key, array in layer.state_dict().items())


def test_layouts_that_do_not_go_with_the_layer(tmp_path: Path) -> None:
    def refused(layer: libmoe.Layer, layout: Any, message: str, number: int | None = 0) -> None:
        with pytest.raises(libmoe.InvalidArgumentError, match=message):
            layer.save(tmp_path / "a", layout=layout, layer=number)
        assert list(tmp_path.iterdir()) == []

    refused(make("mixtral", output_bias=True), "mixtral", "output.bias: make the layer without output_bias")
    refused(make("mixtral", selection_bias=True), "mixtral", "router.selection_bias: make the layer without")
    refused(make("switch_encoder"), "mixtral", "experts.gate.weight, the layer does not")
    refused(make("switch_encoder"), "llama4", "experts.gate.weight, the layer does not")
    refused(make("mixtral"), "gpt_oss", "router.bias, the layer does not")
    refused(make("switch_encoder"), "granite_moe", "experts.gate.weight, the layer does not")
    refused(make("deepseek", n_shared_experts=2), "deepseek", "one shared expert")
    refused(make("mixtral"), "mixtral", "give layer= or prefix=", None)
    refused(make("mixtral"), "mixtral", "layer_number", -2)
    refused(make("mixtral"), "guessed", "layout")
    groups = [
        libmoe.ExpertGroup(n_experts=2, expert_kind="gated", activation="silu", intermediate_size=5)
    ] * 2
    refused(libmoe.Layer(H, 0, 4, 2, expert_groups=groups), "mixtral", "expert_groups")


def test_every_layout_is_tested() -> None:
    tested = {*map(layout_of, MODELS), "libmoe", "gpt_oss_mxfp4", "llama4", "transformers_5"}
    tested.add("gguf")  # with the files themselves, model/test_gguf_models.py
    assert tested == set(get_args(libmoe.words.Layout))


def small(preset: str) -> libmoe.Layer:
    """A small layer of a preset, whatever it has."""
    options = getattr(libmoe.presets, preset)(**SIZES)
    if "expert_groups" in options:
        options |= LONGCAT
    if options.get("n_groups"):
        options |= UNGROUPED | {"group_mask": "minus_infinity"}
    if options.get("shared_intermediate_size"):
        options["shared_intermediate_size"] = 6
    return libmoe.Layer(**options)


def test_every_preset_has_a_layout_and_every_layout_a_preset(tmp_path: Path) -> None:
    functions = {name for name, value in vars(libmoe.presets).items() if isfunction(value) and name[0] != "_"}
    assert functions == set(libmoe.presets.LAYOUTS)
    layouts = {layout for found in libmoe.presets.LAYOUTS.values() for layout in found}
    assert layouts == set(get_args(libmoe.words.Layout)) - {"libmoe", "gguf"}
    for preset, found in libmoe.presets.LAYOUTS.items():
        for layout in {*found, "libmoe"} - {"gpt_oss_mxfp4"}:  # which is for loading
            one, other = small(preset), small(preset)
            for number, parameter in enumerate(one.parameters.values()):
                parameter.data[...] = normal(*parameter.data.shape, seed=number)
            one.save(tmp_path / "a", layout=layout, layer=3)
            other.load(tmp_path / "a", layout=layout, layer=3)
            same(one, other)


def test_shards_of_a_model(tmp_path: Path) -> None:
    tensors = load_file(FOLDER / "mixtral.safetensors")
    names = sorted(tensors)
    for shard in range(2):
        save_file({name: tensors[name] for name in names[shard::2]}, tmp_path / f"{shard}.safetensors")
    entries = ", ".join(f'"{name}": "{n % 2}.safetensors"' for n, name in enumerate(names))
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{entries}}}}}')
    one, other = make("mixtral"), make("mixtral", seed=1)
    checkpoint = libmoe.Checkpoint(tmp_path / "model.safetensors.index.json")
    one.load(checkpoint, layout="mixtral", layer=1)
    other.load(FOLDER / "mixtral.safetensors", layout="mixtral", layer=1)
    same(one, other)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", ["mlp", "gated", "linear"])
def test_upcycling(kind: Any, dtype: Any) -> None:
    layer = libmoe.Layer(H, 0 if kind == "linear" else WIDTH, E, K, expert_kind=kind, weight_dtype=dtype)
    names = [name[len("experts.") :] for name in layer.parameters if name.startswith("experts.")]
    shapes = {name: layer.parameters[f"experts.{name}"].data.shape[1:] for name in names}
    dense = {name: normal(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    router = layer.parameters["router.weight"].data.copy()
    layer.upcycle(dense)
    for name, array in dense.items():
        found = layer.parameters[f"experts.{name}"].data
        expected = array if found.dtype == np.float32 else libmoe.to_bfloat16(array)
        assert all((found[e] == expected).all() for e in range(E)), name
    assert (layer.parameters["router.weight"].data == router).all()

    alone = libmoe.Layer(H, 0 if kind == "linear" else WIDTH, 1, 1, expert_kind=kind, weight_dtype=dtype)
    alone.upcycle(dense)
    assert_close("y", layer(normal(20, H)), alone(normal(20, H)), 1e-5)

    before = layer.state_dict()
    first = names[0]
    damaged: list[tuple[dict[str, Any], str]] = [
        ({name: array for name, array in dense.items() if name != first}, first),
        (dense | {"other": normal(3)}, "count"),
        (dense | {first: normal(5, 5, 5)}, first),
    ]
    for wrong, message in damaged:
        with pytest.raises(libmoe.InvalidArgumentError, match=message):
            layer.upcycle(wrong)
    assert all((before[name] == array).all() for name, array in layer.state_dict().items())
