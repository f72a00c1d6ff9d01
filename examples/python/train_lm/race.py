"""Training several models by turns, so that a machine that is busy for a while is busy for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from libmoe.train import Settings, Trainer
from libmoe.train import log as logs

TURNS = 16


@dataclass
class Runner:
    """A run that takes part."""

    name: str
    trainer: Trainer


def runner(name: str, settings: Settings, folder: Path) -> Runner:
    """Begin a run that says how far it is when it evaluates, and nothing else."""

    def show(record: logs.Record) -> None:
        if record["kind"] == "evaluation":
            seconds, bits = trainer.seconds, record["bits_per_byte"]
            print(
                f"{name:20} step {record['step']:>5,}  {seconds:5.0f} s  {bits:.3f} bits per byte", flush=True
            )

    trainer = Trainer(settings, folder, quiet=True, on_record=show)
    return Runner(name, trainer)


def by_turns(runners: Sequence[Runner]) -> int:
    """Train all to the end, a sixteenth of each in turn; return the signal that interrupted, or 0."""
    for turn in range(1, TURNS + 1):
        for each in runners:
            steps = each.trainer.settings.steps
            until = steps * turn // TURNS
            if each.trainer.step < until and (signal := each.trainer.train(until=until).signal):
                return signal
    return 0


def dense(settings: Settings) -> Settings:
    """Return the same model without experts, of the same work for each byte.

    Its feed-forward networks are as wide as the experts of a byte together.
    """
    return replace(settings, n_experts=0, moe={})


def as_long(settings: Settings, measured: Trainer, seconds: float) -> Settings:
    """Return settings with as many steps as take so many seconds, at the speed that a run was measured at."""
    return replace(settings, steps=max(1, round(measured.step * seconds / measured.seconds)))
