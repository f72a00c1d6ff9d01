"""The doctor on runs that were made to fail, and on a sound one: every hint has the number that caused it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe.train import Hint, Settings, Trainer, UserError, diagnose
from libmoe.train import log as logs
from libmoe.train.doctor import told
from tiny import settings


def hints(run: Path) -> list[Hint]:
    return diagnose(Settings.load(run), logs.read(run))


def only(found: list[Hint], sign: str) -> Hint:
    matching = [hint for hint in found if re.search(sign, hint.sign)]
    assert matching, f"{sign!r} is in none of {[str(hint) for hint in found]}"
    return matching[0]


def line(run: Path, n: int = -1) -> dict[str, Any]:
    return logs.of_kind(logs.read(run), "step")[n]


def biased(trainer: Trainer, bias: float) -> Trainer:
    """Let the router of layer 0 prefer expert 0 and shun expert 3 by so much."""
    router = trainer.model.layers[0].parameters["router.bias"].data
    router[...] = np.linspace(bias, -bias, len(router))
    return trainer


def test_a_sound_run_has_no_hint_but_that_of_processors(tmp_path: Path) -> None:
    Trainer(settings(tmp_path, steps=40, threads=0), tmp_path / "run").train()
    assert hints(tmp_path / "run") == []


def test_a_rate_that_is_too_high(tmp_path: Path) -> None:
    wild = {"learning_rate": 3.0, "clip": "none", "warmup_steps": 0, "steps": 120, "schedule": "constant"}
    run = tmp_path / "run"
    Trainer(settings(tmp_path, **wild), run).train()
    hint = only(hints(run), r"training loss rose")
    found = re.search(r"from (\S+) to (\S+) bits per byte", hint.sign)
    assert found and float(found[2]) > 1.05 * float(found[1])
    assert "learning_rate (3 -> 1)" in hint.cure and "z_coef 0.001 -> 0.01" in hint.cure
    assert "clip none -> norm" in hint.cure and "warmup_steps 0 -> 6" in hint.cure


def test_gradients_that_leap(tmp_path: Path) -> None:
    trainer = Trainer(settings(tmp_path, steps=120), tmp_path / "run")
    one_step = trainer._one_step

    def step(since: Any) -> None:
        if trainer.step == 110:  # one step with a table of tokens a thousand times as large
            trainer.model.parameters["embed.weight"].data[...] *= 1000
        one_step(since)

    trainer._one_step = step  # type: ignore[method-assign]
    trainer.train()
    highest = max(r["norm_max"] for r in logs.of_kind(logs.read(tmp_path / "run"), "step"))
    assert f"a norm of {highest:.3g}" in only(hints(tmp_path / "run"), "gradients leap").sign


def test_a_bad_beginning(tmp_path: Path) -> None:
    trainer = Trainer(settings(tmp_path, steps=2, warmup_steps=0), tmp_path / "run")
    for name, parameter in trainer.model.parameters.items():
        if name in ("embed.weight", "output.weight"):
            parameter.data[...] = 30 * np.random.default_rng(0).standard_normal(parameter.data.shape)
    trainer.train()
    hint = only(hints(tmp_path / "run"), "worse than guessing")
    first = line(tmp_path / "run", 0)["loss"] / math.log(2)
    assert f"{first:.2f} bits per byte" in hint.sign and "guessing, 8.00" in hint.sign
    assert "warmup_steps 0 -> 100" in hint.cure and "check the initialisation" in hint.cure
    begun = Settings(init="OLMoE", files=("book.txt",))
    (of_a_folder,) = [
        each for each in diagnose(begun, logs.read(tmp_path / "run")) if "guessing" in each.sign
    ]
    assert "check whether OLMoE is whole" in of_a_folder.cure and "initialisation" not in of_a_folder.cure


def test_large_router_logits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    biased(Trainer(settings(tmp_path, z_coef=0.0), run), 50).train()
    size = math.sqrt(line(run)["layers"][0]["z_loss"])
    hint = only(hints(run), "layer 0: router logits")
    assert f"about {size:.1f}" in hint.sign and 40 < size < 60
    assert "z_coef 0 -> 0.001" in hint.cure


def test_idle_experts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    biased(Trainer(settings(tmp_path, balance_coef=0.0, steps=120), run), 30).train()
    hint = only(hints(run), "layer 0: 2 of 4 experts got no token")
    assert "the fullest 2.0 times the mean" in hint.sign  # K = 2 of E = 4: the two take every token
    for cure in (
        "balance_coef 0 -> 0.01",
        "router_dropout=0.1",
        "noise=gaussian",
        "warmup_steps=12",
        "capacity_factor",
    ):
        assert cure in hint.cure
    tried = {"router_dropout": 0.1, "noise": "gaussian", "noise_std": 0.1}
    again = settings(tmp_path, balance_coef=0.01, moe=tried, steps=120)
    biased(Trainer(again, tmp_path / "again"), 30).train()
    cure = only(hints(tmp_path / "again"), "layer 0: .* got no token").cure
    assert "balance_coef 0.01 -> 0.1" in cure and "router_dropout" not in cure and "noise" not in cure


def test_choices_without_room(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tight = {"capacity_formula": "megatron", "capacity_factor": 0.5}
    Trainer(settings(tmp_path, moe=tight, steps=120), run).train()
    hint = only(hints(run), "layer 1: .* found no room")
    assert float(re.findall(r"([\d.]+)%", hint.sign)[0]) >= 50
    assert "capacity_factor=0.5 -> 0.75" in hint.cure and "next_best" in hint.cure


def test_text_that_is_learnt_by_heart(tmp_path: Path) -> None:
    # Noise: there is nothing to learn but the training text itself.
    noise = np.random.default_rng(0).integers(1, 256, size=9000).astype(np.uint8)
    (tmp_path / "noise").write_bytes(noise.tobytes())
    noisy = {"files": (str(tmp_path / "noise"),), "hidden_size": 64, "intermediate_size": 64, "sequences": 16}
    given = settings(tmp_path, steps=300, evaluate_every=50, learning_rate=0.01, log_every=50, **noisy)
    run = tmp_path / "run"
    outcome = Trainer(given, run).train()
    hint = only(hints(run), "held-out text got worse")
    assert f"from {outcome.best_bits:.3f}" in hint.sign
    assert "dropout (0 -> 0.1)" in hint.cure and "patience 0 -> 3" in hint.cure


def test_a_folders_model_that_forgets() -> None:
    records = [{"kind": "evaluation", "step": n, "bits_per_byte": bits} for n, bits in ((0, 2.0), (100, 2.5))]
    (hint,) = diagnose(Settings(init="folder"), records)
    assert "from 2.000 to 2.500" in hint.sign
    assert "learning_rate 0.0001 -> 1e-05" in hint.cure and "dropout" not in hint.cure


def test_cures_for_a_folders_model_are_those_that_it_can_have() -> None:
    """All that a run with a folder refuses is left out, and something is always offered."""
    layer = {"layer": 0, "load": [900, 100, 0, 0], "dropped": 0.5, "z_loss": 400.0}
    step = {"kind": "step", "loss": 1.0, "layers": [layer], "tokens_per_second": 1.0}
    records: list[dict[str, Any]] = [
        {**step, "step": 25 * n, "bits_per_byte": bits, "norm": 1.0, "norm_max": 1.0 + 99 * (n == 5)}
        for n, bits in enumerate((1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0), start=3)
    ]
    records.append({"kind": "stop", "step": 200, "why": "NotFiniteError", "message": "loss"})
    found = diagnose(Settings(init="folder"), records)
    for sign in ("not finite", "loss rose", "leap", "logits", "fullest", "no room"):
        cure = only(found, sign).cure
        assert "a lower learning_rate (0.0001 -> " in cure and not cure.endswith(", ")
        assert not re.search("z_coef|balance_coef|moe |first weights", cure)
    assert "z_coef 0.001 -> 0.01" in only(diagnose(Settings(), records), "leap").cure


def test_numbers_that_are_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = Trainer(settings(tmp_path), run)
    next(iter(trainer.model.parameters.values())).data[...] = math.nan
    with pytest.raises(libmoe.NotFiniteError) as raised:
        trainer.train()
    hint = hints(run)[0]
    assert str(raised.value) in hint.sign and "step 0" in hint.sign
    assert "learning_rate (0.003 -> 0.0003)" in hint.cure


def test_a_memory_limit_that_is_too_small(tmp_path: Path) -> None:
    run = tmp_path / "run"
    wide = {"hidden_size": 64, "sequences": 64, "memory_limit": 1}
    with pytest.raises(UserError, match="memory_limit = 1 MiB"):
        Trainer(settings(tmp_path, **wide), run).train()
    hint = hints(run)[0]
    found = re.search(r"memory_limit (\d+) is the least that would do", hint.cure)
    assert found and "sequences 64 -> 32, accumulate 1 -> 2" in hint.cure
    least = int(found[1])
    Trainer(settings(tmp_path, **{**wide, "memory_limit": least, "steps": 1}), run).train()  # it fits
    with pytest.raises(UserError):
        Trainer(settings(tmp_path, **{**wide, "memory_limit": least - 1}), tmp_path / "less").train()


def test_no_memory_at_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = Trainer(settings(tmp_path), run)

    def step(_: Any) -> None:
        raise libmoe.OutOfMemoryError("no memory for 1234 bytes")

    trainer._one_step = step  # type: ignore[method-assign,assignment]
    with pytest.raises(libmoe.OutOfMemoryError):
        trainer.train()
    hint = only(hints(run), "found no memory")
    plan = logs.of_kind(logs.read(run), "plan")[0]["total"]
    assert "1234 bytes" in hint.sign and f"{plan / 2**20:.1f} MiB" in hint.sign
    assert "memory_limit" in hint.cure and "sequences 4 -> 2" in hint.cure


def test_layers_that_are_computed_twice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    many = {"hidden_size": 64, "sequences": 64, "steps": 1}
    Trainer(settings(tmp_path, **many), tmp_path / "roomy").train()
    whole = logs.of_kind(logs.read(tmp_path / "roomy"), "plan")[0]["total"]
    limit = whole * 3 // 4 >> 20
    Trainer(settings(tmp_path, memory_limit=limit, **many), run).train()
    hint = only(hints(run), r"of 2 layers are computed twice")
    assert (
        f"keep to {limit} MiB" in hint.sign and f"memory_limit {limit} -> {-(-whole // 2**20)}" in hint.cure
    )


def test_idle_processors(tmp_path: Path) -> None:
    Trainer(settings(tmp_path, steps=2), tmp_path / "run").train()
    records = logs.read(tmp_path / "run")
    records[0]["processors"] = 8  # as on such a machine
    hint = only(diagnose(Settings.load(tmp_path / "run"), records), "processors")
    assert "with 1 of 8 processors" in hint.sign and "threads 1 -> 8" in hint.cure


def test_signs_with_one_cure_are_told_together() -> None:
    assert told([]) == ""
    found = [Hint("layer 0: 7 idle", "more balance"), Hint("1 of 2", "threads 1 -> 2")]
    found.append(Hint("layer 3: 5 idle", "more balance"))
    assert told(found) == (
        "hint: layer 0: 7 idle\n      layer 3: 5 idle\n      try: more balance\n"
        "hint: 1 of 2\n      try: threads 1 -> 2"
    )
