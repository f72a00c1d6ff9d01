"""Ranks that train together leave what one process leaves, and any number of them goes on from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranked_models import alone, together

import libmoe
from libmoe.train import Settings, Trainer, UserError, log, open_run
from libmoe.train.doctor import diagnose, told
from libmoe.train.folder import BEST, LAST
from libmoe.train.ranks import Ranks
from libmoe.train.sample import sample
from pretrained_models import FOLDERS
from small_language_models import LANGUAGE, MOE
from thread_ranks import ThreadRanks
from tiny import settings, state, text


def on(size: int, one: Callable[[libmoe.Communicator | None], None]) -> None:
    """Call it on ranks, or, of none, in one process."""
    if size == 0:
        one(None)
    else:
        ThreadRanks(size).run(one)


def trained(given: Settings, run: Path, size: int, **how: Any) -> None:
    """Train in one process, or on ranks."""

    def one(communicator: libmoe.Communicator | None) -> None:
        Trainer(given, run, quiet=True, communicator=communicator, **how).train()

    on(size, one)


LONG = {"sequences": 12, "sequence_length": 64}
RUNS: dict[str, dict[str, Any]] = {
    "norm": {"clip": "norm", "max_norm": 0.5},
    "adaptive": {"clip": "adaptive"},
    "muon": {"optimizer": "muon"},
    "shared, bias": {
        "moe": {"n_shared_experts": 1, "selection_bias": True, "score": "sigmoid"},
        "accumulate": 2,
        "dropout": 0.1,
    },
    "some dense": {"moe_every": 2, "sequences": 3},
    "memory limit": {"memory_limit": 3, **LONG},
}


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("size", [1, 3])
def test_checkpoints_are_those_of_one_process(tmp_path: Path, kind: str, size: int) -> None:
    given = settings(tmp_path, steps=8, **RUNS[kind])
    trained(given, tmp_path / "alone", 0)
    trained(given, tmp_path / "ranks", size)
    assert state(tmp_path / "ranks") == state(tmp_path / "alone")
    assert (tmp_path / "ranks" / LAST).stat().st_size == (tmp_path / "alone" / LAST).stat().st_size


def test_another_number_of_ranks_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = settings(tmp_path, steps=12)
    trained(whole, tmp_path / "alone", 0)
    trained(settings(tmp_path, steps=12, evaluate_every=4), tmp_path / "first", 2)
    run = tmp_path / "run"
    for steps_so_far, size in ((4, 3), (8, 0), (12, 4)):
        given = whole.changed({"steps": 12})
        trained_until(given, run, size, steps_so_far)
    assert state(run) == state(tmp_path / "alone") == state(tmp_path / "first")


def trained_until(given: Settings, run: Path, size: int, step: int) -> None:
    """Go on as a run whose processes are killed after a step: its last checkpoint is all that is left."""

    def one(communicator: libmoe.Communicator | None) -> None:
        trainer = Trainer(given, run, resume=(run / LAST).exists(), quiet=True, communicator=communicator)
        trainer.train(until=step)

    on(size, one)


def test_a_run_from_a_folder_leaves_the_folder_of_one_process(tmp_path: Path) -> None:
    small = {
        "files": (text(tmp_path),),
        "init": str(FOLDERS / "mixtral"),
        "sequence_length": 12,
        "sequences": 3,
    }
    often: dict[str, Any] = {
        "evaluate_every": 2,
        "evaluate_tokens": 100,
        "schedule": "constant",
        "threads": 1,
    }
    given = Settings().changed({**small, **often, "warmup_steps": 1, "steps": 4, "trained": "*.ffn.*"})
    trained(given, tmp_path / "alone", 0)
    trained(given.changed({"steps": 2}), tmp_path / "ranks", 3)
    trained(given, tmp_path / "ranks", 2, resume=True)
    assert state(tmp_path / "ranks") == state(tmp_path / "alone")
    files = [sorted((tmp_path / run / "model").iterdir()) for run in ("ranks", "alone")]
    assert [[path.name, path.read_bytes()] for path in files[0]] == [
        [path.name, path.read_bytes()] for path in files[1]
    ]


def test_evaluation_and_samples_are_those_of_one_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(settings(tmp_path, steps=8), run, 2)

    def written(ranks: Ranks) -> list[bytes]:
        return list(sample(open_run(run, "best", ranks), b"the model", 12, seed=4))

    expected = written(Ranks())
    for found in ThreadRanks(3).run(lambda communicator: written(Ranks(communicator))):
        assert found == expected


def test_threads_of_the_other_ranks_of_a_machine_are_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank has its share, and that is all which could be hinted at."""
    monkeypatch.setattr(libmoe, "processors", lambda: 4)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    given = settings(tmp_path, steps=4, threads=0)
    trained(given, tmp_path / "run", 2)
    records = log.read(tmp_path / "run")
    started = log.of_kind(records, "start")[0]
    assert (started["threads"], started["processors"]) == (2, 2)
    assert "processors" not in told(diagnose(given, records))


