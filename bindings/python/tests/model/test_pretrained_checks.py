"""What is wrong with a folder is said before weights are read, by the name of the tensor and the folder."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import libmoe
from libmoe._native import abi, fields
from libmoe._native.library import Handle, lib
from libmoe.context import handle_of
from pretrained_models import FOLDERS, loaded, logits_of, reference, tensors


def copied(name: str, tmp_path: Path, **keys: Any) -> Path:
    """A folder of these weights, with some keys of config.json changed; a key that is ... is taken out."""
    folder = tmp_path / name
    shutil.copytree(FOLDERS / name, folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


def spoilt(folder: Path, **changed: Any) -> None:
    """Replaces tensors, whose names are written with "__" for "."; None: takes one out."""
    path = folder / "model.safetensors"
    found = {**load_file(path), **{name.replace("__", "."): value for name, value in changed.items()}}
    save_file({name: value for name, value in found.items() if value is not None}, path)


def refusals(folder: Path) -> str:
    """What reading says, which describing says too; neither leaves anything."""
    said = []
    with libmoe.Context(1) as context:
        for call in (libmoe.describe_pretrained, libmoe.Model.from_pretrained):
            before = context.memory()[0]
            with pytest.raises(libmoe.InvalidArgumentError) as refusal:
                call(folder, context=context)
            said.append(str(refusal.value))
            assert context.memory()[0] == before
    assert said[0] == said[1]
    return said[0]


X = "model__layers__0__mlp__experts__6__up_proj__weight"
Q = "model__layers__1__self_attn__q_proj__weight"


@pytest.mark.parametrize(
    ("keys", "changed", "says"),
    [
        ({}, {Q: lambda t: t[:, :16].copy()}, "q_proj.weight: dimension 1 is 16 in the file, 32"),
        ({}, {Q: lambda t: t.ravel().copy()}, "q_proj.weight: 1 dimensions in the file, 2"),
        ({}, {Q: lambda t: t.astype(np.float64)}, "q_proj.weight: F64 is none of F32, F16 and BF16"),
        ({}, {Q: lambda t: t.astype(np.int32)}, "q_proj.weight: I32 is none of F32, F16 and BF16"),
        ({}, {"model__layers__0__mlp__gate__weight": lambda t: t.T.copy()}, "gate.weight: dimension 0"),
        ({}, {"model__layers__0__mlp__experts__1__up_proj__weight": None}, "experts.1.up_proj.weight"),
        ({}, {"model__layers__0__mlp__experts__1__up_proj__weight": lambda t: t.T.copy()}, "up_proj.weight"),
        ({}, {"model__more": lambda _: np.zeros(2, np.float32)}, "model.more"),
        ({"tie_word_embeddings": True}, {}, "lm_head.weight is not model.embed_tokens.weight"),
        ({}, {"lm_head__weight": None}, "lm_head.weight.*tie_word_embeddings"),
        ({"num_experts_per_tok": 99}, {}, r"config.json: top_k = 99 exceeds n_experts"),
        ({"num_experts": 3}, {}, "gate.weight: dimension 0 is 6 in the file, 3 by config.json"),
        ({"num_experts": 9}, {}, "gate.weight: dimension 0 is 6 in the file, 9 by config.json"),
        ({"num_hidden_layers": 1_000_000}, {}, "num_hidden_layers = 1000000, but the files have 2 layers"),
        ({"num_hidden_layers": 1}, {}, "num_hidden_layers = 1, but the files have 2 layers"),
        (
            {},
            {"model__layers__0__mlp__gate__bias": lambda _: np.zeros(6, np.float32)},
            "no router.bias: corr",
        ),
        ({}, {X: lambda _: np.zeros((12, 32), np.float32)}, "experts.6.up_proj.weight: the files have more"),
        ({"vocab_size": 1 << 30}, {}, "embed_tokens.weight: dimension 0 is 80 in the file, 1073741824"),
        ({"hidden_size": 1 << 20, "head_dim": 8}, {}, "embed_tokens.weight: dimension 1 is 32 in the file"),
    ],
)
def test_describing_says_what_reading_says(
    tmp_path: Path, keys: dict[str, Any], changed: dict[str, Callable[[Any], Any] | None], says: str
) -> None:
    folder = copied("olmoe", tmp_path, **keys)
    was = load_file(folder / "model.safetensors")
    new = {name: make and make(was.get(name.replace("__", "."))) for name, make in changed.items()}
    spoilt(folder, **new)
    said = refusals(folder)
    assert re.search(says, said), said
    if "top_k" not in says and "model.more" not in says:
        assert said.endswith(f": {folder}"), said


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe", "minimax_m2"])
def test_layers_that_config_json_does_not_speak_of(name: str, tmp_path: Path) -> None:
    """Also where files may have layers behind the last one, for further tokens."""
    layers = json.loads((FOLDERS / name / "config.json").read_text())["num_hidden_layers"]
    said = refusals(copied(name, tmp_path, num_hidden_layers=layers - 1))
    assert said.startswith(
        f"config.json: num_hidden_layers = {layers - 1}, but the files have {layers} layers"
    )


@pytest.mark.parametrize(
    ("keys", "gone", "says"),
    [
        (
            {"n_shared_experts": 0},
            None,
            "shared_experts.*by config.json the layer has no shared.* correct that",
        ),
        (
            {},
            "gate__e_score_correction_bias",
            "no such tensor.*config.json describes has it: correct that, or",
        ),
        ({}, "gate__weight", "no such tensor.*config.json describes has it: correct that, or"),
    ],
)
def test_messages_of_folders_speak_of_config_json(
    keys: dict[str, Any], gone: str | None, says: str, tmp_path: Path
) -> None:
    """And not of options that a caller would give a layer, or of a layout's prefix."""
    folder = copied("deepseek_v3", tmp_path, **keys)
    if gone is not None:
        spoilt(folder, **{f"model__layers__1__mlp__{gone}": None})
    said = refusals(folder)
    assert re.search(says, said) and "make the layer" not in said and "prefix" not in said, said


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_experts_per_tok", "3", 'num_experts_per_tok = "3" is not a number'),
        ("tie_word_embeddings", "no", 'tie_word_embeddings = "no" is neither true nor false'),
        ("hidden_act", "gelu", 'hidden_act = "gelu" is not supported for model_type olmoe'),
        ("num_experts", "six", 'num_experts = "six" is not a number'),
        ("vocab_size", True, "vocab_size = true is not a number"),
    ],
)
def test_values_are_shown_as_they_are_written(key: str, value: Any, says: str, tmp_path: Path) -> None:
    assert f"config.json: {says}" in refusals(copied("olmoe", tmp_path, **{key: value}))


