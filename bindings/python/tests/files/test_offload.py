"""Experts in a file: the bits of the layer in memory, whatever the room, the form and the threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal
from child import ENVIRONMENT
from small_models import BLOCKS, FOLDER, MODELS, layout_of, make

H, WIDTH, E, K, T = 40, 48, 12, 2, 700
SIZES: dict[str, Any] = {"hidden_size": H, "intermediate_size": WIDTH, "n_experts": E, "top_k": K}
# Of one expert's matrices, in float32.
EXPERT = {"gated": 3 * 4 * H * WIDTH, "mlp": 2 * 4 * H * WIDTH}
KINDS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "gated, shared": {"expert_kind": "gated", "n_shared_experts": 1, "expert_bias": True},
    "linear": {"expert_kind": "linear", "intermediate_size": 0},
    "bf16": {"expert_kind": "gated", "weight_dtype": "bf16"},
    "groups": {
        "intermediate_size": 0,
        "expert_groups": [
            {"n_experts": 2, "expert_kind": "identity"},
            {"n_experts": 9, "intermediate_size": WIDTH},
            {"n_experts": 1, "expert_kind": "constant"},
        ],
    },
}


def saved(path: Path, **arguments: Any) -> libmoe.Layer:
    """Return a layer in memory, and leave its parameters in a file."""
    layer = libmoe.Layer(**{**SIZES, "seed": 4, **arguments})
    layer.save(path, dtype=arguments.get("weight_dtype", "f32"))
    layer.load(path)  # where the file rounds, so has the layer
    return layer


def offloaded(path: Path, limit: int, **arguments: Any) -> libmoe.Layer:
    layer = libmoe.Layer(**{**SIZES, "seed": 5, "unallocated": "expert_weights", **arguments})
    layer.offload(path, resident_limit=limit)
    return layer


def least(path: Path, **arguments: Any) -> int:
    """The smallest limit, as the refusal names it."""
    with pytest.raises(libmoe.InvalidArgumentError, match="resident_limit = 0 bytes") as refusal:
        offloaded(path, 0, **arguments)
    return int(str(refusal.value).split()[-1])


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_in_memory(kind: str, n_threads: int, tmp_path: Path) -> None:
    arguments = KINDS[kind]
    reference = saved(tmp_path / "a", **arguments)
    batches = [normal(n, H, seed=n) for n in (T, 1, 5, 0, 300)]
    fewest = least(tmp_path / "a", **arguments)
    with libmoe.Context(n_threads=n_threads) as context:
        for limit in (fewest, 2 * fewest + 1, 100 * fewest):
            layer = offloaded(tmp_path / "a", limit, context=context, **arguments)
            for x in batches:
                np.testing.assert_array_equal(layer(x), reference(x))
            found, experts = layer.offload_statistics, 9 if kind == "groups" else E
            assert found.n_slots == min(experts, limit * 2 // fewest)
            assert found.hits > 0 and found.misses > 0
            if limit == 100 * fewest:  # each is read once
                assert found.misses == experts
                assert found.bytes_read == experts * fewest // 2


@pytest.mark.parametrize("matmul", ["native", "reference", "openblas"])
@pytest.mark.parametrize(
    ("weights", "prepared"),
    [("f32", "none"), ("f32", "f32"), ("f32", "bf16"), ("bf16", "none"), ("bf16", "bf16")],
)
def test_prepared_and_every_backend(weights: Any, prepared: Any, matmul: Any, tmp_path: Path) -> None:
    arguments = {"expert_kind": "gated", "n_shared_experts": 1, "weight_dtype": weights}
    with libmoe.Context(n_threads=2, matmul=matmul) as context:
        reference = saved(tmp_path / "a", context=context, **arguments)
        reference.prepare(prepared)
        limit = 200_000 if weights == "f32" else 125_000
        layer = offloaded(tmp_path / "a", limit, context=context, **arguments)
        before = layer(normal(9, H))
        layer.prepare(prepared)
        assert 2 <= layer.offload_statistics.n_slots < E
        for n in (T, 3, T):
            np.testing.assert_array_equal(layer(normal(n, H)), reference(normal(n, H)))
        layer.prepare("none")
        reference.prepare("none")
        np.testing.assert_array_equal(layer(normal(9, H)), before)
        np.testing.assert_array_equal(layer(normal(9, H)), reference(normal(9, H)))


def test_chunks_of_tokens(tmp_path: Path) -> None:
    reference = saved(tmp_path / "a")
    layer = offloaded(tmp_path / "a", 3 * EXPERT["mlp"])
    x = normal(T, H)
    with pytest.raises(libmoe.InvalidArgumentError) as refusal:
        layer.plan(T, taped=False, memory_limit=1)
    limit = int(str(refusal.value).split()[-1])
    assert layer.plan(T, taped=False, memory_limit=limit).chunk_tokens == 256
    np.testing.assert_array_equal(layer.forward(x, memory_limit=limit).y, reference(x))
    found = layer.offload_statistics
    assert found.hits + found.misses == 3 * E  # every chunk needs them all


@pytest.mark.parametrize("model", [*MODELS, "gpt_oss_mxfp4"])
def test_every_layout(model: str, tmp_path: Path) -> None:
    """Transposed, fused, interleaved, packed, numbered: read expert by expert they are the same."""
    preset = "gpt_oss" if model == "gpt_oss_mxfp4" else model
    sizes = {"hidden_size": 32, "intermediate_size": 32} if model == "gpt_oss_mxfp4" else {}
    reference, layer = make(preset, **sizes), make(preset, unallocated="expert_weights", **sizes)
    path = FOLDER / f"{model}.safetensors"  # that transformers wrote
    if model == "gpt_oss_mxfp4":
        path = tmp_path / "packed"
        libmoe.save(path, mxfp4(reference.n_experts))
    layout = model if model == "gpt_oss_mxfp4" else layout_of(model)
    place: Any = {"layout": layout, "layer": 1}
    reference.load(path, **place)
    with libmoe.Checkpoint(path) as checkpoint:
        with pytest.raises(libmoe.InvalidArgumentError, match="resident_limit") as refusal:
            layer.offload(checkpoint, resident_limit=1, **place)
        layer.offload(checkpoint, resident_limit=int(str(refusal.value).split()[-1]), **place)
    x = BLOCKS[f"{preset}.x"] if not sizes else normal(50, 32)
    np.testing.assert_array_equal(layer(x), reference(x))
    assert layer.offload_statistics.n_slots == 2


def mxfp4(experts: int) -> dict[str, NDArray[Any]]:
    """A layer of 32 features in gpt-oss's published form, of random numbers."""
    random, begin = np.random.default_rng(1), "model.layers.1.mlp."
    tensors: dict[str, NDArray[Any]] = {}
    for name, rows in (("gate_up_proj", 64), ("down_proj", 32)):
        tensors[f"{begin}experts.{name}_blocks"] = random.integers(0, 256, (experts, rows, 1, 16), np.uint8)
        tensors[f"{begin}experts.{name}_scales"] = random.integers(118, 126, (experts, rows, 1), np.uint8)
        tensors[f"{begin}experts.{name}_bias"] = normal(experts, rows, seed=rows)
    tensors[f"{begin}router.weight"] = normal(experts, 32)
    tensors[f"{begin}router.bias"] = normal(experts)
    return tensors


