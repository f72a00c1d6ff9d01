"""Training with parameters and optimiser states in mapped files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from arrays import normal
from child import ENVIRONMENT
from comparison import assert_all_same_bits

H, WIDTH, E, K = 12, 20, 6, 2
SIZES: dict[str, Any] = {"hidden_size": H, "intermediate_size": WIDTH, "n_experts": E, "top_k": K, "seed": 7}
KINDS: dict[str, dict[str, Any]] = {
    "f32": {"expert_kind": "gated", "n_shared_experts": 1},
    "bf16": {"weight_dtype": "bf16"},
}


def steps(layer: libmoe.Layer, optimizer: libmoe.AdamW, numbers: range) -> None:
    tape = layer.tape()
    for step in numbers:
        y = layer.forward(normal(30, H, seed=step), tape=tape, training=True, step=step).y
        layer.zero_grad()
        layer.backward(tape, y)
        optimizer.step(max_norm=1.0)


def mapped(folder: Path, kind: str) -> tuple[libmoe.Layer, libmoe.AdamW, list[libmoe.MappedFile]]:
    """A layer and its optimiser in files of the folder; new files are zeros."""
    layer = libmoe.Layer(**SIZES, **KINDS[kind], unallocated="expert_weights")
    twin = libmoe.Layer(**SIZES, **KINDS[kind])  # for the shapes
    files = []
    for name, parameter in twin.parameters.items():
        values = parameter.data
        if values.ndim < 3 or name.startswith("shared"):
            continue
        file = libmoe.MappedFile(folder / name, values.nbytes + 4 * values.size)
        data = file.data[: values.nbytes].view(values.dtype).reshape(values.shape)
        grad = file.data[values.nbytes :].view(np.float32).reshape(values.shape)
        layer.bind(name, data, grad)
        files.append(file)
    optimizer = libmoe.AdamW(layer.parameters, unallocated_state=True)
    files.append(libmoe.MappedFile(folder / "state", optimizer.state_size))
    optimizer.bind_state(files[-1].data)
    return layer, optimizer, files


def first_half(folder: Path, kind: str) -> None:
    layer, optimizer, files = mapped(folder, kind)
    layer.initialize()
    steps(layer, optimizer, range(3))
    for file in files:
        file.flush()
    state: Any = {"layers": [layer], "optimizers": [optimizer], "without_unallocated": True}
    libmoe.save_training(folder / "small", step=3, **state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_in_another_process(kind: str, tmp_path: Path) -> None:
    whole = libmoe.Layer(**SIZES, **KINDS[kind])
    steps(whole, libmoe.AdamW(whole.parameters), range(6))

    code = "import sys, pathlib, test_mapped; test_mapped.first_half(pathlib.Path(sys.argv[1]), sys.argv[2])"
    command = [sys.executable, "-c", code, str(tmp_path), kind]
    subprocess.run(command, check=True, cwd=Path(__file__).parent, env=ENVIRONMENT)
    layer, optimizer, _ = mapped(tmp_path, kind)
    state: Any = {"layers": [layer], "optimizers": [optimizer], "without_unallocated": True}
    step = libmoe.load_training(tmp_path / "small", **state)
    assert step == 3
    assert not any(
        "experts" in name and name.endswith("weight") for name in libmoe.Checkpoint(tmp_path / "small")
    )
    steps(layer, optimizer, range(step, 6))
    assert_all_same_bits(layer.state_dict(), whole.state_dict())


def test_initial_values_and_memory(tmp_path: Path) -> None:
    with libmoe.Context(n_threads=1) as context:
        whole = libmoe.Layer(**SIZES, context=context)
        twin_bytes = context.memory()[0]
    with libmoe.Context(n_threads=1) as context:
        layer = libmoe.Layer(**SIZES, unallocated="expert_weights", context=context)
        matrices = [p.data for name, p in whole.parameters.items() if p.data.ndim == 3]
        assert twin_bytes - context.memory()[0] == sum(2 * array.nbytes for array in matrices)
    for name in ("up", "down"):
        shape = whole.parameters[f"experts.{name}.weight"].data.shape
        layer.bind(f"experts.{name}.weight", np.full(shape, 9, np.float32), np.ones(shape, np.float32))
    layer.initialize()
    for name, values in whole.state_dict().items():
        np.testing.assert_array_equal(layer.state_dict()[name], values)
        assert not layer.parameters[name].grad.any()


@pytest.mark.parametrize("state_dtype", ["f32", "bf16"])
def test_steps_of_bound_matrices_without_gradients(state_dtype: Any) -> None:
    """Values are the caller's, gradients exist expert by expert, the state is the caller's too."""
    usual = libmoe.Layer(**SIZES)
    reference = libmoe.AdamW(usual.parameters, 0.01, state_dtype=state_dtype, seed=3)
    layer = libmoe.Layer(**SIZES, unallocated=("expert_gradients", "expert_weights"))
    for name, values in usual.state_dict().items():
        if values.ndim == 3:
            layer.bind(name, np.zeros_like(values))
    layer.initialize()
    optimizer = libmoe.AdamW(layer.parameters, 0.01, state_dtype=state_dtype, seed=3, unallocated_state=True)
    state = np.zeros(optimizer.state_size, np.uint8)
    tapes = usual.tape(), layer.tape()
    for step in range(2):
        x, dy = normal(9, H, seed=step), normal(9, H, seed=step + 10)
        for each, tape in zip((usual, layer), tapes):
            each.forward(x, tape=tape)
        usual.zero_grad()
        usual.backward(tapes[0], dy)
        reference.step()
        if step == 0:
            with pytest.raises(libmoe.BadStateError, match="unallocated_state"):
                layer.backward(tapes[1], dy, optimizer=optimizer)
            optimizer.bind_state(state)
        layer.backward(tapes[1], dy, optimizer=optimizer)
    assert state.any()
    assert_all_same_bits(layer.state_dict(), usual.state_dict())


def test_gradients_that_are_not_bound() -> None:
    layer = libmoe.Layer(**SIZES, unallocated="expert_weights")
    layer.bind("experts.up.weight", normal(E, WIDTH, H))
    layer.bind("experts.down.weight", normal(E, H, WIDTH), np.zeros((E, H, WIDTH), np.float32))
    tape = layer.tape()
    y = layer.forward(normal(3, H), tape=tape).y
    with pytest.raises(libmoe.BadStateError, match=r"experts.up.weight has no memory for its gradient"):
        layer.backward(tape, y)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with libmoe.MappedFile(path, 100) as file:
        assert not file.data.any() and file.data.shape == (100,)
        kept = file.data
        kept[7] = 5
        file.flush()
    assert path.read_bytes()[7] == 5 and path.stat().st_size == 100
    kept[8] = 6  # the array keeps the mapping
    with libmoe.MappedFile(path, 100) as file:
        assert list(file.data[6:10]) == [0, 5, 6, 0]
    with pytest.raises(libmoe.InvalidArgumentError, match=r"size = 99, but the file has 100 bytes: .*/a"):
        libmoe.MappedFile(path, 99)
    with pytest.raises(libmoe.InvalidArgumentError, match="size = 0"):
        libmoe.MappedFile(path, 0)
    with pytest.raises(libmoe.InvalidArgumentError, match="size"):
        libmoe.MappedFile(path, 1 << 63)
    with pytest.raises(libmoe.FileError):
        libmoe.MappedFile(tmp_path, 4096)
    with pytest.raises(libmoe.FileError, match="No such file"):
        libmoe.MappedFile(tmp_path / "no" / "a", 100)
    with pytest.raises((libmoe.FileError, libmoe.OutOfMemoryError)):
        libmoe.MappedFile(tmp_path / "huge", 1 << 60)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a"]


def test_states() -> None:
    numbers = libmoe.Parameter(normal(10), normal(10, seed=1))
    optimizer = libmoe.AdamW([numbers], unallocated_state=True)
    assert optimizer.state_size == 80
    with pytest.raises(libmoe.BadStateError, match="unallocated_state"):
        optimizer.step()
    with pytest.raises(libmoe.BadStateError, match="unallocated_state"):
        libmoe.save_training("/dev/null/a", step=0, optimizers=[optimizer])
    with pytest.raises(libmoe.InvalidArgumentError, match="size = 79, but the state has 80 bytes"):
        optimizer.bind_state(np.zeros(79, np.uint8))
    with pytest.raises(libmoe.BadStateError, match="memory of its own"):
        libmoe.SGD([numbers]).bind_state(np.zeros(80, np.uint8))
    state = np.zeros(20, np.float32)
    optimizer.bind_state(state)
    optimizer.step()
    assert (state != 0).all()
