"""safetensors files beside the format's own library: both read what the other writes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import libmoe
from arrays import normal
from child import ENVIRONMENT

DTYPES = ["f4", "f2", "f8", "i8", "i4", "i2", "i1", "u8", "u4", "u1", "?"]


def some(dtype: str) -> np.ndarray[Any, Any]:
    return (np.arange(-9, 9).reshape(3, 1, 6) * 1.25).astype(dtype)


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_their_files_are_read(tmp_path: Path) -> None:
    arrays = {f"a.{dtype}": some(dtype) for dtype in DTYPES}
    arrays |= {
        "empty": np.zeros((3, 0), np.float32),
        "scalar": np.array(2.5),
        'a "name" \\ ÄÖ \U0001f600\n': some("f4"),
    }
    save_file(arrays, tmp_path / "a.safetensors", metadata={"who": "them"})
    with libmoe.Checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert list(checkpoint) == sorted(arrays, key=str.encode)
        for name, array in arrays.items():
            assert name in checkpoint
            assert checkpoint[name].dtype == array.dtype and checkpoint[name].shape == array.shape
            assert checkpoint[name].tobytes() == array.tobytes()
        assert "other" not in checkpoint and 3 not in checkpoint
        with pytest.raises(KeyError, match="other"):
            checkpoint["other"]
        assert checkpoint.dtype("a.f2") == "f16" and checkpoint.dtype("a.?") == "bool"


def test_they_read_ours(tmp_path: Path) -> None:
    arrays = {f"a.{dtype}": some(dtype) for dtype in DTYPES}
    arrays |= {"empty": np.zeros((0, 2), np.float32), 'a "name" \\ ÄÖ \U0001f600\n\x01': some("f4")}
    libmoe.save(tmp_path / "a.safetensors", arrays)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_bfloat16_both_ways(tmp_path: Path) -> None:
    numbers = normal(4, 5).astype(ml_dtypes.bfloat16)
    save_file({"b": numbers}, tmp_path / "theirs")
    checkpoint = libmoe.Checkpoint(tmp_path / "theirs")
    assert checkpoint.dtype("b") == "bf16"
    assert (checkpoint.raw("b") == numbers.view(np.uint16)).all()
    values = checkpoint["b"]
    assert values.dtype == np.float32 and (values == numbers.astype(np.float32)).all()
    libmoe.save(tmp_path / "ours", {"b": numbers.view(np.uint16)})
    assert (load_file(tmp_path / "ours")["b"] == numbers).all()


def test_nothing_is_copied_and_arrays_keep_the_file(tmp_path: Path) -> None:
    libmoe.save(tmp_path / "a", {"a": normal(3, 4)})
    checkpoint = libmoe.Checkpoint(tmp_path / "a")
    one, two = checkpoint["a"], checkpoint["a"]
    assert one.ctypes.data == two.ctypes.data and not one.flags.writeable
    checkpoint.close()
    libmoe.save(tmp_path / "a", {"a": normal(3, 4, seed=1)})
    assert (one == normal(3, 4)).all()
    with pytest.raises(libmoe.BadStateError):
        checkpoint["a"]


def test_shards(tmp_path: Path) -> None:
    arrays = {f"t{n}": normal(n + 1, seed=n) for n in range(6)}
    for shard in range(3):
        save_file({name: arrays[name] for name in list(arrays)[shard::3]}, tmp_path / f"{shard}.safetensors")
    index: dict[str, Any] = {"metadata": {"total_size": 84, "x": [1.5e3, -2, None, True, {"y": []}]}}
    index["weight_map"] = {name: f"{n % 3}.safetensors" for n, name in enumerate(arrays)}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    checkpoint = libmoe.Checkpoint(path)
    assert list(checkpoint) == list(arrays)
    assert all((checkpoint[name] == arrays[name]).all() for name in arrays)

    def refused(changed: object, match: str) -> None:
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        with pytest.raises((libmoe.InvalidArgumentError, libmoe.FileError), match=match):
            libmoe.Checkpoint(path)

    refused({"weight_map": {"t1": "0.safetensors"}}, "t1: the index names it")
    refused({"weight_map": {"t0": "9.safetensors"}}, "No such file")
    for name in ("../0.safetensors", "/etc/passwd", "", ".", ".."):
        refused({"weight_map": {"t0": name}}, "weight_map")
    refused({}, "weight_map")
    refused('{"weight_map": {"t0": "0.safetensors", "t0": "0.safetensors"}}', "t0")
    refused('{"weight_map": {}, "weight_map": {}}', "weight_map")
    refused('{"metadata": ' + "[" * 40 + "]" * 40 + ', "weight_map": {}}', "nested")


HOSTILE: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12), "b: overlaps"),
    "gap": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12), "b: begins at 8"),
    "rest": ({"a": entry(0, 4, [1])}, bytes(8), "end at byte 4 of 8"),
    "beyond": ({"a": entry(0, 12, [3])}, bytes(8), "a: data_offsets"),
    "backwards": ({"a": entry(8, 0, [2])}, bytes(8), "a: data_offsets"),
    "other size": ({"a": entry(0, 8, [3])}, bytes(8), "hold 8 bytes"),
    "overflow": ({"a": entry(0, 0, [1 << 40, 1 << 40])}, b"", "63 bits"),
    "huge number": ({"a": entry(0, 1 << 64, [1])}, b"", "63 bits"),
    "negative": ({"a": entry(0, 4, [-1])}, bytes(4), "whole number"),
    "float": (b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', bytes(4), "whole number"),
    "exponent": (b'{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}', bytes(4), "whole number"),
    "leading zero": (b'{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}', bytes(4), "comma"),
    "dtype": ({"a": entry(0, 8, [1], "F32")}, bytes(8), "dtype and shape 4"),
    "rank": ({"a": entry(0, 4, [1] * 9)}, bytes(4), "8 dimensions"),
    "same name": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        bytes(2),
        "a: two tensors",
    ),
    "same key": (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b"", "once each"),
    "missing key": (b'{"a":{"dtype":"U8","shape":[0]}}', b"", "once each"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', b"", "metadata"),
    "metadata number": ({"__metadata__": {"a": 1}}, b"", "string"),
    "an array": ([], b"", "object"),
    "trailing comma": (b'{"__metadata__":{},}', b"", "string"),
    "goes on": (b"{} {}", b"", "goes on"),
    "no end": (b'{"a', b"", "no end"),
    "not UTF-8": (b'{"\xff":{}}', b"", "UTF-8"),
    "overlong UTF-8": (b'{"\xc0\x80":{}}', b"", "UTF-8"),
    "surrogate": (b'{"\\ud800":{}}', b"", "surrogate"),
    "character 0": (b'{"\\u0000":{}}', b"", "character 0"),
    "control character": (b'{"\n":{}}', b"", "control character"),
    "deep": (b'{"a":' + b"[" * 10000 + b"]" * 10000 + b"}", b"", "nested"),
    "deep objects": (b'{"a":' * 10000 + b"}" * 10000, b"", "nested"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_a_message(name: str, tmp_path: Path) -> None:
    header, data, message = HOSTILE[name]
    with pytest.raises(libmoe.InvalidArgumentError, match=message):
        libmoe.Checkpoint(write(tmp_path / "a", header, data))


def test_other_files_get_a_message(tmp_path: Path) -> None:
    for length, match in ((0, "0 bytes"), (7, "7 bytes"), (8, "header of")):
        (tmp_path / "short").write_bytes(b"\x01" + b"\0" * 7 if length == 8 else b"\0" * length)
        with pytest.raises(libmoe.InvalidArgumentError, match=match):
            libmoe.Checkpoint(tmp_path / "short")
    (tmp_path / "large").write_bytes(b"\xff" * 16)
    with pytest.raises(libmoe.InvalidArgumentError, match="more than 100000000"):
        libmoe.Checkpoint(tmp_path / "large")
    with pytest.raises(libmoe.FileError, match="No such file.*none") as missing:
        libmoe.Checkpoint(tmp_path / "none")
    assert missing.value.status == 6 and isinstance(missing.value, OSError)
    with pytest.raises(libmoe.FileError, match="Is a directory"):
        libmoe.Checkpoint(tmp_path)
    with pytest.raises(libmoe.FileError, match="No such file"):
        libmoe.save(tmp_path / "no" / "folder", {"a": normal(3)})
    with pytest.raises(ValueError, match="character 0"):
        libmoe.Checkpoint("a\0b")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    for array, error in (
        (normal(4, 4).T, ValueError),
        (np.zeros(2, np.complex128), TypeError),
        (3, TypeError),
    ):
        with pytest.raises(error):
            libmoe.save(tmp_path / "a", {"a": array})  # type: ignore[dict-item]
    with pytest.raises(libmoe.InvalidArgumentError, match="name"):
        libmoe.save(tmp_path / "a", {"": normal(3)})
    # The name of the metadata is taken: what would be written could not be read.
    with pytest.raises(libmoe.InvalidArgumentError):
        libmoe.save(tmp_path / "a", {"__metadata__": normal(3)})
    assert list(tmp_path.iterdir()) == []


SAVES = """
import sys, numpy, libmoe
arrays = [numpy.full(1 << 20, n, numpy.float32) for n in range(8)]
n = 0
while True:
    libmoe.save(sys.argv[1], {"a": arrays[n % 8], "b": arrays[n % 8]})
    n += 1
    if n == 1:
        print("ready", flush=True)
