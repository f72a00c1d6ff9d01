"""Whole models from folders: transformers' logits, losses, gradients, greedy texts, and folders again."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import libmoe
from pretrained.cases import CASES
from pretrained_models import (
    FOLDERS,
    NAMES,
    as_transformers,
    assert_near,
    loaded,
    logits_of,
    most_of_the_experts,
    prints,
    reference,
    saved_gradients,
    shapes,
    shards,
    tensors,
)

NEW = 8  # tokens that transformers wrote, or fewer where it came to an end


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_loss(name: str) -> None:
    wanted = reference(name)
    model = loaded(name, inference_only=True)
    tokens = wanted["tokens"]
    assert_near(logits_of(model, tokens), wanted["logits"], 1e-5, "logits")
    if "short_logits" in wanted:
        length = wanted["short_logits"].shape[1]
        assert_near(logits_of(model, tokens[:, :length]), wanted["short_logits"], 1e-5, "short")
    output = model.forward(tokens, targets(tokens))
    assert output.loss == pytest.approx(float(wanted["loss"]), rel=1e-5)
    assert output.objective == pytest.approx(float(wanted["objective"]), rel=1e-5)


def targets(tokens: Any) -> Any:
    """Each token's is the next one; the last has none."""
    return np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -100)], axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, tmp_path: Path) -> None:
    wanted = reference(name)
    model = loaded(name)
    output = model.forward(wanted["tokens"], targets(wanted["tokens"]), tape=True)
    model.backward(output)
    for each, found, print_ in prints(saved_gradients(model, tmp_path), wanted):
        largest = max(np.abs(print_).max(), 1e-3)  # of a gradient that is nothing but rounding
        error = np.abs(found - print_).max() / largest
        assert error <= 1e-4, f"{each}: off by {error:.2g}"


@pytest.mark.parametrize("name", NAMES)
def test_greedy_texts(name: str) -> None:
    wanted = reference(name)
    model = loaded(name, inference_only=True)
    prompts = [wanted[f"prompt/{n}"] for n in range(len(CASES[name].prompts))]
    texts = [wanted[f"continued/{n}"].tolist() for n in range(len(prompts))]
    # Their own defaults have other ends: a text ended by config.json's eos_token_id here.
    how: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1, "end_tokens": 2}
    for prompt, text in zip(prompts, texts):
        assert list(model.generate(prompt, NEW, part_tokens=3, **how)) == text
    rows = np.stack(list(model.generate_batch(prompts, NEW, **how)), axis=1)
    assert rows.tolist() == [text + [-1] * (rows.shape[1] - len(text)) for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_written_as_it_was(name: str, tmp_path: Path) -> None:
    """Every bit of every tensor, the names and the dtypes; what no model reads is left out."""
    model = libmoe.Model.from_pretrained(FOLDERS / name)
    model.save_pretrained(tmp_path / "again", max_shard_size=CASES[name].shard or "50GB")
    then, now = tensors(FOLDERS / name), as_transformers(tensors(tmp_path / "again"))
    left = {each for each in then if each in CASES[name].left_over or ".visual." in each}
    assert now.keys() == then.keys() - left
    for each in now:
        assert now[each].dtype == then[each].dtype, each
        assert now[each].shape == then[each].shape, each
        one_was_added = name.startswith("qwen3_5") and "norm" in each
        if one_was_added:
            np.testing.assert_allclose(now[each], then[each], rtol=0, atol=2.0**-23, err_msg=each)
        else:
            np.testing.assert_array_equal(now[each], then[each], err_msg=each)
    if CASES[name].shard:
        assert set(shards(tmp_path / "again").values()) == {
            p.name for p in (tmp_path / "again").glob("*.safetensors")
        }
        assert len(set(shards(tmp_path / "again").values())) > 1
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config == json.loads((FOLDERS / name / "config.json").read_text())
    for beside in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (FOLDERS / name / beside).exists():
            assert (tmp_path / "again" / beside).read_bytes() == (FOLDERS / name / beside).read_bytes()
    tokens = reference(name)["tokens"]
    again = libmoe.Model.from_pretrained(tmp_path / "again")
    assert logits_of(again, tokens).tobytes() == logits_of(model, tokens).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits(name: str) -> None:
    """Threads, limits and experts in files change none; reading has those of forward."""
    tokens = reference(name)["tokens"][:, :9].copy()
    wanted = logits_of(loaded(name), tokens)
    limit = most_of_the_experts(name)
    limited = loaded(name, inference_only=True, resident_limit=limit, context=libmoe.Context(2))
    assert logits_of(limited, tokens).tobytes() == wanted.tobytes()
    prepared = loaded(name, inference_only=True, prepared="f32", context=libmoe.Context(1))
    assert logits_of(prepared, tokens).tobytes() == wanted.tobytes()
    if CASES[name].kind.startswith("Deepseek"):
        return  # read computes in the latent: close, and not the same
    model = loaded(name)
    cache = model.cache(*tokens.shape)
    model.read(cache, tokens[:, :4].copy())
    assert model.read(cache, tokens[:, 4:].copy()).tobytes() == wanted[:, -1].tobytes()


@pytest.mark.parametrize("form", ["f32", "int8", "int4_g64_a8"])
@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "deepseek_v3", "mistral"])
def test_packed_while_reading(name: str, form: Any) -> None:
    """The bits of a model packed afterwards; of what is packed nothing else is kept."""
    tokens = reference(name)["tokens"]
    model = loaded(name, inference_only=True)
    model.prepare(form)
    packed = loaded(name, inference_only=True, prepared=form)
    assert logits_of(packed, tokens).tobytes() == logits_of(model, tokens).tobytes()
    assert packed.forward(tokens, targets(tokens)).loss == model.forward(tokens, targets(tokens)).loss
    prompt = tokens[0, :4].tolist()
    assert list(packed.generate(prompt, 6, temperature=0)) == list(model.generate(prompt, 6, temperature=0))
    for again in (lambda: packed.prepare("none"), packed.state_dict):
        with pytest.raises(libmoe.BadStateError, match="packed alone|no memory"):
            again()


