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
from child import ENVIRONMENT
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import libmoe
from arrays import normal

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
    assert (checkpoint["b"] == numbers.view(np.uint16)).all()
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
    "misaligned": ({"a": entry(0, 1, [1], "U8"), "b": entry(1, 5, [1])}, bytes(5), "b: not aligned"),
    "dtype": ({"a": entry(0, 8, [1], "C64")}, bytes(8), "dtype"),
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
        (np.zeros(2, np.complex64), TypeError),
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