@pytest.mark.parametrize("name", ["olmoe", "llama", "gpt_oss", "deepseek_v3", "qwen3_vl_moe"])
def test_whichever_tensor_is_missing_is_named(name: str, tmp_path: Path) -> None:
    whole = copied(name, tmp_path)
    path = whole / "model.safetensors"
    was = load_file(path)
    read = [each for each in was if ".visual." not in each and ".layers.3." not in each]
    with libmoe.Context(1) as context:
        for each in read:
            save_file({other: value for other, value in was.items() if other != each}, path)
            with pytest.raises(libmoe.InvalidArgumentError) as refusal:
                libmoe.describe_pretrained(whole, context=context)
            assert str(refusal.value).startswith(f"{each}: "), str(refusal.value)
            assert str(refusal.value).endswith(f": {whole}"), str(refusal.value)


def test_describing_takes_no_memory_for_weights(tmp_path: Path) -> None:
    with libmoe.Context(1) as context:
        libmoe.describe_pretrained(FOLDERS / "llama4_text", context=context)
        now, peak = context.memory()
        size = sum(tensor.nbytes for tensor in tensors(FOLDERS / "llama4_text").values())
        assert now == 0 or now < size // 8
        tables = 150_000  # config.json and the headers taken apart, and the names and shapes of parameters
        assert peak < tables
    assert size > 0


# ---- numbers that somebody gave


