"""What a checkpoint has for a layer, and the layer or its layout not: refused by name, with the cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import libmoe
from arrays import normal
from small_models import BLOCKS, FOLDER, WIDTH, E, H, K, file_of, make, same

Tensors = dict[str, NDArray[Any]]
MLP = "model.layers.1.mlp."


def load(way: str, into: libmoe.Layer, tensors: Tensors, folder: Path, **place: Any) -> None:
    """Load by each of the ways: a file, an index of two shards, or leaving the experts in the file."""
    if way == "index":
        names = sorted(tensors)
        for shard in range(2):
            save_file({name: tensors[name] for name in names[shard::2]}, folder / f"{shard}.safetensors")
        entries = ", ".join(f'"{name}": "{n % 2}.safetensors"' for n, name in enumerate(names))
        path = folder / "a.safetensors.index.json"
        path.write_text(f'{{"weight_map": {{{entries}}}}}')
    else:
        path = folder / "a.safetensors"
        save_file(tensors, path)
    if way == "offload":
        into.offload(path, resident_limit=1 << 20, **place)
    else:
        into.load(path, **place)


def layer_for(way: str, model: str, **options: Any) -> libmoe.Layer:
    if way == "offload":
        options |= {"unallocated": "expert_weights", "inference_only": True}
    return make(model, **options)


# The file and its layout, what is put into it, what is different in the layer, and what the message says.
EXTRAS: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any], str]] = {
    "gate bias": ("qwen3_moe", {"gate.bias": (E,)}, {}, "gate.bias: .* no router.bias: .* with router_bias"),
    "expert bias": (
        "qwen3_moe",
        {"experts.2.up_proj.bias": (WIDTH,)},
        {},
        "experts.2.up_proj.bias: .* no experts.up.bias: .* with expert_bias",
    ),
    "selection bias": (
        "deepseek",
        {},
        {"selection_bias": False},
        "e_score_correction_bias: .* with selection_bias",
    ),
    "shared experts": (
        "deepseek",
        {},
        {"n_shared_experts": 0, "shared_intermediate_size": 0},
        "shared_experts.down_proj.weight: .* with n_shared_experts = 1",
    ),
    "shared gate": (
        "qwen2_moe",
        {},
        {"shared_gate": "plain"},
        "shared_expert_gate.weight: .* with a shared_gate",
    ),
    "one expert more": (
        "qwen3_moe",
        {"experts.4.up_proj.weight": (WIDTH, H)},
        {},
        "more experts than the layer's 4",
    ),
    "no number": (
        "qwen3_moe",
        {"experts.04.up_proj.weight": (WIDTH, H)},
        {},
        "experts.04.* does not know it",
    ),
    "huge number": ("qwen3_moe", {f"experts.{10**20}.up_proj.weight": (1,)}, {}, "does not know it"),
    "scales": (
        "qwen3_moe",
        {"experts.0.up_proj.weight_scale_inv": (1, 1)},
        {},
        "weight_scale_inv: quantised",
    ),
    "packed": ("qwen3_moe", {"experts.0.up_proj.qweight": (1, 1)}, {}, "qweight: quantised"),
    "bitsandbytes": ("qwen3_moe", {"experts.0.up_proj.weight.absmax": (1,)}, {}, "absmax: quantised"),
    "adapter": (
        "qwen3_moe",
        {"experts.0.up_proj.lora_A.weight": (2, H)},
        {},
        "lora_A.weight: adapters .* merge",
    ),
    "another's": (
        "qwen3_moe",
        {
            "shared_expert_gate.weight": (1, H),
            "shared_expert.up_proj.weight": (6, H),
            "shared_expert.gate_proj.weight": (6, H),
            "shared_expert.down_proj.weight": (H, 6),
        },
        {},
        "shared_expert.down_proj.weight: 'qwen3_moe' does not know it; .* 'qwen2_moe'",
    ),
    "nobody's": ("mixtral", {"surprise": (3,)}, {}, "surprise: 'mixtral' does not know it"),
    "latent": (
        "nemotron_h",
        {"fc1_latent_proj.weight": (4, H)},
        {},
        "fc1_latent_proj.weight is not supported",
    ),
    "token ids": ("deepseek_v4", {"gate.tid2eid": (16, K)}, {}, "tid2eid: .* router = HASH"),
    "its own": (
        "libmoe",
        {"experts.surprise": (3,)},
        {},
        "experts.surprise: 'libmoe' does not know it",
    ),
}


def beginning(model: str) -> str:
    return {
        "mixtral": "model.layers.1.block_sparse_moe.",
        "nemotron_h": "backbone.layers.1.mixer.",
        "deepseek_v4": "model.layers.1.ffn.",
        "libmoe": "layers.1.",
    }.get(model, MLP)


def tensors_of(model: str) -> Tensors:
    if model == "libmoe":
        return {f"layers.1.{name}": array for name, array in make("mixtral").state_dict().items()}
    return file_of(model)


@pytest.mark.parametrize("way", ["file", "index", "offload"])
@pytest.mark.parametrize("case", EXTRAS)
def test_what_would_be_lost_is_refused_by_name(case: str, way: str, tmp_path: Path) -> None:
    model, added, options, message = EXTRAS[case]
    tensors = tensors_of(model)
    for number, (name, shape) in enumerate(added.items()):
        tensors[beginning(model) + name] = normal(*shape, seed=number)
    layer = layer_for(way, "mixtral" if model == "libmoe" else model, **options)
    before = {name: array for name, array in layer.state_dict().items()} if way != "offload" else {}
    with pytest.raises(libmoe.InvalidArgumentError, match=message):
        load(way, layer, tensors, tmp_path, layout=model, layer=1)
    for name, array in before.items():
        assert (array == layer.state_dict()[name]).all(), name


def test_what_the_message_says_uses_it(tmp_path: Path) -> None:
    """The cure: biases that the layer asks for are read, and y is what numpy makes of them."""
    tensors = file_of("qwen3_moe")
    tensors[f"{MLP}gate.bias"] = normal(E, seed=1)
    for number in range(E):
        for matrix, size in (("gate_proj", WIDTH), ("up_proj", WIDTH), ("down_proj", H)):
            tensors[f"{MLP}experts.{number}.{matrix}.bias"] = normal(size, seed=10 + number)
    layer = make("qwen3_moe", router_bias=True, expert_bias=True)
    load("file", layer, tensors, tmp_path, layout="qwen3_moe", layer=1)
    x = BLOCKS["qwen3_moe.x"].astype(np.float64)
    expected = np.zeros_like(x)
    logits = x @ tensors[f"{MLP}gate.weight"].astype(np.float64).T + tensors[f"{MLP}gate.bias"]
    scores = np.exp(logits - logits.max(1, keepdims=True))
    for t, row in enumerate(x):
        chosen = np.argsort(-scores[t])[:K]
        for e in chosen:

            def linear(matrix: str, v: NDArray[np.float64], e: int = e) -> NDArray[np.float64]:
                name = f"{MLP}experts.{e}.{matrix}"
                product: NDArray[np.float64] = tensors[f"{name}.weight"].astype(np.float64) @ v
                product += tensors[f"{name}.bias"]
                return product

            gate = linear("gate_proj", row)
            inner = gate / (1 + np.exp(-gate)) * linear("up_proj", row)
            expected[t] += scores[t, e] / scores[t, chosen].sum() * linear("down_proj", inner)
    y = layer(BLOCKS["qwen3_moe.x"])
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_shard_that_the_index_does_not_tell_of(tmp_path: Path) -> None:
    tensors = file_of("deepseek")
    save_file(tensors, tmp_path / "a.safetensors")
    listed = [name for name in tensors if "shared_experts" not in name]
    entries = ", ".join(f'"{name}": "a.safetensors"' for name in listed)
    (tmp_path / "a.safetensors.index.json").write_text(f'{{"weight_map": {{{entries}}}}}')
    layer = make("deepseek", n_shared_experts=0, shared_intermediate_size=0)
    with pytest.raises(libmoe.InvalidArgumentError, match="shared_experts.*the index does not name it"):
        layer.load(tmp_path / "a.safetensors.index.json", layout="deepseek", layer=1)


def test_an_adapter_beside_the_weights(tmp_path: Path) -> None:
    name = f"base_model.model.{MLP}experts.0.up_proj.lora_B.weight"
    with pytest.raises(libmoe.InvalidArgumentError, match="lora_B.weight: adapters"):
        load(
            "file",
            make("qwen3_moe"),
            {**file_of("qwen3_moe"), name: normal(3)},
            tmp_path,
            layout="qwen3_moe",
            layer=1,
        )


def test_eight_bit_weights_are_named(tmp_path: Path) -> None:
    tensors = file_of("qwen3_moe")
    name = f"{MLP}experts.1.up_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"experts.1.up_proj.weight: F8_E4M3 .* convert"):
        load("file", make("qwen3_moe"), tensors, tmp_path, layout="qwen3_moe", layer=1)


def test_other_layers_and_other_parts_are_not_the_layers(tmp_path: Path) -> None:
    tensors = file_of("qwen3_moe")
    for name in (
        "model.layers.11.mlp.gate.bias",
        "model.layers.1.mlp_norm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ):
        tensors[name] = normal(3)
    one, other = make("qwen3_moe"), make("qwen3_moe", seed=1)
    load("file", one, tensors, tmp_path, layout="qwen3_moe", layer=1)
    other.load(FOLDER / "qwen3_moe.safetensors", layout="qwen3_moe", layer=1)
    same(one, other)


# MARK: what is missing

LOOKS: dict[str, tuple[str, str, str, str, str]] = {
    # the file, its prefix in place of the layout's own; the layout asked for; that of the answer, and prefix
    "prefix": (
        "qwen3_moe",
        "model.language_model.layers.1.mlp.",
        "qwen3_moe",
        "QWEN3_MOE",
        "model.language_model.layers.1.mlp.",
    ),
    "layout": ("mixtral", "", "qwen3_moe", "MIXTRAL", "model.layers.1.block_sparse_moe."),
    "both": ("deepseek", "language.layers.1.mlp.", "mixtral", "DEEPSEEK", "language.layers.1.mlp."),
    "no prefix": ("hunyuan", "blk.1.", "dbrx", "HUNYUAN", "blk.1."),
    "decoder": ("switch_decoder", "", "switch_encoder", "SWITCH_DECODER", "decoder.block.1.layer.2.mlp."),
    "fused": ("mixtral-transformers_5", "", "qwen3_moe", "TRANSFORMERS_5", "model.layers.1.mlp."),
    "granite": ("granite_moe", "", "jetmoe", "GRANITE_MOE", "model.layers.1."),
}


@pytest.mark.parametrize("case", LOOKS)
def test_a_missing_name_is_answered_with_what_is_there(case: str, tmp_path: Path) -> None:
    file, prefix, asked, layout, found = LOOKS[case]
    model = file.split("-")[0]
    tensors = file_of(file)
    if prefix:
        tensors = {
            prefix + name[len(beginning(model)) :]: a
            for name, a in tensors.items()
            if beginning(model) in name
        }
    layer = make(asked)
    message = f"no such tensor; it looks like '{layout.lower()}' with the prefix \"{found}\""
    with pytest.raises(libmoe.InvalidArgumentError, match=message):
        load("file", layer, tensors, tmp_path, layout=asked, layer=1)
    if prefix:
        one, other = make(model), make(model, seed=1)
        one.load(tmp_path / "a.safetensors", layout=model, prefix=prefix)  # type: ignore[arg-type]
        other.load(FOLDER / f"{model}.safetensors", layout=model, layer=1)  # type: ignore[arg-type]
        same(one, other)


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match='layers.7.*it looks like .* "model.layers.0.mlp."'):
        load("file", make("qwen3_moe"), file_of("qwen3_moe"), tmp_path, layout="qwen3_moe", layer=7)


def test_a_parameter_that_the_file_has_not(tmp_path: Path) -> None:
    layer = make("qwen3_moe", router_bias=True)
    with pytest.raises(
        libmoe.InvalidArgumentError, match="gate.bias: .* no such tensor: .* without router_bias"
    ):
        load("file", layer, file_of("qwen3_moe"), tmp_path, layout="qwen3_moe", layer=1)


# MARK: forms and prefixes


def test_both_forms_of_qwen3_vl_and_qwen3_5(tmp_path: Path) -> None:
    published = {
        name: np.ascontiguousarray(np.swapaxes(array, 1, 2)) if array.ndim == 3 else array
        for name, array in file_of("qwen3_vl_moe").items()
    }
    for model, tensors in (("qwen3_vl_moe", published), ("qwen3_5_moe", fused(file_of("qwen3_5_moe")))):
        one, other = make(model), make(model, seed=1)
        one.load(FOLDER / f"{model}.safetensors", layout=model, layer=1)  # type: ignore[arg-type]
        load("file", other, tensors, tmp_path, layout=model, layer=1)
        same(one, other)


def fused(tensors: Tensors) -> Tensors:
    """Experts' matrices in two tensors, as the models of transformers 5 have them in memory."""
    base = "model.language_model.layers.1.mlp."
    found = {
        name: array for name, array in tensors.items() if name.startswith(base) and ".experts." not in name
    }

    def stack(matrix: str) -> NDArray[Any]:
        return np.stack([tensors[f"{base}experts.{n}.{matrix}.weight"] for n in range(E)])

    found[f"{base}experts.gate_up_proj"] = np.concatenate([stack("gate_proj"), stack("up_proj")], axis=1)
    found[f"{base}experts.down_proj"] = stack("down_proj")
    return found