"""


def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    command = [sys.executable, "-c", SAVES, str(path)]
    delays = np.random.default_rng(0).uniform(0, 0.03, 12)
    seen = set()
    for delay in delays:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.kill()
        process.communicate()
        found = load_file(path)
        (value,) = {*np.unique(found["a"]), *np.unique(found["b"])}
        assert found["a"].shape == found["b"].shape == (1 << 20,)
        seen.add(float(value))
    assert len(seen) > 1  # it was killed at different moments,
    assert list(tmp_path.glob("state.safetensors.*.tmp"))  # and in the middle of a file


# ---- real files: types, addresses, names


def test_numbers_come_out_usable(tmp_path: Path) -> None:
    """Every value of the small types, as ml_dtypes has them; the natural copy into a parameter is right."""
    sixteen = np.arange(1 << 16, dtype=np.uint16)
    small: dict[str, Any] = {"b": sixteen.view(ml_dtypes.bfloat16)}
    for word in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        small[word] = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, word)).reshape(16, 16)
    libmoe.save(tmp_path / "a", small)
    checkpoint = libmoe.Checkpoint(tmp_path / "a")
    assert [checkpoint.dtype(name) for name in small] == ["bf16", "f8_e4m3", "f8_e5m2", "f8_e8m0"]
    for name, array in small.items():
        parameter = libmoe.Parameter(np.zeros(array.shape, np.float32))
        parameter.data[...] = checkpoint[name]
        np.testing.assert_array_equal(parameter.data, array.astype(np.float32))
        assert not checkpoint[name].flags.writeable and not checkpoint.raw(name).flags.writeable
        assert checkpoint.raw(name).tobytes() == array.tobytes()
        assert checkpoint.raw(name).shape == array.shape
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    libmoe.save(tmp_path / "h", {"h": half})
    assert libmoe.Checkpoint(tmp_path / "h")["h"].tobytes() == half.tobytes()


def types(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return {name: value["dtype"] for name, value in header.items() if name != "__metadata__"}


EVERY_TYPE = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}


def of_every_type(path: Path, first: int = 0) -> dict[str, bytes]:
    """A file with a tensor [2, 4] of every type, `first` bytes before them."""
    header: dict[str, Any] = {"__metadata__": None, "first": entry(0, first, [first], "U8")}
    contents, end = {"first": bytes(first)}, first
    for n, (word, size) in enumerate(EVERY_TYPE.items()):
        contents[word] = bytes((7 * i + n) % (2 if word == "BOOL" else 251) for i in range(8 * size))
        header[word] = entry(end, end + 8 * size, [2, 4], word)
        end += 8 * size
    for n, (word, size) in enumerate({"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.items()):
        contents[word] = bytes(range(n, n + size))
        header[word] = entry(end, end + size, [2, 4], word)
        end += size
    write(path, header, b"".join(contents.values()))
    return contents


@pytest.mark.parametrize("first", [0, 1, 2, 7])
def test_saved_again_a_tensor_is_what_it_was(first: int, tmp_path: Path) -> None:
    contents = of_every_type(tmp_path / "a", first)
    checkpoint = libmoe.Checkpoint(tmp_path / "a")
    assert set(checkpoint) == set(contents) and checkpoint.dtype("C64") == "c64"
    for name, data in contents.items():
        assert checkpoint.raw(name).tobytes() == data, name
    libmoe.save(tmp_path / "b", checkpoint)
    libmoe.save(tmp_path / "c", {name: checkpoint.raw(name) for name in checkpoint})
    usable = [name for name in checkpoint if name != "F4" and name[:2] != "F6" and name[-1] != "Z"]
    libmoe.save(tmp_path / "d", {name: checkpoint[name] for name in usable})
    libmoe.save(tmp_path / "e.safetensors.index.json", checkpoint, max_shard_size=100)
    for path in ("b", "c", "d", "e.safetensors.index.json"):
        again = libmoe.Checkpoint(tmp_path / path)
        assert set(again) == (set(usable) if path == "d" else set(contents))
        for name in again:
            assert again.raw(name).tobytes() == contents[name]
            assert again.dtype(name) == checkpoint.dtype(name)
        if path in "bcd":
            found = types(tmp_path / path)
            assert found == {name: "U8" if name == "first" else name for name in again}
    # What is computed from it is an array like others.
    doubled = checkpoint["F8_E4M3"] * 1
    libmoe.save(
        tmp_path / "f", {"a": doubled, "b": checkpoint["BF16"][1:].copy(), "c": checkpoint["BF16"][1:]}
    )
    assert types(tmp_path / "f") == {"a": "F32", "b": "F32", "c": "F32"}
    checkpoint.close()
    assert np.array_equal(doubled, libmoe.Checkpoint(tmp_path / "a")["F8_E4M3"], equal_nan=True)


def test_only_the_tensor_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    of_every_type(tmp_path / "a")
    checkpoint = libmoe.Checkpoint(tmp_path / "a")
    for name in ("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"):
        with pytest.raises(libmoe.InvalidArgumentError, match=f"{name}: its dtype is {name}"):
            checkpoint[name]
    pairs = np.frombuffer(checkpoint.raw("C64").tobytes(), np.complex64).reshape(2, 4)
    assert checkpoint["C64"].tobytes() == pairs.tobytes() and checkpoint["C64"].dtype == np.complex64
    layer = libmoe.Layer(4, 4, 2, 1)
    tensors = dict(layer.state_dict())
    layer.save(tmp_path / "l")
    for word, size in (("C64", 8), ("F4", 0.5), ("F6_E2M3", 0.75), ("F8_E4M3", 1), ("NEW", 3)):
        header, data = {}, b""
        for name, array in tensors.items():
            own = word if name == "router.weight" else "F32"
            more = bytes(int(array.size * size)) if own == word else array.tobytes()
            header[name] = entry(len(data), len(data) + len(more), list(array.shape), own)
            data += more
        file = write(tmp_path / word, header, data)
        with pytest.raises(
            libmoe.InvalidArgumentError, match=f"router.weight: {word} is none of F32, F16 and BF16"
        ):
            layer.load(file)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_layers_are_read_from_any_address(dtype: Any, tmp_path: Path) -> None:
    layer, other = (libmoe.Layer(6, 10, 3, 2, expert_kind="gated", seed=seed) for seed in (1, 2))
    state = {name: array.astype(dtype) for name, array in layer.state_dict().items()}
    word = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[np.dtype(dtype).name]
    header, data = {"odd": entry(0, 1, [1], "U8")}, b"x"
    for name, array in state.items():
        header[name] = entry(len(data), len(data) + array.nbytes, list(array.shape), word)
        data += array.tobytes()
    other.load(write(tmp_path / "a", header, data))
    for name, array in state.items():
        np.testing.assert_array_equal(other.parameters[name].data, array.astype(np.float32))
    away = libmoe.Layer(6, 10, 3, 2, expert_kind="gated", unallocated="expert_weights", inference_only=True)
    away.offload(tmp_path / "a", resident_limit=1 << 20)
    np.testing.assert_array_equal(away(normal(9, 6)), other(normal(9, 6)))
    checkpoint = libmoe.Checkpoint(tmp_path / "a")
    for name, array in state.items():
        assert checkpoint[name].flags.aligned
        np.testing.assert_array_equal(checkpoint[name], array.astype(np.float32))


SOMETHING_ELSE: dict[str, tuple[bytes, str]] = {
    "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML.*fetch it again"),
    "xml": (b"\n <Error><Code>AccessDenied</Code></Error>", "HTML or XML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "LFS.*git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(90), "gzip: decompress"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(90), "zstd: decompress"),
    "xz": (b"\xfd7zXZ\0" + bytes(90), "xz: decompress"),
    "bzip2": (b"BZh91AY&SY" + bytes(90), "bzip2: decompress"),
    "zip": (b"PK\x03\x04" + bytes(90), "zip archive, as torch.save"),
    "pickle": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(90), "pickle"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(90), "GGUF"),
    "npy": (b"\x93NUMPY\x01\0v\0{'descr'" + bytes(90), "numpy .npy"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5"),
    "tar": (b"model.bin" + bytes(248) + b"ustar\x0000" + bytes(300), "tar archive"),
    "json": (b'{"model_type": "mixtral"}', "JSON"),
    "text": (b"not found, try again later\n", "text"),
    "empty": (b"", "empty file, 0 bytes.*fetch it again"),
    "zeros": (bytes(4096), "zeros"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOMETHING_ELSE)
def test_something_else_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    data, message = SOMETHING_ELSE[name]
    for path in (tmp_path / "a.safetensors", tmp_path / "model.safetensors.index.json"):
        path.write_bytes(data)
        if name == "json" and path.suffix == ".json":
            message = "weight_map is expected"
        with pytest.raises(libmoe.InvalidArgumentError, match=message):
            libmoe.Checkpoint(path)
    # In the place of a shard, too.
    if name != "json":
        (tmp_path / "i.json").write_text('{"weight_map": {"a": "a.safetensors"}}')
        with pytest.raises(libmoe.InvalidArgumentError, match=message + ".*a.safetensors"):
            libmoe.Checkpoint(tmp_path / "i.json")


def test_what_is_known_by_its_first_bytes_is_not_guessed(tmp_path: Path) -> None:
    """A header whose length happens to begin like gzip is read."""
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    length = 0x00088B1F  # 1f 8b 08 00 ...
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + text.ljust(length) + b"\x07")
    assert libmoe.Checkpoint(tmp_path / "a")["a"].tolist() == [7]


def test_a_download_that_broke_off(tmp_path: Path) -> None:
    libmoe.save(tmp_path / "whole", {f"tensor.{n}": normal(50, seed=n) for n in range(10)})
    data = (tmp_path / "whole").read_bytes()
    for length in (9, 100, 700, len(data) - 1):
        (tmp_path / "part").write_bytes(data[:length])
        with pytest.raises(libmoe.InvalidArgumentError, match="cut short, fetch or copy it again"):
            libmoe.Checkpoint(tmp_path / "part")
    (tmp_path / "i.json").write_bytes(data)
    with pytest.raises(libmoe.InvalidArgumentError, match="a safetensors file, no index"):
        libmoe.Checkpoint(tmp_path / "i.json")
    with pytest.raises(libmoe.FileError, match="Is a directory; name a file in it"):
        libmoe.Checkpoint(tmp_path)


def test_a_missing_name_is_answered_with_what_there_is(tmp_path: Path) -> None:
    names = [
        f"model.language_model.layers.{n}.mlp.{part}.weight"
        for n in range(12)
        for part in ("gate", "up_proj")
    ]
    libmoe.save(
        tmp_path / "a", {name: normal(2) for name in [*names, "lm_head.weight", "model.embed_tokens.weight"]}
    )
    checkpoint = libmoe.Checkpoint(tmp_path / "a")
    for wanted, message in (
        ("model.layers.3.mlp.gate.weight", f"under another prefix it has {names[6]}"),
        ("layers.3.mlp.gate.weight", f"under another prefix it has {names[6]}"),
        ("language_model.model.layers.11.mlp.up_proj.weight", f"under another prefix it has {names[23]}"),
        ("embed_tokens.weight", "under another prefix it has model.embed_tokens.weight"),
        ("model.language_model.layers.3.mlp.gaet.weight", f"nearest name there is {names[6]}"),
        ("lm_head.weights", "nearest name there is lm_head.weight"),
        ("lm-head.weight", "nearest name there is lm_head.weight"),
        ("x", "nor one of a similar name"),
    ):
        with pytest.raises(KeyError, match=message):
            checkpoint[wanted]
        with pytest.raises(KeyError, match=message):
            checkpoint.raw(wanted)
        assert wanted not in checkpoint
    for odd in ("", "a\0b", "\ud800", "." * 300, "9" * 300, "x" * 5000):
        with pytest.raises(KeyError):
            checkpoint[odd]
    with pytest.raises(libmoe.InvalidArgumentError, match="nor one of a similar name|no such tensor"):
        libmoe.Layer(4, 4, 2, 1).load(checkpoint)
    assert repr(checkpoint) == f"Checkpoint({str(tmp_path / 'a')!r}, 26 tensors)"
    checkpoint.close()
    assert repr(checkpoint) == f"Checkpoint({str(tmp_path / 'a')!r}, closed)"