def test_float16_files_and_shards(tmp_path: Path) -> None:
    source = saved(tmp_path / "a", expert_kind="gated")
    state = {name: values.astype(np.float16) for name, values in source.state_dict().items()}
    names = list(state)
    for shard in range(2):
        libmoe.save(tmp_path / f"{shard}.safetensors", {name: state[name] for name in names[shard::2]})
    index = tmp_path / "model.safetensors.index.json"
    entries = ",".join(f'"{name}": "{n % 2}.safetensors"' for n, name in enumerate(names))
    index.write_text(f'{{"weight_map": {{{entries}}}}}')
    source.load(index)
    layer = offloaded(index, 4 * EXPERT["gated"], expert_kind="gated")
    np.testing.assert_array_equal(layer(normal(T, H)), source(normal(T, H)))


def test_the_most_used_stay(tmp_path: Path) -> None:
    """Two experts that every call needs are read once, whatever else comes and goes."""
    saved(tmp_path / "a", router="external", top_k=3)
    layer = offloaded(tmp_path / "a", 4 * EXPERT["mlp"], router="external", top_k=3)
    calls = 20
    for call in range(calls):
        chosen = np.array([[0, 1, 2 + call % (E - 2)]], np.int32)
        layer.forward(normal(1, H), expert_indices=chosen, expert_weights=np.ones((1, 3), np.float32))
    found = layer.offload_statistics
    assert found.misses <= 2 + calls
    assert found.hits >= 2 * (calls - 1)
    assert found.hits + found.misses == 3 * calls
    assert found.bytes_read == found.misses * EXPERT["mlp"]


def test_threads_take_turns(tmp_path: Path) -> None:
    reference = saved(tmp_path / "a")
    layer = offloaded(tmp_path / "a", 3 * EXPERT["mlp"])
    batches = [normal(64, H, seed=n) for n in range(4)]
    expected = [reference(x) for x in batches]

    def work(n: int) -> None:
        for _ in range(10):
            np.testing.assert_array_equal(layer(batches[n]), expected[n])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    layer = offloaded(tmp_path / "a", 2 * EXPERT["mlp"])
    os.truncate(tmp_path / "a", 4096)
    with pytest.raises(
        libmoe.FileError, match=r"reading an expert: it has been cut short since it was opened: .*/a"
    ):
        layer(normal(T, H))
    (tmp_path / "a").write_bytes(whole)  # the same file, of which nobody knows what else was written to it
    with pytest.raises(
        libmoe.FileError, match=r"it has been changed since it was opened, open it again: .*/a"
    ):
        layer(normal(T, H))