@pytest.mark.parametrize(
    ("words", "changes"),
    [("n_experts", {"n_experts": 2, "top_k": 1}), ("memory_limit", {"memory_limit": 1, **LONG})],
)
def test_what_ranks_cannot_do_is_refused(tmp_path: Path, words: str, changes: dict[str, Any]) -> None:
    given = settings(tmp_path, **changes)
    with pytest.raises(UserError, match=words):
        trained(given, tmp_path / "run", 3)
    if words == "memory_limit":
        records = log.read(tmp_path / "run")
        hint = told(diagnose(given, records))
        assert "1 MiB for each of 3 ranks is too small" in hint and "sequences 12 -> 6" in hint
        # Where each rank has one sequence, fewer of them take as much.
        assert "sequence_length 64 -> 32" in told(diagnose(given.changed({"sequences": 3}), records))


def test_what_a_rank_says_begins_with_its_number() -> None:
    def says(communicator: libmoe.Communicator) -> list[str]:
        return [Ranks(communicator).named(each) for each in ("no such file", "rank 0: no memory")]

    assert ThreadRanks(2).run(says)[1] == ["rank 1: no such file", "rank 0: no memory"]
    assert Ranks().named("no such file") == "no such file"


# ------------------------------------------------------------------------------------------------------------
# Training states by themselves
# ------------------------------------------------------------------------------------------------------------

CONFIG = {**LANGUAGE, "moe": {**MOE, "n_experts": 5}}


def made(model: libmoe.Model) -> tuple[libmoe.AdamW, dict[str, Any]]:
    optimizer = libmoe.AdamW(model.parameters, 0.02, context=model._context)
    others = [p for name, p in model.parameters.items() if ".ffn." not in name]
    parts = {
        "layers": model.layers,
        "parameters": others,
        "optimizers": [optimizer],
        "context": model._context,
    }
    return optimizer, parts


def test_a_state_has_the_bytes_of_one_process_and_is_read_by_any_number(tmp_path: Path) -> None:
    def stepped(model: libmoe.Model, path: Path) -> None:
        optimizer, parts = made(model)
        for p in model.parameters.values():
            p.grad[...] = np.cos(p.data)
        optimizer.step()
        libmoe.save_training(path, step=7, communicator=model.communicator, **parts)

    def loaded(model: libmoe.Model, path: Path) -> None:
        _, parts = made(model)
        assert libmoe.load_training(tmp_path / "alone", communicator=model.communicator, **parts) == 7
        libmoe.save_training(path, step=7, communicator=model.communicator, **parts)

    alone(CONFIG, 0, lambda model, part: stepped(model, tmp_path / "alone"))
    expected = (tmp_path / "alone").read_bytes()
    for size in (1, 2, 3):
        together(CONFIG, [0] * size, lambda model, part: stepped(model, tmp_path / "saved"))
        assert (tmp_path / "saved").read_bytes() == expected
        together(CONFIG, [0] * size, lambda model, part: loaded(model, tmp_path / "again"))
        assert (tmp_path / "again").read_bytes() == expected


