"""Caches in files: what is read behind them has the bits that it would have had."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  numpy's bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file

import libmoe
from small_language_models import CASES, LANGUAGE, MOE, made

CACHED = [name for name, case in CASES.items() if "vocabulary_size" in case]


def padded(random: np.random.Generator) -> tuple[Any, Any]:
    tokens = random.integers(0, 17, (3, 5)).astype(np.int32)
    valid = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
    return tokens, valid


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("room", [None, 6, 9])
@pytest.mark.parametrize("weight_dtype", ["f32", "bf16"])
def test_what_is_read_next(name: str, room: int | None, weight_dtype: str, tmp_path: Path) -> None:
    if name == "long rotary":
        room = None  # it would choose the other form
    model = made({"head_size": 4, **CASES[name], "weight_dtype": weight_dtype}, libmoe.Context(2))
    random = np.random.default_rng(1)
    tokens, valid = padded(random)
    cache = model.cache(3, 8)
    model.read(cache, tokens, valid_mask=valid)
    cache.save(tmp_path / "cache.safetensors")
    again = libmoe.Cache.load(model, tmp_path / "cache.safetensors", max_length=room)
    assert (again.n_sequences, again.max_length, again.length) == (3, room or 8, 5)
    step = np.array([[1], [2], [3]], np.int32)
    np.testing.assert_array_equal(model.read(again, step), model.read(cache, step))
    for each in (cache, again):
        each.truncate(3)
    np.testing.assert_array_equal(model.read(again, step), model.read(cache, step))


@pytest.mark.parametrize("name", CACHED)
def test_each_token_has_a_row(name: str, tmp_path: Path) -> None:
    model = made({"head_size": 4, **CASES[name]}, libmoe.Context(2))
    tokens = np.array([[1, 2, 3]], np.int32)
    files = []
    for n in (2, 3):
        cache = model.cache(1, 8)
        model.read(cache, tokens[:, :n])
        cache.save(tmp_path / "cache.safetensors")
        files.append(load_file(tmp_path / "cache.safetensors"))
    layers = [tensor for tensor in files[0] if tensor.startswith("layers.")]
    assert layers
    for tensor in layers:
        assert len(files[1][tensor]) == 3
        np.testing.assert_array_equal(files[1][tensor][:2], files[0][tensor])


def test_the_cache_of_another_processor(tmp_path: Path) -> None:
    """Where attention multiplies pairs of bfloat16 a cache holds these; elsewhere floats, rounded later."""
    arguments = {"head_size": 4, **CASES["language"], "weight_dtype": "bf16"}
    contexts = libmoe.Context(2), libmoe.Context(2, instructions="avx2")
    here, there = (made(arguments, context) for context in contexts)
    floats, pairs = tmp_path / "floats.safetensors", tmp_path / "pairs.safetensors"
    cache = there.cache(1, 8)
    there.read(cache, np.array([[1, 2, 3]], np.int32))
    cache.save(floats)
    libmoe.Cache.load(here, floats).save(pairs)
    has_pairs = "bf16" in contexts[0].build_info()
    before, after = load_file(floats), load_file(pairs)
    for tensor in before:
        if tensor.startswith("layers."):
            assert after[tensor].dtype.name == ("bfloat16" if has_pairs else "float32")
            kept = before[tensor]
            if has_pairs:
                kept = libmoe.from_bfloat16(libmoe.to_bfloat16(kept))
            np.testing.assert_array_equal(after[tensor].astype(np.float32), kept)
    step = np.array([[4]], np.int32)
    for model in (here, there):
        first, second = (libmoe.Cache.load(model, path) for path in (floats, pairs))
        np.testing.assert_array_equal(model.read(first, step), model.read(second, step))


def test_a_cache_from_before_the_weights_were_prepared(tmp_path: Path) -> None:
    context = libmoe.Context(2)
    arguments = {**CASES["language"], "head_size": 4, "weight_dtype": "bf16", "inference_only": True}
    model = made(arguments, context)
    tokens = np.array([[1, 2, 3]], np.int32)
    cache = model.cache(1, 8)
    model.prepare("int8_a8")
    expected = model.read(model.cache(1, 8), tokens)
    logits = model.forward(tokens, logits=True).logits
    assert logits is not None
    np.testing.assert_array_equal(logits[:, -1], expected)
    if "bf16" in context.build_info():
        for use in (lambda: model.read(cache, tokens), lambda: list(model.generate(tokens, 2, cache=cache))):
            with pytest.raises(libmoe.BadStateError, match="made before the weights were prepared"):
                use()
    else:
        np.testing.assert_array_equal(model.read(cache, tokens), expected)


def test_an_empty_cache(tmp_path: Path) -> None:
    model = made(CASES["language"], libmoe.Context(1))
    path = tmp_path / "cache.safetensors"
    model.cache(2, 4).save(path)
    again = libmoe.Cache.load(model, path)
    tokens = np.array([[1, 2], [3, 4]], np.int32)
    np.testing.assert_array_equal(model.read(again, tokens), model.read(model.cache(2, 4), tokens))


def saved(path: Path, arguments: dict[str, Any] = CASES["language"]) -> libmoe.Model:
    model = made(arguments, libmoe.Context(1))
    cache = model.cache(2, 4)
    model.read(cache, np.array([[1, 2], [3, 4]], np.int32))
    cache.save(path)
    return model


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"n_layers": 4}, r"layers.3.keys: the file does not have it"),
        ({"n_layers": 2}, "8 tensors in the file, a cache of this model has 6"),
        ({"n_heads": 6, "head_size": 2}, None),
        ({"head_size": 8}, r"layers.0.keys: \[4, 12\] in the file, \[4, 24\] in a cache of this model"),
    ],
)
def test_another_models_cache(change: dict[str, Any], text: str | None, tmp_path: Path) -> None:
    """What has the same keys is another model's as well, but that cannot be seen."""
    path = tmp_path / "cache.safetensors"
    saved(path)
    other = made({**LANGUAGE, "moe": MOE, **change}, libmoe.Context(1))
    if text is None:
        libmoe.Cache.load(other, path)
        return
    with pytest.raises(libmoe.InvalidArgumentError, match=text):
        libmoe.Cache.load(other, path)


