"""The training loop: it learns, stops, goes on with the same bits, and leaves a log."""

from __future__ import annotations

import json
import math
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe._native.callbacks import raised
from libmoe._native.transport import End, Message, Transport
from libmoe.train import Settings, Trainer, UserError, open_run, sample
from libmoe.train import log as logs
from libmoe.train.evaluate import bits_per_byte
from libmoe.train.folder import BEST, LAST, LOCK, RECORD
from libmoe.train.interrupt import AtOnce, Interrupt
from libmoe.train.ranks import Ranks
from libmoe.train.update import Update
from tiny import settings, state, text


def of_kind(run: Path, kind: str) -> list[dict[str, Any]]:
    return logs.of_kind(logs.read(run), kind)


def test_it_learns_and_the_best_weights_are_those_of_the_best_evaluation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = settings(tmp_path, steps=60, evaluate_every=20)
    outcome = Trainer(given, run).train()
    assert (outcome.why, outcome.step) == ("finished", 60)
    assert outcome.best_bits < 6  # of 8; English words of 13 letters have less than 4
    trainer_text = Trainer(given, tmp_path / "again").corpus.held_out
    again = bits_per_byte(open_run(run).model, trainer_text, sequence_length=16, sequences=4, most_tokens=256)
    assert again == outcome.best_bits


def test_bits_per_byte_is_the_mean_over_all_predicted_bytes(tmp_path: Path) -> None:
    trainer = Trainer(settings(tmp_path), tmp_path / "run")
    windows = trainer.corpus.held_out.spread(6, 17)  # 4 and 2 of them: of forwards that are not alike
    each = [trainer.model.forward(w[None, :-1].copy(), w[None, 1:].copy()).loss for w in windows]
    found = bits_per_byte(
        trainer.model, trainer.corpus.held_out, sequence_length=16, sequences=4, most_tokens=6 * 16
    )
    assert found == pytest.approx(np.mean(each) / math.log(2), rel=1e-6)


def test_one_cycle_moves_beta1_and_other_schedules_leave_it(tmp_path: Path) -> None:
    for schedule, expected in (("one_cycle", [0.95, 0.85, 0.95]), ("cosine", [0.9, 0.9, 0.9])):
        given = settings(tmp_path, schedule=schedule, warmup_steps=4)  # of 12
        trainer = Trainer(given, tmp_path / schedule)
        with libmoe.Context() as context:
            update = Update(given, trainer.model, context)
            found = []
            for step in (0, 3, 11):
                update(step)
                found.append(update.optimizer.momentum)
        assert found == pytest.approx(expected, abs=1e-12)


def test_muon_steps_matrices_and_adamw_all_else(tmp_path: Path) -> None:
    """The first update of a matrix between the ends is orthogonal; elsewhere it is the rate itself."""
    given = settings(tmp_path, optimizer="muon", schedule="constant", warmup_steps=1, weight_decay=0.0)
    trainer = Trainer(given, tmp_path / "run")
    with libmoe.Context() as context:
        update = Update(given, trainer.model, context)
        before = {name: p.data.copy() for name, p in trainer.model.parameters.items()}
        for seed, p in enumerate(trainer.model.parameters.values()):
            p.grad[...] = np.random.default_rng(seed).standard_normal(p.data.shape)
        rate = update(1)[0]
        assert rate == given.learning_rate
        for name, p in trainer.model.parameters.items():
            moved = (before[name] - p.data) / rate
            if p.data.ndim == 1 or name in ("embed.weight", "output.weight", "positions.weight"):
                np.testing.assert_allclose(np.abs(moved), 1, atol=2e-2, err_msg=name)
            elif not name.endswith("bias"):
                singular = np.linalg.svd(moved, compute_uv=False) / (0.2 * np.sqrt(max(p.data.shape[-2:])))
                assert 0.1 < singular.min() and singular.max() < 1.3, name


# Everything that a run remembers: dropout, noise, warm-up of experts, selection bias, adaptive clipping.
REMEMBERED: list[dict[str, Any]] = [
    {"dropout": 0.1, "moe": {"noise": "gaussian", "noise_std": 0.1, "router_dropout": 0.1}},
    {"moe": {"selection_bias": True}, "accumulate": 2, "weight_dtype": "bf16"},
    {"moe": {"warmup_steps": 8}, "clip": "adaptive", "schedule": "one_cycle"},
    {"n_experts": 0, "schedule": "linear", "clip": "none"},
    {"optimizer": "muon", "schedule": "one_cycle", "weight_dtype": "bf16"},
]


@pytest.mark.parametrize("changes", REMEMBERED)
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = settings(tmp_path, **changes)
    Trainer(given, tmp_path / "whole").train()

    stopped = Trainer(given, tmp_path / "stopped")
    stop_after(stopped, 5)
    assert stopped.train().why == "interrupted"
    assert state(tmp_path / "stopped") != state(tmp_path / "whole")
    resumed = Trainer(Settings.load(tmp_path / "stopped"), tmp_path / "stopped", resume=True)
    assert resumed.step == 5
    resumed.train()
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")

    # The logs say the same, times and memory apart.
    for kind, names in (
        ("step", ("loss", "norm", "learning_rate", "layers")),
        ("evaluation", ("bits_per_byte",)),
    ):
        whole, halves = (of_kind(tmp_path / run, kind) for run in ("whole", "stopped"))
        assert [r["step"] for r in whole] == [r["step"] for r in halves]
        for name in names:
            assert [r[name] for r in whole] == [r[name] for r in halves]


