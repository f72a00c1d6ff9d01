"""The training loop: a run from its settings to its last checkpoint."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe

from . import log
from .config import Settings, UserError
from .data import Corpus, load
from .evaluate import bits_per_byte
from .interrupt import Interrupt
from .load import Load
from .progress import Progress
from .run import BEST, LAST, UNLIMITED, make_context, make_model, memory_limit, saved_parts
from .update import Update

BITS = 1 / math.log(2)  # of a nat


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    why : {"finished", "early stop", "interrupted"}
    step : int
        Optimiser steps done.
    best_bits : float
        The lowest held-out bits per byte, infinity before the first evaluation.
    signal : int
        That interrupted, else 0.
    """

    why: str
    step: int
    best_bits: float
    signal: int = 0


class Trainer:
    """One run: a text, a model, its optimiser, and a folder with what comes of them.

    The same settings and the same text give the same bits, for any number of threads, and also when the run
    was stopped and taken up again.

    Parameters
    ----------
    settings : Settings
    folder : path
        Made where it is missing.  It must not have a run yet, unless `resume`.
    resume : bool
        Whether to go on from the folder's last checkpoint.

    Raises
    ------
    UserError
        The text or a setting cannot be used, the folder has a run, there is nothing to resume, or the text is
        not the one the run began with.
    """

    def __init__(self, settings: Settings, folder: Path, *, resume: bool = False) -> None:
        self.settings = settings
        self.folder = folder
        self.corpus: Corpus = load(
            settings.files, held_out=settings.held_out, seed=settings.seed, tokenizer=settings.tokenizer
        )
        for part in (self.corpus.training, self.corpus.held_out):  # rather now than at the first evaluation
            part.spread(1, settings.sequence_length + 1)
        self.context = make_context(settings)
        self.model = make_model(settings, self.corpus.vocabulary_size, self.context)
        self.update = Update(settings, self.model, self.context)
        self.step = 0  # steps done
        # Numbers that are saved: best bits per byte, evaluations since then, seconds of training.
        self._numbers: NDArray[np.float64] = np.array([math.inf, 0, 0])
        self._log = log.Log(folder)
        self._load = Load()
        if resume:
            self._resume()
        else:
            self._begin()

    @property
    def best_bits(self) -> float:
        """The lowest held-out bits per byte so far."""
        return float(self._numbers[0])

    @property
    def seconds(self) -> float:
        """Of training so far, without evaluations."""
        return float(self._numbers[2])

    def train(self) -> Outcome:
        """Train to the end, an early stop or a signal; save; say how it ended.

        Raises
        ------
        NotFiniteError, OutOfMemoryError, InvalidArgumentError
            Of a step; the log says why, and the last checkpoint is as it was.
        """
        plan = self._check_memory()
        with Interrupt() as interrupt, Progress(self.settings.steps) as progress:
            progress.line(f"a step: {self.settings.tokens_per_step:,} tokens; activations {plan}")
            try:
                why = self._loop(interrupt, progress)
            except libmoe.MoeError as error:
                self._log.write("stop", self.step, why=type(error).__name__, message=str(error))
                raise
        self._log.write("stop", self.step, why=why, best_bits=self.best_bits)
        return Outcome(why, self.step, self.best_bits, interrupt.signal)

    def _loop(self, interrupt: Interrupt, progress: Progress) -> str:
        """Step, log, evaluate and save, each when it is due; return why it is over."""
        settings = self.settings
        since = _Since()
        while self.step < settings.steps and not interrupt.signal:
            if self._patience_is_over():
                return "early stop"
            self._one_step(since)
            progress.step(self.step, since.text())
            due = self.step % settings.evaluate_every == 0 or self.step == settings.steps
            if due or self.step % settings.log_every == 0:
                self._log.write("step", self.step, **self._measured(since))
                since = _Since()
            if due:
                self._evaluate(progress)
                self._save(LAST)
        if not interrupt.signal:
            return "finished"
        if since.steps:
            self._log.write("step", self.step, **self._measured(since))
        self._save(LAST)
        return "interrupted"

    # --------------------------------------------------------------------------------------------------------
    # A step
    # --------------------------------------------------------------------------------------------------------

    def _one_step(self, since: _Since) -> None:
        """Gradients of `accumulate` forwards, each of `sequences` sequences, then the optimiser."""
        settings = self.settings
        started = time.monotonic()
        count = settings.sequences * settings.accumulate
        windows = self.corpus.training.batch(settings.seed, self.step, count, settings.sequence_length + 1)
        self.model.zero_grad()
        chosen: dict[int, NDArray[np.int64]] = {}  # tokens of each expert in this step, by layer
        for n in range(settings.accumulate):
            rows = windows[n * settings.sequences : (n + 1) * settings.sequences]  # [B,S+1]
            output = self.model.forward(
                rows[:, :-1].copy(),
                rows[:, 1:].copy(),
                training=True,
                step=self.step * settings.accumulate + n,
                tape=True,
                memory_limit=memory_limit(settings),
            )
            self.model.backward(output, 1 / settings.accumulate)
            self._load.add(output.layers)
            for number, report in enumerate(output.layers):
                if report is not None:
                    chosen[number] = chosen.get(number, 0) + report.tokens_per_expert
            since.loss += output.loss / settings.accumulate
            since.objective += output.objective / settings.accumulate
        rate, norm, bound = self.update(self.step)
        if settings.moe.get("selection_bias"):
            for number, counts in chosen.items():
                self.model.layers[number].update_selection_bias(counts, settings.selection_bias_rate)
        self.step += 1
        seconds = time.monotonic() - started
        self._numbers[2] += seconds
        since.add(settings.tokens_per_step, seconds, rate, norm, bound)

    def _measured(self, since: _Since) -> dict[str, Any]:
        """Return what the log says of the steps since its last line."""
        current, peak = self.context.memory()
        return {
            "tokens": self.step * self.settings.tokens_per_step,
            "seconds": round(self.seconds, 3),
            **since.means(),
            "layers": self._load.take(),
            "memory": {"now": current, "peak": peak},  # bytes, of everything the library holds
        }

    # --------------------------------------------------------------------------------------------------------
    # Evaluation and checkpoints
    # --------------------------------------------------------------------------------------------------------

    def _evaluate(self, progress: Progress) -> None:
        settings = self.settings
        bits = bits_per_byte(
            self.model,
            self.corpus.held_out,
            sequence_length=settings.sequence_length,
            sequences=settings.sequences,
            most_tokens=settings.evaluate_tokens,
            memory_limit=memory_limit(settings),
        )
        better = bits < self.best_bits
        self._numbers[1] += 1
        if better:
            self._numbers[:2] = bits, 0
            self._save(BEST)
        self._log.write("evaluation", self.step, bits_per_byte=bits, best=better)
        progress.line(
            f"step {self.step}: held-out {bits:.4f} bits per byte" + (", the best so far" if better else "")
        )

    def _patience_is_over(self) -> bool:
        return bool(0 < self.settings.patience <= self._numbers[1])

    def _save(self, name: str) -> None:
        libmoe.save_training(self.folder / name, step=self.step, context=self.context, **self._parts())

    def _parts(self) -> dict[str, Any]:
        parts = saved_parts(self.model)
        own = [self.update.numbers, self._numbers]
        # The file takes float32 and bfloat16, whose bits it keeps: a double is four of the latter.
        as_parameters = [libmoe.Parameter(array.view(np.uint16)) for array in own]
        parts["parameters"] = [*parts["parameters"], *as_parameters]
        return {**parts, "optimizers": [self.update.optimizer]}

    # --------------------------------------------------------------------------------------------------------
    # Beginning
    # --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make the folder and its log; one that never came to a checkpoint has nothing to lose."""
        if (self.folder / LAST).exists():
            raise UserError(
                f"there is a run in {str(self.folder)!r} already: resume it, or give another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / log.FILE).unlink(missing_ok=True)
        self.settings.save(self.folder)
        parameters = self.model.parameters.values()
        self._log.write(
            "start",
            0,
            training_bytes=self.corpus.training.n_bytes,
            held_out_bytes=self.corpus.held_out.n_bytes,
            files=self.corpus.n_files,
            passed_over=self.corpus.passed_over,
            vocabulary_size=self.corpus.vocabulary_size,
            weights=sum(parameter.data.size for parameter in parameters),
            threads=self.settings.threads or processors(),
            processors=processors(),
            library=self.context.build_info(),
        )

    def _resume(self) -> None:
        path = self.folder / LAST
        if not path.exists():
            raise UserError(f"nothing to resume: no such file: {str(path)!r}")
        (start,) = log.of_kind(log.read(self.folder), "start")
        then, now = start["training_bytes"] + start["held_out_bytes"], self.corpus.n_bytes
        if then != now:
            raise UserError(f"the text has changed: the run began with {then:,} bytes, now there are {now:,}")
        try:
            self.step = libmoe.load_training(path, context=self.context, **self._parts())
        except libmoe.InvalidArgumentError as error:
            raise UserError(f"{str(path)!r} does not fit the settings: {error}") from None
        self.update.take_up()
        self._log.rewind(self.step)
        self.settings.save(self.folder)

    def _check_memory(self) -> libmoe.ModelPlan:
        """Refuse a limit that is too small before anything is trained; log the plan and return it."""
        settings = self.settings
        free = self._plan(UNLIMITED).total_bytes
        try:
            plan = self._plan(memory_limit(settings))
        except libmoe.InvalidArgumentError as error:
            self._log.write(
                "stop",
                self.step,
                why="memory limit",
                message=str(error),
                least=self._least_limit(free),
                unlimited=free,
            )
            raise UserError(f"memory_limit = {settings.memory_limit} MiB: {error}") from None
        self._log.write("plan", self.step, total=plan.total_bytes, unlimited=free, keep=plan.keep)
        return plan

    def _plan(self, limit: int | None) -> libmoe.ModelPlan:
        settings = self.settings
        return self.model.plan(
            settings.sequences, settings.sequence_length, training=True, memory_limit=limit
        )

    def _least_limit(self, free: int) -> int:
        """Return the least limit that would do, in whole MiB as the setting is."""
        too_small, enough = self.settings.memory_limit, math.ceil(free / 2**20)
        while enough - too_small > 1:
            middle = (too_small + enough) // 2
            try:
                self._plan(middle << 20)
                enough = middle
            except libmoe.InvalidArgumentError:
                too_small = middle
        return enough


class _Since:
    """Sums over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.loss = self.objective = self._seconds = self._norm = self._norm_max = self._rate = 0.0
        self.steps = self._tokens = self._clipped = 0

    def add(self, tokens: int, seconds: float, rate: float, norm: float, bound: float) -> None:
        """Count one step: gradients of norm `norm` were scaled down to `bound`, where they were above it."""
        self.steps += 1
        self._tokens += tokens
        self._seconds += seconds
        self._rate = rate
        self._norm += norm
        self._norm_max = max(self._norm_max, norm)
        self._clipped += norm > bound

    def means(self) -> dict[str, Any]:
        """Return what the log says; the rate is the last step's."""
        n = self.steps
        return {
            "loss": self.loss / n,
            "objective": self.objective / n,
            "learning_rate": self._rate,
            "norm": self._norm / n,
            "norm_max": self._norm_max,
            "clipped": self._clipped / n,
            "tokens_per_second": round(self._tokens / self._seconds, 1),
        }

    def text(self) -> str:
        """Return a few words for the line of progress."""
        means = self.means()
        return f"loss {means['loss']:.3f} nats  {means['tokens_per_second']:,.0f} tokens/s"


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