def test_a_file_that_was_replaced_does_no_harm(tmp_path: Path) -> None:
    reference = saved(tmp_path / "a")
    layer = offloaded(tmp_path / "a", 2 * EXPERT["mlp"])
    libmoe.save(tmp_path / "a", {"other": normal(3)})
    np.testing.assert_array_equal(layer(normal(T, H)), reference(normal(T, H)))


def test_refusals(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    empty = libmoe.Layer(**SIZES, unallocated="expert_weights")
    tape = empty.tape()
    for act in (
        lambda: empty(normal(2, H)),
        lambda: empty.forward(normal(2, H), tape=tape),
        lambda: empty.prepare(),
        lambda: empty.save(tmp_path / "b"),
        lambda: empty.load(tmp_path / "a"),
        lambda: empty.upcycle({"up.weight": normal(WIDTH, H)}),
        lambda: libmoe.save_training(tmp_path / "b", step=0, layers=[empty]),
        lambda: empty.parameters["experts.up.weight"].data,
        lambda: empty.parameters["experts.up.weight"].grad,
        lambda: empty.state_dict(),
    ):
        with pytest.raises(libmoe.BadStateError, match=r"experts.up.weight"):
            act()
    with pytest.raises(libmoe.BadStateError, match="not offloaded"):
        _ = empty.offload_statistics
    with pytest.raises(libmoe.BadStateError, match="'expert_weights'"):
        libmoe.Layer(**SIZES).offload(tmp_path / "a", resident_limit=1 << 20)
    fewest = least(tmp_path / "a")
    assert fewest == 2 * EXPERT["mlp"]
    with pytest.raises(libmoe.InvalidArgumentError, match=f"need {fewest}"):
        offloaded(tmp_path / "a", fewest - 1)
    with pytest.raises(libmoe.InvalidArgumentError, match="no such tensor"):
        offloaded(tmp_path / "a", fewest, expert_kind="gated")
    groups = [{"n_experts": 6, "intermediate_size": width} for width in (20, 30)]
    with pytest.raises(libmoe.InvalidArgumentError, match="exactly one group"):
        offloaded(tmp_path / "a", fewest, expert_groups=groups, intermediate_size=0)

    layer = offloaded(tmp_path / "a", fewest)
    with pytest.raises(libmoe.BadStateError, match="tape: the layer's experts are offloaded"):
        layer.forward(normal(2, H), tape=layer.tape())
    with pytest.raises(libmoe.BadStateError, match="offloaded already"):
        layer.offload(tmp_path / "a", resident_limit=fewest)
    with pytest.raises(libmoe.BadStateError, match="nothing to bind"):
        layer.bind("experts.up.weight", normal(E, WIDTH, H))
    with pytest.raises(libmoe.InvalidArgumentError, match="resident_limit"):
        layer.prepare("f32")  # padded, and with room for packing
    assert layer(normal(2, H)).shape == (2, H)

    bound = libmoe.Layer(**SIZES, unallocated="expert_weights", inference_only=True)
    bound.bind("experts.up.weight", normal(E, WIDTH, H))
    with pytest.raises(libmoe.BadStateError, match="has been bound"):
        bound.offload(tmp_path / "a", resident_limit=fewest)


CHILD = """
import sys, numpy, libmoe
sys.path.insert(0, sys.argv[2])

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

h, width, e = 256, 1024, 64
layer = libmoe.Layer(h, width, e, 2, unallocated="expert_weights", inference_only=True,
                     context=libmoe.Context(n_threads=1))
x = numpy.random.default_rng(0).standard_normal((256, h), numpy.float32)
limit = 8 * 2 * 4 * h * width
before = resident()
layer.offload(sys.argv[1], resident_limit=limit)
most = before
for _ in range(3):
    layer(x)
    most = max(most, resident())
print(layer.offload_statistics.misses, most - before - limit)
"""


def test_resident_memory_keeps_to_the_limit(tmp_path: Path) -> None:
    """A layer of eight times the limit; what is beside it is one call's scratch."""
    layer = libmoe.Layer(256, 1024, 64, 2, inference_only=True)
    layer.save(tmp_path / "a")
    layer.close()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "a"), str(Path(__file__).parent)],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        text=True,
    )
    misses, beyond = map(int, child.stdout.split())
    assert misses >= 3 * (64 - 8)
    assert beyond < 16 << 20  # of 128 MiB in the file