@pytest.mark.parametrize("part", [1.0, 0.63])  # of a head's 8 numbers 8 turn, or 5
def test_a_rotary_base_beyond_all_numbers_is_refused(part: float, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "alpha": 1e30, "rope_theta": 1e308, "partial_rotary_factor": part}
    folder = copied("hunyuan_v1_moe", tmp_path, rope_parameters=rope)
    assert "alpha makes rope_theta infinite" in refusals(folder)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.01}},
            "of heads of 10 numbers none would turn",
        ),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0 is not computed"),
    ],
)
def test_numbers_that_would_stand_for_a_default_are_refused(
    keys: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert says in refusals(copied("mixtral", tmp_path, **keys))


@pytest.mark.parametrize("prepared", ["none", "f32"])
def test_a_resident_limit_is_answered_with_one_that_is_enough(prepared: Any) -> None:
    folder = FOLDERS / "olmoe"
    info = libmoe.describe_pretrained(folder, weight_dtype="f32", inference_only=True)
    how: dict[str, Any] = dict(weight_dtype="f32", inference_only=True, prepared=prepared)
    given = info.parameter_bytes - info.expert_bytes + 8
    for _ in range(2):  # what is packed takes more than what is not
        with pytest.raises(libmoe.InvalidArgumentError) as refusal:
            libmoe.Model.from_pretrained(folder, resident_limit=given, **how)
        assert str(refusal.value).startswith(f"resident_limit = {given} bytes, but"), str(refusal.value)
        given = int(str(refusal.value).split()[-1])
        try:
            libmoe.Model.from_pretrained(folder, resident_limit=given, **how)
        except libmoe.InvalidArgumentError:
            continue
        break
    tokens = reference("olmoe")["tokens"]
    limited = libmoe.Model.from_pretrained(folder, resident_limit=given, **how)
    assert logits_of(limited, tokens).tobytes() == logits_of(loaded("olmoe"), tokens).tobytes()
    if given > info.parameter_bytes:  # then nothing stays in the files
        given = info.parameter_bytes
    with pytest.raises(libmoe.InvalidArgumentError, match=f"resident_limit = {given - 8} bytes"):
        libmoe.Model.from_pretrained(folder, resident_limit=given - 8, **how)


# ---- norms that are stored minus 1


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_norms_from_zero_come_back_bit_for_bit(dtype: Any, tmp_path: Path) -> None:
    """Where 1 + w is rounded too: small numbers, and those with more bits than the sum has room for."""
    folder = copied("qwen3_5_moe_text", tmp_path)
    random = np.random.default_rng(5)
    types = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}
    was = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "norm" in name:
            tensor = random.standard_normal(tensor.shape) * 10.0 ** random.integers(-7, 1, tensor.shape)
            tensor[0] = -0.0
        was[name] = np.ascontiguousarray(tensor.astype(types[dtype]))
    save_file(was, folder / "model.safetensors")
    model = libmoe.Model.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    now = load_file(tmp_path / "again" / "model.safetensors")
    assert now.keys() == was.keys()
    for name in was:
        assert now[name].tobytes() == was[name].tobytes(), name
    # One that has been trained is what it is now.
    norm = model.parameters["layers.1.norm2.weight"].data
    norm[3] = 1.25
    model.save_pretrained(tmp_path / "trained")
    trained = load_file(tmp_path / "trained" / "model.safetensors")
    changed = "model.layers.1.post_attention_layernorm.weight"
    assert trained[changed][3] == 0.25
    trained[changed][3] = was[changed][3]
    assert all(trained[name].tobytes() == was[name].tobytes() for name in was)


# ---- keys of published configurations

