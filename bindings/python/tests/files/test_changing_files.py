"""Files that change while they are open: a status where the system allows one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  safetensors asks numpy for bfloat16 by name
import numpy as np
import pytest

import libmoe
from arrays import normal
from child import ENVIRONMENT

SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "n_experts": 4, "top_k": 2}
LAYER = libmoe.Layer(**SIZES, seed=3)


# ---- files that change while they are open


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def overwrite(path: Path) -> None:
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [cut, overwrite])
def test_a_file_that_changes_while_it_is_open(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "layer"
    LAYER.save(path)
    libmoe.save(tmp_path / "b", {"b": libmoe.to_bfloat16(normal(5))})
    other = libmoe.Layer(**SIZES, seed=4)
    expected = other.state_dict()
    away = libmoe.Layer(**SIZES, unallocated="expert_weights", inference_only=True)
    checkpoint, small = libmoe.Checkpoint(path), libmoe.Checkpoint(tmp_path / "b")
    change(path)
    change(tmp_path / "b")
    message = "cut short|changed since it was opened"
    with pytest.raises(libmoe.FileError, match=message):
        other.load(checkpoint)
    for name, values in other.state_dict().items():
        np.testing.assert_array_equal(values, expected[name])
    with pytest.raises(libmoe.FileError, match=message):
        away.offload(checkpoint, resident_limit=1 << 20)
    for reads in (small.__getitem__, small.raw):
        with pytest.raises(libmoe.FileError, match=message):
            reads("b")
    # Opened again it is another file, or a damaged one.
    if change is overwrite:
        other.load(libmoe.Checkpoint(path))
    else:
        with pytest.raises(libmoe.InvalidArgumentError, match="cut short, fetch or copy it again"):
            libmoe.Checkpoint(path)


def test_an_offloaded_layer_notices(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    LAYER.save(path)
    layer = libmoe.Layer(**SIZES, unallocated="expert_weights", inference_only=True)
    layer.offload(path, resident_limit=1600)
    overwrite(path)
    with pytest.raises(libmoe.FileError, match="changed since it was opened"):
        for seed in range(20):
            layer(normal(30, 8, seed=seed))


def test_a_header_that_changes_while_it_is_opened(tmp_path: Path) -> None:
    """Another process overwrites a file in place again and again, with headers of other lengths.

    It rests for a moment after some of its turns: else a slow reader would find no whole file.
    """
    path, stop = tmp_path / "file", tmp_path / "stop"
    index = tmp_path / "i.json"
    code = """
import json, time
path, stop, index = map(Path, sys.argv[1:])
def file(names):
    tensors = {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in names}
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text
states = [file([c * n for c in "abcd"]) for n in (1, 3000, 40, 900)]
def listing(n):
    return ('{"weight_map": {' + ",".join('"%s": "file"' % (c * n) for c in "abcd") + "}}").encode()
maps = [listing(n) for n in (1, 3000, 40)]
path.write_bytes(states[0]); index.write_bytes(maps[0])
print("ready", flush=True)
n = 0
with path.open("r+b", buffering=0) as out, index.open("r+b", buffering=0) as listed:
    while not stop.exists():
        for handle, texts in ((out, states), (listed, maps)):
            handle.seek(0); handle.write(texts[n % len(texts)])
            handle.truncate()
        n += 1
        if n % 16 == 0:
            time.sleep(0.001)
"""
    command = [
        sys.executable,
        "-c",
        "import sys\nfrom pathlib import Path\n" + code,
        str(path),
        str(stop),
        str(index),
    ]
    writer = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    found = {"opened": 0, "refused": 0}
    for turn in range(3000):
        try:
            with libmoe.Checkpoint(path if turn % 2 else index) as checkpoint:
                assert all(len(set(name)) == 1 for name in checkpoint)
            found["opened"] += 1
        except (libmoe.InvalidArgumentError, libmoe.FileError):
            found["refused"] += 1
    stop.touch()
    assert writer.wait() == 0
    assert found["opened"] > 0 and sum(found.values()) == 3000