@pytest.mark.parametrize("shard", [0, 1000])
@pytest.mark.parametrize("prefix", ["model.language_model.layers.3.mlp.", "x.", "", "p" * 160])
def test_a_prefix_of_the_callers(prefix: str, shard: int, tmp_path: Path) -> None:
    one, other, offloaded = (
        layer_for(way, "deepseek", seed=n) for n, way in enumerate(["file", "file", "offload"])
    )
    path = tmp_path / ("a.safetensors.index.json" if shard else "a")
    one.save(path, layout="deepseek", prefix=prefix, max_shard_size=shard)
    with libmoe.Checkpoint(path) as checkpoint:
        assert f"{prefix}experts.3.up_proj.weight" in checkpoint
        assert all(name.startswith(prefix) for name in checkpoint)
    other.load(path, layout="deepseek", prefix=prefix)
    same(one, other)
    offloaded.offload(path, layout="deepseek", prefix=prefix, resident_limit=1 << 20)
    x = BLOCKS["deepseek.x"]
    assert (offloaded(x) == one(x)).all()


def test_prefixes_that_are_none(tmp_path: Path) -> None:
    layer = make("mixtral")
    calls: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"prefix": "p" * 161}, libmoe.InvalidArgumentError, "prefix: more than 160 bytes"),
        ({"prefix": "a", "layer": 1}, ValueError, "layer, prefix"),
        ({"prefix": "a\0b"}, ValueError, "prefix"),
        ({"prefix": 3}, TypeError, "prefix"),
    ]
    for place, error, message in calls:
        with pytest.raises(error, match=message):
            layer.save(tmp_path / "a", layout="mixtral", **place)
    assert list(tmp_path.iterdir()) == []


