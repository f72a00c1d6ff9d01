"""Checkpoints in several files: written as transformers reads them, and never half."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import libmoe
from arrays import normal
from child import ENVIRONMENT

INDEX = "model.safetensors.index.json"


def read(path: Path) -> dict[str, Any]:
    """Load by the index as transformers does: file after file, each with just what the map says."""
    index = json.loads(path.read_text())
    tensors: dict[str, Any] = {}
    for name in sorted(set(index["weight_map"].values())):
        shard = load_file(path.parent / name)
        assert set(shard) == {t for t, file in index["weight_map"].items() if file == name}
        tensors |= shard
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in tensors.values())}
    return tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def shards(count: int, generation: str = "") -> list[str]:
    return [f"model{generation}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]


def test_they_read_our_shards(tmp_path: Path) -> None:
    arrays = {f"t{n}": normal(n, seed=n) for n in (3, 5, 0, 4, 20, 1)}
    arrays |= {"bytes": np.arange(7, dtype=np.uint8), 'a "name" \\ ÄÖ\n': normal(2, 2)}
    for size, files in ((1, 7), (32, 4), (40, 4), (1000, 1), (2**62, 1)):
        folder = tmp_path / str(size)
        folder.mkdir()
        libmoe.save(folder / INDEX, arrays, max_shard_size=size)
        assert names(folder) == sorted([*shards(files), INDEX])
        found = read(folder / INDEX)
        with libmoe.Checkpoint(folder / INDEX) as checkpoint:
            assert found.keys() == arrays.keys() == set(checkpoint)
            for name, array in arrays.items():
                assert found[name].shape == array.shape and found[name].tobytes() == array.tobytes()
                assert checkpoint[name].tobytes() == array.tobytes()
        for path in folder.glob("*.safetensors"):
            held = load_file(path)
            assert (
                sum(t.nbytes > 0 for t in held.values()) == 1 or sum(t.nbytes for t in held.values()) <= size
            )


def test_no_tensors_need_no_shards(tmp_path: Path) -> None:
    libmoe.save(tmp_path / INDEX, {}, max_shard_size=10)
    assert names(tmp_path) == [INDEX] and read(tmp_path / INDEX) == {}
    assert len(libmoe.Checkpoint(tmp_path / INDEX)) == 0


def test_a_set_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    foreign = [
        "model-00001-of-00002.safetensors.old",
        "modelling-00001-of-00002.safetensors",
        "x.safetensors",
    ]
    for name in foreign:
        (tmp_path / name).write_bytes(b"not ours")
    for turn, generation in enumerate(["", ".1", "", ".1"]):
        libmoe.save(path, {f"t{n}": np.full(4, turn, np.float32) for n in range(2)}, max_shard_size=16)
        assert names(tmp_path) == sorted([*foreign, *shards(2, generation), INDEX])
        assert all((array == turn).all() for array in read(path).values())
    # Another number of shards does not stand in the way.
    libmoe.save(path, {"a": normal(3)}, max_shard_size=16)
    assert names(tmp_path) == sorted([*foreign, *shards(1), INDEX])
    # An index from elsewhere may name what is no shard, or no file of the folder: that stays.
    listed = {"a": "x.safetensors", "b": "../outside-00001-of-00001.safetensors", "c": foreign[1]}
    (tmp_path.parent / "outside-00001-of-00001.safetensors").write_bytes(b"")
    path.write_text(json.dumps({"weight_map": listed}))
    libmoe.save(path, {"a": normal(3)}, max_shard_size=16)
    assert names(tmp_path) == sorted([*foreign, *shards(1), *shards(1, ".1"), INDEX])
    assert (tmp_path.parent / "outside-00001-of-00001.safetensors").exists()
    # An index whose shards are missing: its names are free, and what gets them stays.
    path.write_text(json.dumps({"weight_map": {"a": shards(2)[0], "b": shards(2)[1]}}))
    libmoe.save(path, {"a": normal(3), "b": normal(3, seed=1)}, max_shard_size=16)
    assert len(read(path)) == 2
    # What is no index is replaced.
    path.write_text("{")
    libmoe.save(path, {"a": normal(3)}, max_shard_size=16)
    assert (read(path)["a"] == normal(3)).all()


def test_a_set_may_be_written_over_itself(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    libmoe.save(path, {"a": normal(3), "b": normal(4)}, max_shard_size=12)
    with libmoe.Checkpoint(path) as checkpoint:
        libmoe.save(path, dict(checkpoint), max_shard_size=12)
    assert (read(path)["b"] == normal(4)).all()


def test_layers_in_shards(tmp_path: Path) -> None:
    with libmoe.Context(n_threads=1) as context:
        one = libmoe.Layer(16, 32, 4, 2, expert_kind="gated", seed=1, context=context)
        two = libmoe.Layer(16, 32, 4, 2, expert_kind="gated", seed=2, context=context)
        one.save(tmp_path / "one", layer=3)
        one.save(tmp_path / INDEX, layer=3, max_shard_size=6000)
        expected = load_file(tmp_path / "one")
        found = read(tmp_path / INDEX)
        assert len(list(tmp_path.glob("model-*"))) > 2
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)
        two.load(libmoe.Checkpoint(tmp_path / INDEX, context=context), layer=3)
        for name, parameter in one.parameters.items():
            assert (two.parameters[name].data == parameter.data).all()


def test_what_is_refused_leaves_the_old_set(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    libmoe.save(path, {"a": normal(3), "b": normal(4)}, max_shard_size=12)
    before = names(tmp_path)
    for tensors in ({"a": normal(3), "": normal(3)}, {"a": normal(3), "__metadata__": normal(3)}):
        with pytest.raises(libmoe.InvalidArgumentError):
            libmoe.save(path, tensors, max_shard_size=12)
    for name in ("model.safetensors", "model.json", ".safetensors.index.json", "no/" + INDEX):
        with pytest.raises((libmoe.InvalidArgumentError, libmoe.FileError)):
            libmoe.save(tmp_path / name, {"a": normal(3)}, max_shard_size=12)
    for size in (-1, 2**64):
        with pytest.raises(libmoe.InvalidArgumentError, match="max_shard_size"):
            libmoe.save(path, {"a": normal(3)}, max_shard_size=size)
    many = {f"t{n}": np.zeros(1, np.uint8) for n in range(100_000)}
    with pytest.raises(libmoe.InvalidArgumentError, match="max_shard_size = 1 makes 100000 files"):
        libmoe.save(path, many, max_shard_size=1)
    assert names(tmp_path) == before
    assert (read(path)["b"] == normal(4)).all()
    # The index cannot be put in place: the shards, which were, go again.
    (tmp_path / "folder.safetensors.index.json").mkdir()
    with pytest.raises(libmoe.FileError, match="Is a directory"):
        libmoe.save(tmp_path / "folder.safetensors.index.json", {"a": normal(3)}, max_shard_size=12)
    assert names(tmp_path) == sorted([*before, "folder.safetensors.index.json"])


SAVES = """
import sys, numpy, libmoe
arrays = [numpy.full(1 << 18, n, numpy.float32) for n in range(8)]
n = int(sys.argv[2])
while True:
    libmoe.save(sys.argv[1], {name: arrays[n % 8] for name in "abc"}, max_shard_size=1 << (20 + n % 2))
    print("saved", flush=True)
    n += 1
"""


def test_killed_at_any_moment_there_is_a_whole_set(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    seen = set()
    for turn, delay in enumerate(np.random.default_rng(0).uniform(0, 0.03, 12)):
        command = [sys.executable, "-c", SAVES, str(path), str(turn)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT)
        assert process.stdout is not None and process.stdout.readline() == b"saved\n"
        time.sleep(delay)
        process.kill()
        process.communicate()
        found = read(path)
        assert found.keys() == set("abc") and all(array.shape == (1 << 18,) for array in found.values())
        values = {float(value) for array in found.values() for value in np.unique(array)}
        assert len(values) == 1
        seen |= values
    assert len(seen) > 1  # it was killed at different moments,
    named = {*json.loads(path.read_text())["weight_map"].values(), INDEX}
    assert set(names(tmp_path)) - named  # and in the middle of a set