def stop_after(trainer: Trainer, steps: int) -> None:
    """As if Ctrl-C were pressed during that step."""
    one_step = trainer._one_step

    def step(*arguments: Any) -> None:
        if trainer.step == steps - 1:
            signal.raise_signal(signal.SIGINT)
        one_step(*arguments)

    trainer._one_step = step  # type: ignore[method-assign,assignment]


def test_threads_and_a_memory_limit_change_no_bit(tmp_path: Path) -> None:
    Trainer(settings(tmp_path), tmp_path / "plain").train()
    Trainer(settings(tmp_path, threads=2), tmp_path / "threads").train()
    assert state(tmp_path / "threads") == state(tmp_path / "plain")
    many = {"sequences": 64, "steps": 3}
    Trainer(settings(tmp_path, **many), tmp_path / "roomy").train()
    Trainer(settings(tmp_path, memory_limit=2, **many), tmp_path / "tight").train()
    assert state(tmp_path / "tight") == state(tmp_path / "roomy")
    roomy, tight = (of_kind(tmp_path / run, "plan")[0] for run in ("roomy", "tight"))
    assert tight["total"] <= 2 << 20 < roomy["total"]


def test_accumulated_gradients_are_those_of_one_forward(tmp_path: Path) -> None:
    # Without balance losses, which are not linear in the batch, two halves make the whole up to rounding.
    calm = {"balance_coef": 0.0, "z_coef": 0.0, "steps": 1, "clip": "none"}
    norms = []
    for n, (sequences, accumulate) in enumerate([(4, 1), (2, 2)]):
        run = tmp_path / str(n)
        Trainer(settings(tmp_path, sequences=sequences, accumulate=accumulate, **calm), run).train()
        (line,) = of_kind(run, "step")
        norms.append((line["loss"], line["norm"]))
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path) -> None:
    trainer = Trainer(settings(tmp_path, steps=10_000, evaluate_every=10_000), tmp_path / "run")

    def press() -> None:
        while trainer.step < 3:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    presser = threading.Thread(target=press)
    presser.start()
    outcome = trainer.train()
    presser.join()
    assert (outcome.why, outcome.signal) == ("interrupted", signal.SIGINT)
    assert 3 <= outcome.step < 10_000
    assert signal.getsignal(signal.SIGINT) is before
    last = logs.read(tmp_path / "run")[-1]
    assert (last["kind"], last["why"], last["step"]) == ("stop", "interrupted", outcome.step)
    resumed = Trainer(trainer.settings, tmp_path / "run", resume=True)
    assert resumed.step == outcome.step


def test_a_second_ctrl_c_does_not_wait() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        for second in (signal.SIGINT, signal.SIGTERM):
            with pytest.raises(AtOnce) as at_once:
                signal.raise_signal(second)
            assert at_once.value.signal == second
    with pytest.raises(KeyboardInterrupt):  # the handler of before
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_comes_out_of_what_ranks_exchange() -> None:
    class Interrupted(Transport):
        rank, size = 0, 2

        def begin(self, messages: list[Message]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ranks(libmoe.Communicator.of(End(Interrupted()))).largest(1)
    assert raised.take() is None


def test_early_stop(tmp_path: Path) -> None:
    # A rate of 0 makes no evaluation better than the first.
    given = settings(tmp_path, learning_rate=0.0, patience=2, steps=100)
    outcome = Trainer(given, tmp_path / "run").train()
    assert (outcome.why, outcome.step) == ("early stop", 12)
    assert [r["best"] for r in of_kind(tmp_path / "run", "evaluation")] == [True, False, False]
    assert Trainer(given, tmp_path / "run", resume=True).train().step == 12


def test_the_log_is_valid_json_lines(tmp_path: Path) -> None:
    Trainer(settings(tmp_path), tmp_path / "run").train()
    lines = (tmp_path / "run" / logs.FILE).read_text().splitlines()
    records = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]
    assert [r["kind"] for r in records[:3]] == ["start", "plan", "step"] and records[-1]["kind"] == "stop"
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 13))
    for record in steps:
        assert record["tokens"] == record["step"] * 4 * 16
        assert 0 <= record["learning_rate"] <= 3e-3 and record["norm"] > 0 < record["tokens_per_second"]
        assert [layer["layer"] for layer in record["layers"]] == [0, 1]
        for layer in record["layers"]:  # every token uses K = 2 of E = 4
            assert len(layer["load"]) == 4 and sum(layer["load"]) == 4 * 16 * 2
            assert layer["dead"] == layer["load"].count(0)
        assert record["memory"]["peak"] >= record["memory"]["now"] > 0