PUBLISHED = [
    ("dots1", {"scoring_func": "noaux_tc", "use_sliding_window": False, "gradient_checkpointing": False}),
    ("dots1", {"scoring_func": "sigmoid"}),
    (
        "minimax_m2",
        {
            "mlp_intermediate_size": 8192,
            "moe_intermediate_size": 7,
            "shared_intermediate_size": 0,
            "shared_moe_mode": "sigmoid",
            "layernorm_full_attention_beta": 1.0,
            "layernorm_linear_attention_beta": 1.0,
            "layernorm_mlp_beta": 1.0,
            "layernorm_mlp_alpha": 1,
            "postnorm": False,
            "attn_type_list": [1, 1],
            "qk_norm_type": "per_layer",
            "use_mtp": True,
            "num_mtp_modules": 3,
            "scoring_func": "sigmoid",
        },
    ),
    (
        "llama",
        {
            "layer_types": ["full_attention"] * 3,
            "gradient_checkpointing": True,
            "max_window_layers": 28,
            "sliding_window": 4,
            "use_sliding_window": False,
            "is_llama_config": True,
            "rope_interleaved": False,
            "cache_implementation": "hybrid",
        },
    ),
    ("mistral", {"attention_bias": False, "mlp_bias": False, "is_encoder_decoder": False}),
    ("olmoe", {"layer_types": ["full_attention"] * 3}),
]


@pytest.mark.parametrize(("name", "keys"), PUBLISHED)
def test_published_keys_change_nothing(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    """Nor do they for transformers, which does not read them."""
    tokens = reference(name)["tokens"]
    model = libmoe.Model.from_pretrained(copied(name, tmp_path, **keys), weight_dtype="f32")
    assert logits_of(model, tokens).tobytes() == logits_of(loaded(name), tokens).tobytes()


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("dots1", {"scoring_func": "softmax"}),
        ("deepseek_v3", {"scoring_func": "noaux_tc"}),
        ("deepseek_v3", {"rope_interleave": None}),
        ("deepseek_v2", {"topk_method": "noaux_tc"}),
        ("phimoe", {"num_experts_per_tok": 1}),
        ("minimax_m2", {"layernorm_mlp_beta": 0.5}),
        ("minimax_m2", {"layernorm_full_attention_alpha": 3.5}),
        ("minimax_m2", {"postnorm": True}),
        ("minimax_m2", {"shared_intermediate_size": 12}),
        ("llama", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("llama", {"use_sliding_window": True}),
        ("llama", {"rope_interleaved": True}),
        ("mistral", {"attention_bias": True}),
        ("olmoe", {"is_encoder_decoder": True}),
    ],
)
def test_other_values_are_refused_by_name(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    assert refusals(copied(name, tmp_path, **keys)).startswith(f"config.json: {next(iter(keys))} = ")


@pytest.mark.parametrize(
    ("name", "left_out", "same_as"),
    [
        ("deepseek_v2", {"topk_method": ...}, {"topk_method": "greedy"}),  # what DeepseekV2Config begins with
        ("deepseek_v3", {"norm_topk_prob": None}, {"norm_topk_prob": False}),  # None is false in Python
        ("glm4_moe", {"n_shared_experts": ...}, {"n_shared_experts": 1}),
        ("ernie4_5_moe", {"moe_norm_min": ...}, {"moe_norm_min": 1e-12}),
    ],
)
def test_what_is_left_out_is_as_in_transformers(
    name: str, left_out: dict[str, Any], same_as: dict[str, Any], tmp_path: Path
) -> None:
    tokens = reference(name)["tokens"]
    found = [
        libmoe.Model.from_pretrained(copied(name, tmp_path / str(n), **keys), weight_dtype="f32")
        for n, keys in enumerate((left_out, same_as))
    ]
    assert logits_of(found[0], tokens).tobytes() == logits_of(found[1], tokens).tobytes()


# ---- what is left of a model whose reading ends


def test_a_new_model_is_never_partly_old() -> None:
    options = fields.filled(abi.moe_pretrained_options)
    options.progress = type(options.progress)(lambda _, done, total: int(done > 0))
    folder, parent = str(FOLDERS / "olmoe").encode(), handle_of(None)
    place = (parent, folder, ctypes.byref(options))
    with pytest.raises(libmoe.MoeError, match="^cancelled by the progress callback"):
        Handle(lib.moe_model_load, lib.moe_model_free, *place, keep={"context": parent})
    opened = Handle(lib.moe_pretrained_open, lib.moe_pretrained_free, *place, keep={"context": parent})
    with pytest.raises(libmoe.MoeError, match="^the model's parameters are partly old"):
        lib.moe_pretrained_load(opened, loaded("olmoe")._handle)
