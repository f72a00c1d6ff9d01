"""A model's folder is read and written over ranks with the bits of one process."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import write_gguf
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
from pretrained_models import FOLDERS, NAMES
from thread_ranks import ThreadRanks

WITH_EXPERTS = [
    name for name in NAMES if libmoe.describe_pretrained(FOLDERS / name, inference_only=True).n_moe_layers
]
TOKENS = np.random.default_rng(2).integers(80, size=(4, 9), dtype=np.int32)


def together(size: int, folder: Path, use: Callable[[libmoe.Model], Any], **how: Any) -> list[Any]:
    """Read it on so many ranks, and do something with each one's part."""

    def one(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(1) as context:
            return use(
                libmoe.Model.from_pretrained(folder, context=context, communicator=communicator, **how)
            )

    return ThreadRanks(size, patience=20).run(one)


def part(model: libmoe.Model) -> NDArray[np.int32]:
    """Return a rank's sequences, of the last one of several none."""
    if model.communicator is None:
        return TOKENS
    rank, size = model.communicator.rank, max(model.communicator.size - 1, 1)
    return TOKENS[4 * rank // size : 4 * (rank + 1) // size] if rank < size else TOKENS[:0]


def computed(model: libmoe.Model) -> Any:
    """Return its values but for those that are packed alone, its logits, and what it writes."""
    values = {}
    for name, parameter in model.parameters.items():
        with contextlib.suppress(libmoe.BadStateError):
            values[name] = parameter.data.copy()
    logits = model.forward(part(model), logits=True).logits
    return values, logits, list(model.generate([3, 1, 4], 4, temperature=0.0))


def require_same(folder: Path, size: int, **how: Any) -> None:
    """Compare what ranks have of a folder with what one process has."""
    with libmoe.Model.from_pretrained(folder, **how) as model:
        values, logits, written = computed(model)
    found = together(size, folder, computed, **how)
    for name, whole in values.items():
        own = [each[0][name] for each in found]
        if len(own[0]) < len(whole):
            own = [np.concatenate(own)]
        for each in own:
            assert_same_bits(each, whole, name)
    assert_same_bits(np.concatenate([each[1] for each in found]), logits, "logits")
    assert [each[2] for each in found] == [written] * size


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_every_family(name: str) -> None:
    require_same(FOLDERS / name, 3)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_number_of_ranks(size: int) -> None:
    require_same(FOLDERS / "olmoe", size, weight_dtype="bf16", inference_only=True)


def test_experts_lie_as_they_are_told() -> None:
    def counts(model: libmoe.Model) -> int:
        return len(model.parameters["layers.0.ffn.experts.up.weight"].data)

    assert together(3, FOLDERS / "olmoe", counts, experts_per_rank=[1, 3, 2]) == [1, 3, 2]


def test_replicated_experts_are_whole_on_every_rank(tmp_path: Path) -> None:
    def use(model: libmoe.Model) -> Any:
        model.save_pretrained(tmp_path / ("alone" if model.communicator is None else "ranks"))
        return computed(model)

    with libmoe.Model.from_pretrained(FOLDERS / "olmoe") as model:
        values, logits, _ = use(model)
    found = together(2, FOLDERS / "olmoe", use, strategy="replicated")
    assert_same_bits(np.concatenate([each[1] for each in found]), logits, "logits")
    for name, whole in values.items():
        for each in found:
            assert_same_bits(each[0][name], whole, name)
    assert files(tmp_path / "ranks") == files(tmp_path / "alone")


@pytest.mark.parametrize("prepared", ["f32", "int8_a8", {"layers.*.ffn.experts.*": "int4", "*": "int8"}])
def test_weights_are_packed_as_they_are_read(prepared: Any) -> None:
    require_same(FOLDERS / "mixtral", 3, prepared=prepared, inference_only=True)


@pytest.mark.parametrize("prepared", ["none", "stored_a8"])
def test_a_gguf_file(tmp_path: Path, prepared: Any) -> None:
    from gguf import GGMLQuantizationType

    def types(name: str, values: NDArray[Any]) -> GGMLQuantizationType:
        fits = "exps" in name and values.shape[-1] % 32 == 0
        return GGMLQuantizationType.Q8_0 if fits else GGMLQuantizationType.F32

    path = tmp_path / "model.gguf"
    write_gguf("olmoe", path, types=types)
    require_same(path, 2, prepared=prepared, inference_only=True)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_a_folder_of_packed_weights(name: str, tmp_path: Path) -> None:
    packed: dict[str, Any] = {"layers.*.ffn.experts.*": "int8_a8", "*": "int8"}
    with libmoe.Model.from_pretrained(FOLDERS / name, prepared=packed, inference_only=True) as model:
        model.save_pretrained(tmp_path)
    require_same(tmp_path, 3, inference_only=True)
    require_same(tmp_path, 2, inference_only=False)


# ------------------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.filterwarnings("ignore:save_pretrained")
@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_a_folder_has_the_bytes_of_one_process(name: str, tmp_path: Path) -> None:
    how: Any = {"dtype": "f32", "max_shard_size": 20_000}

    def save(model: libmoe.Model, folder: str) -> None:
        model.save_pretrained(tmp_path / folder)
        model.save_pretrained(tmp_path / f"{folder} in shards", **how)

    with libmoe.Model.from_pretrained(FOLDERS / name) as model:
        save(model, "alone")
    together(3, FOLDERS / name, lambda model: save(model, "ranks"))
    for kind in ("", " in shards"):
        assert files(tmp_path / f"ranks{kind}") == files(tmp_path / f"alone{kind}")


def test_a_new_model_is_written_by_a_config_and_read_by_any_number(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model_type": "mixtral", "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3,
        "num_key_value_heads": 3, "vocab_size": 17, "num_local_experts": 5, "num_experts_per_tok": 2,
        "intermediate_size": 30_000, "hidden_act": "silu", "rope_theta": 1e4, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }  # fmt: skip
    moe = dict(n_experts=5, top_k=2, intermediate_size=30_000, expert_kind="gated", activation="silu")
    moe |= dict(router_bias=False, expert_bias=False)
    made: dict[str, Any] = dict(vocabulary_size=17, tied_output=False, moe=moe)

    def save(communicator: libmoe.Communicator) -> None:
        with libmoe.Context(1) as context:
            model = libmoe.Model(12, 1, 3, **made, context=context, communicator=communicator)
            model.save_pretrained(tmp_path / "model", config=config)

    ThreadRanks(2).run(save)
    alone = libmoe.Model(12, 1, 3, **made)
    for name, p in libmoe.Model.from_pretrained(tmp_path / "model").parameters.items():
        assert_same_bits(p.data, alone.parameters[name].data, name)


# ------------------------------------------------------------------------------------------------------------
# Faults: those of one rank are those of all
# ------------------------------------------------------------------------------------------------------------


def said(call: Callable[[], Any]) -> str:
    """Return what it raises."""
    with pytest.raises(libmoe.MoeError) as raised:
        call()
    return f"{type(raised.value).__name__}: {raised.value}"


def told(size: int, call: Callable[[libmoe.Communicator], Any]) -> str:
    """Return what all ranks raise."""
    found = ThreadRanks(size, patience=20).run(lambda communicator: said(lambda: call(communicator)))
    assert found == found[:1] * size
    return found[0]


def reading(folders: list[Path], **of_the_last: Any) -> Callable[[libmoe.Communicator], libmoe.Model]:
    """Return a call that reads a folder for each rank."""

    def read(communicator: libmoe.Communicator) -> libmoe.Model:
        last = communicator.rank == communicator.size - 1
        how = of_the_last if last else {}
        return libmoe.Model.from_pretrained(folders[communicator.rank], communicator=communicator, **how)

    return read


def test_what_one_rank_cannot_read_is_the_error_of_all(tmp_path: Path) -> None:
    good, bad = FOLDERS / "olmoe", tmp_path / "olmoe"
    assert told(2, reading([good, tmp_path / "none"])).startswith("FileError: rank 1: no such")
    shutil.copytree(good, bad)
    (bad / "config.json").write_text("{")
    assert "rank 0: " in told(2, reading([bad, good]))
    shutil.copy(good / "config.json", bad)
    (bad / "model.safetensors").unlink()
    assert "rank 1: there is neither model.safetensors" in told(3, reading([good, bad, good]))
    whole = (good / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(whole[:-1])
    assert "rank 0: " in told(2, reading([bad, good]))
    assert "rank 1: " in told(2, reading([good, good], weight_dtype="f16", embedding_dtype="f16"))


def test_ranks_with_other_weights_or_options_are_refused(tmp_path: Path) -> None:
    good = FOLDERS / "mixtral"
    with libmoe.Model.from_pretrained(good) as model:
        model.parameters["layers.1.norm1.weight"].data[3] += 1
        model.save_pretrained(tmp_path / "other")
    assert "rank 2 has read other weights than rank 0" in told(3, reading([good, good, tmp_path / "other"]))
    assert "rank 1 makes another call" in told(2, reading([good, good], weight_dtype="f16"))
    assert "rank 1 makes another call" in told(2, reading([good, good], prepared="int8"))
    assert "rank 1 makes another call" in told(2, reading([good, FOLDERS / "olmoe"]))


def test_what_ranks_cannot_read_or_write(tmp_path: Path) -> None:
    def refused(folder: Path, size: int, **how: Any) -> str:
        return told(size, lambda of: libmoe.Model.from_pretrained(folder, communicator=of, **how))

    moe = FOLDERS / "mixtral"
    assert "experts none is here" in refused(moe, 5)
    assert "a model without experts" in refused(FOLDERS / "llama", 2)
    assert "resident_limit" in refused(moe, 2, resident_limit=50_000, inference_only=True)
    assert "unallocated" in refused(moe, 2, unallocated=["expert_gradients"])

    def save(model: libmoe.Model) -> str:
        return said(lambda: model.save_pretrained(tmp_path / "packed"))

    first, second = together(2, moe, save, prepared="int8", inference_only=True)
    assert first == second and "weights are packed" in first


def test_one_rank_stops_the_reading_of_all() -> None:
    def stop(done: int, total: int) -> None:
        if done > 0:
            raise LookupError("enough")

    def read(communicator: libmoe.Communicator) -> str:
        how: Any = {"progress": stop} if communicator.rank == 1 else {}
        try:
            libmoe.Model.from_pretrained(FOLDERS / "olmoe", communicator=communicator, **how)
        except (libmoe.MoeError, LookupError) as error:
            return str(error)
        return ""

    other, own = ThreadRanks(2, patience=20).run(read)
    assert other.startswith("rank 1: cancelled") and own == "enough"


def test_what_one_rank_cannot_write_is_the_error_of_all(tmp_path: Path) -> None:
    def use(model: libmoe.Model) -> list[str]:
        assert model.communicator is not None
        rank = model.communicator.rank
        found = [said(lambda: model.save_pretrained(tmp_path / "no" / "folder"))]
        found.append(
            said(lambda: model.save_pretrained(tmp_path / "model", dtype="f16" if rank == 1 else "f32"))
        )
        found.append(said(lambda: model.save_pretrained(tmp_path / "model", config={"model_type": "none"})))
        model.save_pretrained(tmp_path / "model")
        return found

    first, second = together(2, FOLDERS / "olmoe", use)
    assert first == second
    assert "rank 0: making a folder" in first[0] and "another call" in first[1] and "none" in first[2]
    require_same(tmp_path / "model", 2)