def test_granite_s_shared_mlp_stands_beside_the_block(tmp_path: Path) -> None:
    tensors = file_of("granite_moe")
    tensors["model.layers.1.shared_mlp.input_linear.weight"] = normal(2 * 6, H, seed=5)
    tensors["model.layers.1.shared_mlp.output_linear.weight"] = normal(H, 6, seed=6)
    with pytest.raises(
        libmoe.InvalidArgumentError, match="shared_mlp.input_linear.weight: .* n_shared_experts"
    ):
        load("file", make("granite_moe"), tensors, tmp_path, layout="granite_moe", layer=1)
    layer = make("granite_moe", n_shared_experts=1, shared_intermediate_size=6)
    load("file", layer, tensors, tmp_path, layout="granite_moe", layer=1)
    x = BLOCKS["granite_moe.x"].astype(np.float64)
    gate, up = np.split(
        x @ tensors["model.layers.1.shared_mlp.input_linear.weight"].astype(np.float64).T, 2, axis=1
    )
    shared = (gate / (1 + np.exp(-gate)) * up) @ tensors["model.layers.1.shared_mlp.output_linear.weight"].T
    expected = BLOCKS["granite_moe.y"] + shared
    assert np.abs(layer(BLOCKS["granite_moe.x"]) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_table_of_a_layer_that_chooses_by_token_id(tmp_path: Path) -> None:
    base = "layers.0.ffn."
    table = np.random.default_rng(1).permuted(np.tile(np.arange(E), (16, 1)), axis=1)[:, :K].astype(np.int64)
    options = {"router": "hash", "selection_bias": False, "vocabulary_size": 16}
    layer = make("deepseek_v4", hash_table=table.astype(np.int32), **options)
    tensors = {name.replace("model.", ""): array for name, array in file_of("deepseek_v4").items()}
    tensors = {name: array for name, array in tensors.items() if name.startswith(base)}
    load("file", layer, {**tensors, f"{base}gate.tid2eid": table}, tmp_path, layout="deepseek_v4", layer=0)
    with pytest.raises(libmoe.InvalidArgumentError, match="tid2eid is another table"):
        load(
            "file",
            layer,
            {**tensors, f"{base}gate.tid2eid": table[::-1].copy()},
            tmp_path,
            layout="deepseek_v4",
            layer=0,
        )


# MARK: training states and upcycling


def test_a_training_state_names_what_is_too_much(tmp_path: Path) -> None:
    layers = [make("mixtral"), make("mixtral", seed=1)]
    libmoe.save_training(tmp_path / "a", step=3, layers=layers)
    with pytest.raises(
        libmoe.InvalidArgumentError, match="layers.1.* the file has it, the training state does not"
    ):
        libmoe.load_training(tmp_path / "a", layers=layers[:1])


def test_upcycling_names_what_is_too_much() -> None:
    layer = make("mixtral")
    dense = {"gate.weight": normal(WIDTH, H), "up.weight": normal(WIDTH, H), "down.weight": normal(H, WIDTH)}
    with pytest.raises(libmoe.InvalidArgumentError, match=r"dense: tensors\[3\] \(gate.bias\)"):
        layer.upcycle({**dense, "gate.bias": normal(WIDTH)})