def test_dropped_choices_are_in_the_log(tmp_path: Path) -> None:
    tight = {"capacity_formula": "constant", "capacity": 5}
    Trainer(settings(tmp_path, moe=tight, steps=2), tmp_path / "run").train()
    layer = of_kind(tmp_path / "run", "step")[-1]["layers"][0]
    assert max(layer["load"]) <= 5
    assert layer["dropped"] == pytest.approx(1 - sum(layer["load"]) / (4 * 16 * 2))


def test_lines_after_the_last_checkpoint_are_forgotten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = settings(tmp_path, steps=6)
    Trainer(given, run).train()
    log = logs.Log(run)
    log.write("evaluation", 7, bits_per_byte=math.inf)
    assert logs.read(run)[-1]["bits_per_byte"] is None  # JSON has no infinity
    with (run / logs.FILE).open("a") as file:
        file.write('{"kind":"step","st')  # killed while it wrote
    resumed = Trainer(given.changed({"steps": 8}), run, resume=True)
    assert max(r["step"] for r in logs.read(run)) == 6
    assert resumed.train().step == 8
    assert [r["step"] for r in of_kind(run, "step")] == list(range(1, 9))
    assert Settings.load(run).steps == 8


def test_a_step_that_fails_leaves_the_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(settings(tmp_path, steps=4), tmp_path / "run")
    trainer.train()
    before = state(tmp_path / "run")
    resumed = Trainer(trainer.settings.changed({"steps": 9}), tmp_path / "run", resume=True)
    next(iter(resumed.model.parameters.values())).data[...] = math.nan
    with pytest.raises(libmoe.NotFiniteError):
        resumed.train()
    assert state(tmp_path / "run") == before
    assert logs.read(tmp_path / "run")[-1]["why"] == "NotFiniteError"


def test_a_sample_reads_no_further_than_a_sequence(tmp_path: Path) -> None:
    Trainer(settings(tmp_path, steps=30), tmp_path / "run").train()
    trained = open_run(tmp_path / "run")
    window = list(b"the ")
    for piece in sample(trained, b"the ", 40, temperature=0):
        if len(window) > 16:  # S tokens were full: the last half, and what came then
            window = window[-8:]
        logits = trained.model.forward(np.array([window], np.int32), logits=True).logits
        assert logits is not None
        assert piece == bytes([int(logits[0, -1].argmax())])
        window += piece
    with pytest.raises(UserError, match="prompt is empty"):
        list(sample(trained, b"", 1))


def test_settings_survive_their_file(tmp_path: Path) -> None:
    given = settings(tmp_path, moe={"noise": "gaussian"}, clip="none")
    given.save(tmp_path)
    assert Settings.load(tmp_path) == given
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps = 0: at least 1"),
        ({"steps": 1.5}, "steps = 1.5: at least 1, and whole"),
        ({"held_out": 1.0}, "held_out = 1.0: above 0 and below 1"),
        ({"learning_rate": math.nan}, "learning_rate = nan: at least 0, and finite"),
        ({"clip": "some"}, "clip = 'some': one of norm, adaptive, none"),
        ({"max_norm": 0.0}, "max_norm = 0"),
        ({"seed": 1 << 64}, "below 2.64"),
        ({"stepz": 3}, "unknown setting 'stepz'"),
        ({"n_experts": 0, "moe": {"nosie": 1}}, "moe = .*nosie.*: there are no experts"),
        ({"n_experts": 0, "balance_coef": 0.1}, "balance_coef = 0.1: there are no experts"),
        (
            {"moe": {"unallocated": "expert_gradients"}},
            "moe: unallocated: a run has memory for all gradients",
        ),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Settings().changed(changes)


def test_bad_runs_are_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="hidden_size"):
        Trainer(settings(tmp_path, hidden_size=15), run)
    with pytest.raises(UserError, match="the model.*nonsense"):
        Trainer(settings(tmp_path, moe={"nonsense": 1}), run)
    with pytest.raises(UserError, match="nothing to resume"):
        Trainer(settings(tmp_path), run, resume=True)
    with pytest.raises(UserError, match="no such file.*first checkpoint"):
        settings(tmp_path).save(tmp_path)
        open_run(tmp_path)
    given = settings(tmp_path, steps=1)
    Trainer(given, run).train()
    with pytest.raises(UserError, match="there is a run in .* already"):
        Trainer(given, run)
    with pytest.raises(UserError, match="last.safetensors' does not fit the settings"):
        Trainer(settings(tmp_path, n_layers=3), run, resume=True)
    text(tmp_path, 50_000)
    with pytest.raises(UserError, match="changed: .*text.txt' .60,000 bytes then, 50,000 now"):
        Trainer(given, run, resume=True)
    assert {path.name for path in run.iterdir()} == {"config.json", logs.FILE, LAST, BEST, RECORD, LOCK}


def test_the_program_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[4] / "docs" / "training.md"
    (program,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "steps=500" in program and "300))" in program
    text(tmp_path, name="book.txt")
    monkeypatch.chdir(tmp_path)
    exec(compile(program.replace("steps=500", "steps=2").replace("300))", "3))"), str(page), "exec"), {})
    assert (tmp_path / "runs" / "book" / BEST).exists()