def test_what_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    model = saved(path)
    whole = path.read_bytes()
    with pytest.raises(libmoe.FileError, match="nothing.safetensors"):
        libmoe.Cache.load(model, tmp_path / "nothing.safetensors")
    with pytest.raises(libmoe.InvalidArgumentError, match="max_length = 1 is below the 2 tokens"):
        libmoe.Cache.load(model, path, max_length=1)
    with pytest.raises(libmoe.InvalidArgumentError, match="max_length = 0 is below 1"):
        libmoe.Cache.load(model, path, max_length=0)
    for count in range(0, len(whole), 37):
        path.write_bytes(whole[:count])
        with pytest.raises(libmoe.MoeError, match="cache.safetensors"):
            libmoe.Cache.load(model, path)
    tensors = {"a": np.zeros(3, np.float32)}
    libmoe.save(path, tensors)
    with pytest.raises(
        libmoe.InvalidArgumentError, match="sizes: the file does not have it, so it is no cache"
    ):
        libmoe.Cache.load(model, path)


@pytest.mark.parametrize(
    ("at", "number", "text"),
    [
        (0, -1, "sizes: -1 tokens of at most 4 is no cache's"),
        (0, 5, "sizes: 5 tokens of at most 4 is no cache's"),
        (0, 3, "valid: a cache has one number for each of 3 tokens"),
        (8, 2**62, "is no cache's"),
        (8, 2**31 - 1, r"n_sequences \* max_length"),
    ],
)
def test_sizes_that_lie(at: int, number: int, text: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    model = saved(path)
    content = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]  # sizes have the largest elements, so they are first
    content[start + at : start + at + 8] = struct.pack("<q", number)
    path.write_bytes(content)
    with pytest.raises(libmoe.InvalidArgumentError, match=text):
        libmoe.Cache.load(model, path)


def test_a_mask_of_other_numbers(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    model = saved(path)
    content = bytearray(path.read_bytes())
    content[-1] = 2  # bytes are last
    path.write_bytes(content)
    with pytest.raises(libmoe.InvalidArgumentError, match="valid: a number is neither 0 nor 1"):
        libmoe.Cache.load(model, path)
    content[-1] = 0  # a token fewer than there are keys
    path.write_bytes(content)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"layers.0.keys: \[.*\] in the file, "):
        libmoe.Cache.load(model, path)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    model = made(CASES["language"], libmoe.Context(1))
    with pytest.raises(libmoe.FileError, match="none"):
        model.cache(1, 2).save(tmp_path / "none" / "cache.safetensors")
    assert not list(tmp_path.iterdir())
