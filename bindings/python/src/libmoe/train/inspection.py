"""What a run's folder tells of it, also where the log, or part of it, is lost: the checkpoint counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import libmoe

from . import log, plots
from .config import Settings
from .data import load_recorded
from .doctor import diagnose, told
from .errors import UserError
from .folder import BEST, is_training
from .limits import limited_plan
from .output import counted
from .record import Record, compare
from .run import begun_with, latest, make_context, make_model, open_run, saved_numbers


class Inspection:
    """A run as its folder shows it.

    Parameters
    ----------
    folder : path
        Of the run.

    Raises
    ------
    UserError
        There is no run, or its settings are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = begun_with(Settings.load(folder), Path(folder))
        self.records, self._damaged = log.read_all(folder)

    def lines(self) -> Iterator[str]:
        """Tell what happened, line by line, and what is wrong."""
        steps, stops = self._of_kind("step"), self._of_kind("stop")
        saved, best = self._saved()
        done = max(saved, steps[-1]["step"] if steps else 0)
        state = stops[-1]["why"] if stops else "running" if is_training(self.folder) else "was killed"
        yield f"{self.folder}: {done} of {self.settings.steps} steps, {state}"
        if self._damaged or not self.records:
            found = f"{self._damaged} damaged lines" if self._damaged else "nothing in it"
            yield f"{log.FILE} has {found}, as after a power failure; a run goes on from its checkpoint alone"
        yield from self._text()
        yield from self._model()
        if steps:
            yield from _latest(steps[-1])
        yield from self._best(best)
        yield told(diagnose(self.settings, self.records)) or "nothing is wrong that the log shows"

    def draw(self) -> list[Path]:
        """Draw pictures into the folder, that of the bytes where there are weights and the text as it was.

        Raises
        ------
        UserError
            matplotlib is missing, or there is nothing to draw yet.
        """
        model = text = None
        if not self.settings.tokenizer and (self.folder / BEST).exists():
            try:
                text = load_recorded(self.folder, self.settings).held_out
                model = open_run(self.folder).model
            except UserError:  # lines() has said what is not as it was
                text = None
        return plots.draw(self.folder, self.records, model, text)

    def _of_kind(self, kind: str) -> list[log.Record]:
        return log.of_kind(self.records, kind)

    def _saved(self) -> tuple[int, float]:
        """Return steps and best bits per byte of the latest checkpoint; 0 and infinity without one."""
        try:
            path = latest(self.folder)
        except UserError:
            return 0, math.inf
        with libmoe.Checkpoint(path) as checkpoint:
            return int(checkpoint["step"][0]), float(saved_numbers(checkpoint)[0])

    def _best(self, saved: float) -> Iterator[str]:
        """Tell the best evaluation: the checkpoint knows it also where the log has lost it."""
        evaluated = [r for r in self._of_kind("evaluation") if r["bits_per_byte"] is not None]
        best = min(evaluated, key=lambda record: float(record["bits_per_byte"]), default=None)
        if best is not None and best["bits_per_byte"] <= saved:
            yield f"best: {best['bits_per_byte']:.4f} held-out bits per byte, at step {best['step']}"
        elif math.isfinite(saved):
            yield f"best: {saved:.4f} held-out bits per byte, at a step that the log does not have"

    def _text(self) -> Iterator[str]:
        """Tell the text, and what is not as it was when the run began."""
        try:
            record = Record.load(self.folder)
        except UserError as error:
            yield f"text: {error}"
            return
        yield (
            f"{record.training_bytes:,} bytes of text to train on, {record.held_out_bytes:,} held out, of "
            + counted(len(record.files), "file")
        )
        _, differences = compare(record, self.settings.files, self.folder)
        if differences.spoil:
            yield (
                f"the text is not the one this run began with ({differences}): eval and --resume are refused "
                "until the files are as they were"
            )
        elif differences.added:
            yield f"files that were not there when the run began are not read: {differences}"

    def _model(self) -> Iterator[str]:
        vocabulary_size = self._vocabulary_size()
        if not vocabulary_size:
            return
        model = make_model(self.settings, vocabulary_size, make_context(self.settings))
        yield f"{sum(parameter.data.size for parameter in model.parameters.values()):,} weights"
        try:
            plan = limited_plan(model, self.settings)
        except libmoe.InvalidArgumentError:  # the limit was too small, as the hint says
            return
        yield f"a step: {self.settings.tokens_per_step:,} tokens; activations {plan}"

    def _vocabulary_size(self) -> int:
        """Of the record or the log, whichever is there; else 0."""
        starts = self._of_kind("start")
        if starts:
            return int(starts[0]["vocabulary_size"])
        try:
            return Record.load(self.folder).vocabulary_size
        except UserError:
            return 0 if self.settings.tokenizer else 256


def _latest(record: log.Record) -> Iterator[str]:
    """Tell the last line about steps."""
    yield (
        f"last: {_number(record['bits_per_byte'], '.4f')} bits per byte, gradient norm "
        f"{_number(record['norm'], '.3g')}, learning rate {_number(record['learning_rate'], '.3g')}, "
        f"{_number(record['tokens_per_second'], ',.0f')} tokens/s"
    )
    for layer in record["layers"]:
        load = " ".join(f"{share:.0%}" for share in _shares(layer["load"]))
        dropped = _number(layer["dropped"], ".1%")
        yield f"  layer {layer['layer']}: load {load}, dropped {dropped}, dead {layer['dead']}"


def _number(value: Any, form: str) -> str:
    """Write a number of the log, where null stands for one that is not finite."""
    return "not finite" if value is None else format(float(value), form)


def _shares(load: Sequence[int]) -> list[float]:
    return [tokens / max(1, sum(load)) for tokens in load]