@pytest.mark.parametrize("strategy", ["exclusive", "replicated"])
def test_a_state_of_the_layers_of_a_model_has_the_bytes_of_one_process(tmp_path: Path, strategy: str) -> None:
    """Whether experts are spread is known of a layer that belongs to a model too."""

    def stepped(model: libmoe.Model, path: Path) -> None:
        parameters = [p for layer in model.layers for p in layer.parameters.values()]
        optimizer = libmoe.AdamW(parameters, 0.02, context=model._context)
        for p in parameters:
            p.grad[...] = np.cos(p.data)
        optimizer.step()
        libmoe.save_training(
            path,
            step=7,
            layers=model.layers,
            optimizers=[optimizer],
            context=model._context,
            communicator=model.communicator,
        )

    alone(CONFIG, 0, lambda model, part: stepped(model, tmp_path / "alone"))
    together(CONFIG, [0, 0], lambda model, part: stepped(model, tmp_path / "ranks"), strategy=strategy)
    assert (tmp_path / "ranks").read_bytes() == (tmp_path / "alone").read_bytes()


def test_what_one_rank_cannot_read_or_write_is_the_error_of_all(tmp_path: Path) -> None:
    def said(call: Any) -> Any:
        try:
            call()
        except libmoe.MoeError as error:
            return type(error).__name__, str(error)
        return None

    def use(model: libmoe.Model, part: Any) -> Any:
        _, parts = made(model)
        of = {"communicator": model.communicator, **parts}
        path = tmp_path / "state"
        libmoe.save_training(path, step=1, **of)
        found = [said(lambda: libmoe.save_training(tmp_path / "no" / "folder", step=1, **of))]
        found.append(said(lambda: libmoe.load_training(tmp_path / f"{part.rank}" / "none", **of)))
        wrong = tmp_path / "no" if part.rank == 1 else path
        found.append(said(lambda: libmoe.load_training(wrong, **of)))
        assert libmoe.load_training(path, **of) == 1
        return found

    results = together(CONFIG, [0, 0], use)
    assert results[0] == results[1]
    assert all(each is not None for each in results[0])
    assert results[0][0][1].startswith("rank 0: ") and results[0][2][1].startswith("rank 1: ")


def test_a_run_whose_rank_dies_loses_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    run, given = tmp_path / "run", settings(tmp_path, steps=8, evaluate_every=4)
    trained(given, tmp_path / "alone", 0)
    ranks = ThreadRanks(2)

    def one(communicator: libmoe.Communicator) -> None:
        trainer = Trainer(given, run, quiet=True, communicator=communicator)
        if communicator.rank == 1:
            trainer.train(until=6)
            raise LookupError
        trainer.train()

    with pytest.raises((LookupError, UserError, libmoe.MoeError)):
        ranks.run(one)
    assert not (run / BEST).with_name("unfinished").exists()
    shutil.copytree(run, tmp_path / "kept")
    trained(given, run, 3, resume=True)
    assert state(run) == state(tmp_path / "alone")


@pytest.mark.parametrize("name", ["learning_rate", "steps", "text"])
def test_ranks_that_would_train_otherwise_are_refused(tmp_path: Path, name: str) -> None:
    given = settings(tmp_path, steps=8)
    other = tmp_path / "other.txt"
    other.write_text("abc " * 5000)
    change = {"learning_rate": 0.1, "steps": 9, "files": (str(other),)}

    def one(communicator: libmoe.Communicator) -> str:
        key = "files" if name == "text" else name
        mine = given.changed({key: change[key]}) if communicator.rank == 1 else given
        with pytest.raises(UserError) as refused:
            Trainer(mine, tmp_path / "run", quiet=True, communicator=communicator)
        return str(refused.value)

    found = ThreadRanks(3).run(one)
    assert found == [f"{name}: the ranks of a run have different ones"] * 3