def test_packed_matrices_may_be_bound_again_one_by_one() -> None:
    """As long as some are missing, the packed copies compute, and nothing is compared with them."""
    tokens = reference("olmoe")["tokens"]
    model = loaded("olmoe", inference_only=True)
    packed = loaded("olmoe", inference_only=True, prepared="f32")
    wanted = logits_of(model, tokens).tobytes()
    for matrix in ("down", "up", "gate"):
        for n in range(model.n_layers):
            name = f"layers.{n}.ffn.experts.{matrix}.weight"
            packed.bind(name, model.parameters[name].data.copy())
        assert logits_of(packed, tokens).tobytes() == wanted
    packed.parameters[name].data[...] += 1
    with pytest.raises(libmoe.BadStateError, match="prepare the layer again"):
        logits_of(packed, tokens)


def test_packing_while_reading_takes_the_packed_model_and_a_layer(tmp_path: Path) -> None:
    sizes = dict(hidden_size=256, intermediate_size=128, num_hidden_layers=8, num_experts=16)
    heads = dict(num_attention_heads=4, num_key_value_heads=4, head_dim=64, vocab_size=64)
    config = {**json.loads((FOLDERS / "olmoe" / "config.json").read_text()), **sizes, **heads}
    (tmp_path / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(1)
    made = {name: random.standard_normal(shape, np.float32) for name, shape in shapes(config, 16).items()}
    save_file(made, tmp_path / "model.safetensors")
    layer = 4 * 3 * 16 * 256 * 128
    with libmoe.Context(2) as context:
        model = libmoe.Model.from_pretrained(tmp_path, inference_only=True, prepared="int8", context=context)
        current, peak = context.memory()
        assert model.n_layers == 8
    packed = 8 * (3 * 16 * 256 * 128 + 4 * 256 * 256) * 8.5 / 8
    # Beside it routers, norms, the embedding, and attention's matrices, which are packed together at the end.
    assert packed < current < packed + 1.5e6
    assert peak - current < 1.2 * layer + 4 * 8 * 4 * 256 * 256


def test_types_of_weights(tmp_path: Path) -> None:
    tokens = reference("qwen3_moe")["tokens"]
    own = libmoe.Model.from_pretrained(FOLDERS / "qwen3_moe")
    assert own.parameters["layers.0.attention.qkv.weight"].data.dtype == np.uint16  # bfloat16, as the files
    wanted = logits_of(loaded("qwen3_moe"), tokens)
    # Rounded to bfloat16 a token may go to another expert, and is then far off.
    norm = np.linalg.norm
    off = norm(logits_of(own, tokens) - wanted, axis=-1) / norm(wanted, axis=-1)
    assert np.quantile(off, 0.9) < 5e-2
    half = libmoe.Model.from_pretrained(FOLDERS / "mistral")
    assert half.parameters["layers.0.attention.qkv.weight"].data.dtype == np.float16
    loaded("qwen3_moe").save_pretrained(tmp_path / "f32", dtype="f32")
    assert {t.dtype for t in tensors(tmp_path / "f32").values()} == {np.dtype(np.float32)}
    assert json.loads((tmp_path / "f32" / "config.json").read_text())["dtype"] == "float32"
    assert logits_of(libmoe.Model.from_pretrained(tmp_path / "f32"), tokens).tobytes() == wanted.tobytes()


def test_progress_is_told_and_can_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with libmoe.Context(1) as context:
        model = loaded("mixtral", context=context, progress=lambda *bytes_: told.append(bytes_))
        done, totals = zip(*told)
        size = sum(t.nbytes for t in tensors(FOLDERS / "mixtral").values())
        assert list(done) == sorted(done) and done[-1] == size and set(totals) == {size}
        told.clear()
        model.save_pretrained(tmp_path / "saved", progress=lambda *bytes_: told.append(bytes_))
        assert told[-1] == (size, size)
        before = context.memory()[0]

        def stop(done: int, total: int) -> None:
            if done > total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loaded("mixtral", context=context, progress=stop)
        assert context.memory()[0] == before
        with pytest.raises(KeyboardInterrupt):
            model.save_pretrained(tmp_path / "cut", progress=stop)
        assert not list((tmp_path / "cut").glob("*"))


def test_the_peak_is_the_model_and_its_largest_tensor() -> None:
    with libmoe.Context(1) as context:
        model = loaded("llama4_text", context=context, inference_only=True)
        size = sum(parameter.data.nbytes for parameter in model.parameters.values())
        largest = max(t.nbytes for t in tensors(FOLDERS / "llama4_text").values())
        now, peak = context.memory()
        tables = 60_000  # config.json and the files' headers, taken apart
        assert size <= now <= peak <= now + largest + tables < 2 * size


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_written_too(again: Any, tmp_path: Path) -> None:
    model = again(loaded("gpt_oss"))
    tokens = reference("gpt_oss")["tokens"]
    assert logits_of(model, tokens).tobytes() == logits_of(loaded("gpt_oss"), tokens).tobytes()
    model.save_pretrained(tmp_path)
    then, now = tensors(FOLDERS / "gpt_oss"), tensors(tmp_path)
    assert all(now[name].tobytes() == then[name].tobytes() for name in then)


def test_a_model_that_came_from_no_folder(tmp_path: Path) -> None:
    config = json.loads((FOLDERS / "llama" / "config.json").read_text())
    source = loaded("llama")
    model = libmoe.Model(**source._made_with)
    model.load_state_dict(source.state_dict())
    with pytest.raises(libmoe.InvalidArgumentError, match="config"):
        model.save_pretrained(tmp_path / "none")
    model.save_pretrained(tmp_path / "given", config=config)
    assert tensors(tmp_path / "given").keys() == tensors(FOLDERS / "llama").keys()


def test_defaults_and_tokenizer_are_the_folders() -> None:
    model = loaded("mixtral")
    assert model.sampling == libmoe.Sampling(
        temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.1, end_tokens=(2, 3)
    )
    text = "".join(model.write("the cat", 20, seed=1))
    assert text == "".join(model.write("the cat", 20, seed=1))
    assert loaded("llama").tokenizer.encode("the") == model.tokenizer.encode("the")


def test_what_a_folder_holds() -> None:
    info = libmoe.describe_pretrained(FOLDERS / "glm4_moe")
    read = {name: t for name, t in tensors(FOLDERS / "glm4_moe").items() if ".layers.3." not in name}
    assert info.model_type == "glm4_moe" and info.dtype == "f32"
    assert (info.n_layers, info.n_moe_layers, info.n_experts, info.top_k) == (3, 2, 6, 2)
    assert info.n_left_tensors == 2 and "model.layers.3." in info.left_tensors
    assert info.n_parameters == sum(t.size for t in read.values())
    unused = 2 * 4 * 3 * 8 * 32  # two layers, four experts that a token does not use, three matrices
    assert info.n_active == info.n_parameters - unused
    assert info.file_bytes == 4 * info.n_parameters


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (
            lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
            "the index names.*model-00002-of-00003",
        ),
        (lambda f: changed(f, model_type="mamba"), "mamba"),
        (lambda f: changed(f, hidden_act="gelu"), "hidden_act"),
        (lambda f: changed(f, num_hidden_layers=2), "num_hidden_layers = 2, but the files have 3"),
        (lambda f: changed(f, num_hidden_layers=4), "num_hidden_layers = 4, but the files have 3"),
        (lambda f: changed(f, vocab_size=79), "embed_tokens"),
        (lambda f: changed(f, intermediate_size=11), "model.layers.0.block_sparse_moe.experts.0.w"),
        (lambda f: changed(f, never_heard_of=1), "never_heard_of"),
        (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, spoil: Any, says: str) -> None:
    folder = tmp_path / "mixtral"
    shutil.copytree(FOLDERS / "mixtral", folder)
    spoil(folder)
    with libmoe.Context(1) as context:
        with pytest.raises((libmoe.InvalidArgumentError, libmoe.FileError), match=says):
            libmoe.Model.from_pretrained(folder, context=context)
        assert context.memory()[0] == 0 or context.memory()[0] < 100_000


def changed(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
