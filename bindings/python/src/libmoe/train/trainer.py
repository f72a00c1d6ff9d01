"""The training loop: a run from its settings to its last checkpoint."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe

from .._pretrained import left_out
from . import log, texts
from .config import Settings
from .data import Corpus, load, load_recorded
from .errors import UserError
from .evaluate import bits_per_byte
from .folder import BEST, LAST, MODEL, TOKENIZER, Lock, check_new, claim, write_whole
from .interrupt import Interrupt
from .limits import least_limit, limited_plan, unlimited_bytes
from .load import Load
from .part import train_only
from .progress import Progress
from .ranks import Ranks
from .run import (
    begun_with,
    count_weights,
    latest,
    make_context,
    make_model,
    memory_limit,
    saved_parts,
    threads_note,
    used_threads,
)
from .since import Since
from .update import Update

# Settings that may differ: paths, and what a machine has.
OF_A_RANK = ("files", "tokenizer", "init", "threads")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    why : {"finished", "early stop", "interrupted", "paused"}
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

    def __str__(self) -> str:
        """One line for people."""
        best = f"best held-out bits per byte {self.best_bits:.4f}"
        if not math.isfinite(self.best_bits):
            best = "before the first evaluation that gave a number"
        return f"{self.why} at step {self.step}; {best}"


class Trainer:
    """One run: a text, a model, its optimiser, and a folder with what comes of them.

    The same settings and the same text give the same bits, for any number of threads, and also when the run
    was stopped and taken up again.

    Parameters
    ----------
    settings : Settings
    folder : path
        Made where it is missing.  It must have nothing in it yet, unless `resume`.
    resume : bool
        Whether to go on from the folder's last checkpoint.
    quiet : bool
        Whether nothing is printed.
    on_record : callable, optional
        Called with every record of the log, a dict, as it is written: for TensorBoard, wandb and their like.
    communicator : Communicator, optional
        Of ranks that train together: each computes some of a step's sequences, and has some of the experts.
        All make the same trainer; rank 0 alone prints, writes the log and calls `on_record`.  The bits and
        the checkpoints are those of one process, and any number of ranks goes on from them.

    Raises
    ------
    UserError
        The text or a setting cannot be used, the folder has a run or files of somebody else, another process
        trains into it, there is nothing to resume, or the text is not the one the run began with.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        *,
        resume: bool = False,
        quiet: bool = False,
        on_record: Callable[[log.Record], None] | None = None,
        communicator: libmoe.Communicator | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.ranks = ranks = Ranks(communicator)
        self._lock: Lock | None = None
        self._quiet, self._on_record = quiet or not ranks.is_first, on_record if ranks.is_first else None
        self._plan: libmoe.ModelPlan | None = None  # what a step's activations take, once it is known
        if resume:
            latest(self.folder)
            self._lock = self._locked()
        elif ranks.is_first:
            check_new(self.folder)
        try:
            self._prepare(settings, resume)
        except BaseException:
            self._unlock()
            raise

    def _prepare(self, settings: Settings, resume: bool) -> None:
        """Read the text, make the model, and begin or go on."""
        # Absolute, so that the run can be taken up from anywhere.
        self.settings = replace(settings, files=tuple(map(os.path.abspath, settings.files)))
        self.settings = begun_with(self.settings, self.folder)
        if resume:
            self._take_up_tokenizer()
        self.corpus = self._text(resume)
        self._require_same()
        for part in (self.corpus.training, self.corpus.held_out):  # rather now than at the first evaluation
            part.spread(1, settings.sequence_length + 1)
        self.context = make_context(settings, self.ranks)
        settings = self.settings
        self.model = make_model(settings, self.corpus.vocabulary_size, self.context, self.ranks)
        self.part = train_only(self.model, settings.trained)
        self.update = Update(settings, self.model, self.context, self.part)
        self.step = 0  # steps done
        # Numbers that are saved: best bits per byte, evaluations since then, seconds of training.
        self._numbers: NDArray[np.float64] = np.array([math.inf, 0, 0])
        self._log = log.Log(self.folder, writes=self.ranks.is_first)
        self._load = Load()
        self.ranks.largest(0)  # what the first rank writes, the others have read before
        if resume:
            self._resume()
        else:
            self._begin()
        self.ranks.largest(0)

    def _require_same(self) -> None:
        """Refuse ranks that would train on other texts, or in another way."""
        texts = self.corpus.record.files
        self.ranks.require_same("text", [(file.bytes, file.sha256) for file in texts])
        tokenizer = self.settings.tokenizer
        self.ranks.require_same("tokenizer", Path(tokenizer).read_bytes() if tokenizer else b"")
        for name, value in asdict(self.settings).items():
            if name not in OF_A_RANK:
                self.ranks.require_same(name, value)

    def _locked(self) -> Lock | None:
        """Return the right to train into the folder, which the first rank has for all."""
        return Lock(self.folder) if self.ranks.is_first else None

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take_up_tokenizer(self) -> None:
        """Use the run's own copy; another tokenizer would give other tokens."""
        given, copy = self.settings.tokenizer, self.folder / TOKENIZER
        if not copy.exists():
            return
        gone = given and not Path(given).exists()
        if not gone and not (given and Path(given).read_bytes() == copy.read_bytes()):
            raise UserError(f"tokenizer = {given!r}: it is not that of the run, {str(copy)!r}")
        self.settings = replace(self.settings, tokenizer=str(copy))

    def _text(self, resume: bool) -> Corpus:
        settings = self.settings
        if resume:
            return load_recorded(self.folder, settings)
        return load(
            settings.files,
            held_out=settings.held_out,
            seed=settings.seed,
            tokenizer=settings.tokenizer,
            own=self.folder,
        )

    @property
    def notes(self) -> list[str]:
        """What a user should know of the text and the machine, one sentence or list each."""
        unseen = self.corpus.unseen
        notes = [texts.told(self.corpus.record.passed_over)]
        if unseen.dropped or unseen.unknown:
            notes.append(
                f"the tokenizer has nothing for {unseen.dropped:,} of {unseen.characters:,} characters, and "
                f"writes {unseen.unknown:,} tokens for what it does not know: bits per byte do not count them"
            )
        every = self.model.parameters
        if len(self.part) < len(every):
            count, of = (count_weights(self.model, each) for each in (self.part, every))
            notes.append(
                f"{count:,} of {of:,} weights are trained, in {len(self.part)} of {len(every)} tensors"
            )
        if self.settings.init:
            notes.append(left_out(self.settings.init))
        return [note for note in (*notes, self.corpus.added, threads_note(self.settings)) if note]

    @property
    def best_bits(self) -> float:
        """The lowest held-out bits per byte so far."""
        return float(self._numbers[0])

    @property
    def result(self) -> str:
        """Where the model of a run is that began with a folder, and whether it became better; else empty."""
        place = self.folder / MODEL
        if not self.settings.init or not place.is_dir():
            return ""
        told = f"the model of the best evaluation is in {place}: generate from it"
        evaluations = log.of_kind(log.read(self.folder), "evaluation")
        began = next((each["bits_per_byte"] for each in evaluations if each["step"] == 0), None)
        if began is None or self.best_bits < began:
            return told
        now = evaluations[-1]["bits_per_byte"]
        worse = f"{now:.4f} at the end" if now is not None else "no number at the end"
        return (
            f"no step made it better than {self.settings.init} itself, {began:.4f} bits per byte ({worse}): "
            f"{place} has that folder's weights as they were; try a lower learning rate, or more text"
        )

    @property
    def seconds(self) -> float:
        """Of training so far, without evaluations."""
        return float(self._numbers[2])

    def train(self, *, until: int | None = None) -> Outcome:
        """Train to the end, an early stop or a signal; save; say how it ended.

        Parameters
        ----------
        until : int, optional
            Pause when so many steps are done, without saving, so that several runs can train by turns: the
            next call goes on.

        Raises
        ------
        NotFiniteError, OutOfMemoryError, InvalidArgumentError
            Of a step; the log says why, and the last checkpoint is as it was.
        """
        self._lock = self._lock or self._locked()
        try:
            plan = self._plan = self._plan or self._check_memory()
            with Interrupt() as interrupt, Progress(self.settings.steps, quiet=self._quiet) as progress:
                progress.line(f"a step: {self.settings.tokens_per_step:,} tokens; activations {plan}")
                why = self._to_the_end(interrupt, progress, until)
            if why != "paused":
                self._write("stop", why=why, best_bits=self.best_bits)
            self._log.sync()
        finally:
            self._unlock()
        return Outcome(why, self.step, self.best_bits, interrupt.signal)

    def _to_the_end(self, interrupt: Interrupt, progress: Progress, until: int | None) -> str:
        try:
            return self._loop(interrupt, progress, until)
        except Exception as error:
            self._write("stop", why=type(error).__name__, message=str(error))
            raise

    def _write(self, kind: str, **values: Any) -> None:
        """Log a record, and let the caller have it."""
        self._tell(self._log.write(kind, self.step, **values))

    def _tell(self, record: log.Record) -> None:
        if self._on_record is not None:
            self._on_record(record)

    def _loop(self, interrupt: Interrupt, progress: Progress, until: int | None) -> str:
        """Step, log, evaluate and save, each when it is due; return why it is over."""
        settings = self.settings
        end = settings.steps if until is None else min(until, settings.steps)
        since = Since(self.corpus.training.bits)
        if settings.init and self.step == 0 and math.isinf(self.best_bits):
            self._tell(self._evaluate(progress))  # what the folder's model has to be bettered from
        while self.step < end and not self._is_interrupted(interrupt):
            if self._patience_is_over():
                return "early stop"
            self._one_step(since)
            progress.step(self.step, *since.told())
            due = self.step % settings.evaluate_every == 0 or self.step == settings.steps
            if due or self.step % settings.log_every == 0:
                progress.logged(self.step, *since.told())
                self._write("step", **self._measured(since))
                since = Since(self.corpus.training.bits)
            if due:
                evaluation = self._evaluate(progress)
                self._save(LAST)
                self._tell(evaluation)
        if self.step == settings.steps and not interrupt.signal:
            return "finished"
        if since.steps:
            self._write("step", **self._measured(since))
        if not interrupt.signal:
            return "paused"
        self._save(LAST)
        return "interrupted"

    def _is_interrupted(self, interrupt: Interrupt) -> bool:
        """Return whether a signal has come, on any rank, so that all end with the same step."""
        interrupt.signal = self.ranks.largest(interrupt.signal)
        return interrupt.signal != 0

    # --------------------------------------------------------------------------------------------------------
    # A step
    # --------------------------------------------------------------------------------------------------------

    def _one_step(self, since: Since) -> None:
        """Gradients of `accumulate` forwards, each of `sequences` sequences, then the optimiser."""
        settings = self.settings
        started = time.monotonic()
        count = settings.sequences * settings.accumulate
        windows = self.corpus.training.batch(settings.seed, self.step, count, settings.sequence_length + 1)
        self.model.zero_grad()
        chosen: dict[int, NDArray[np.int64]] = {}  # tokens of each expert in this step, by layer
        for n in range(settings.accumulate):
            rows = self.ranks.part(windows[n * settings.sequences : (n + 1) * settings.sequences])  # [B,S+1]
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

    def _measured(self, since: Since) -> dict[str, Any]:
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

    def _evaluate(self, progress: Progress) -> log.Record:
        """Evaluate, keep the best weights, and return what the log says of it."""
        settings = self.settings
        bits = bits_per_byte(
            self.model,
            self.corpus.held_out,
            sequence_length=settings.sequence_length,
            sequences=settings.sequences,
            most_tokens=settings.evaluate_tokens,
            memory_limit=memory_limit(settings),
            ranks=self.ranks,
        )
        better = bits < self.best_bits
        self._numbers[1] += 1
        if better:
            self._numbers[:2] = bits, 0
            if settings.init:  # before the checkpoint, after which a resumed run would not write it
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # notes have said what is left out
                    self.model.save_pretrained(self.folder / MODEL)
            self._save(BEST)
        told = ", the best so far" if better else ""
        if self.step == 0:
            told = f", which is {settings.init} itself"
        progress.line(f"step {self.step}: held-out {bits:.4f} bits per byte{told}")
        return self._log.write("evaluation", self.step, bits_per_byte=bits, best=better)

    def _patience_is_over(self) -> bool:
        return bool(0 < self.settings.patience <= self._numbers[1])

    def _save(self, name: str) -> None:
        self._log.sync()
        libmoe.save_training(self.folder / name, step=self.step, **self._parts())

    def _parts(self) -> dict[str, Any]:
        parts = saved_parts(self.model)
        own = [self.update.numbers, self._numbers]
        # The file takes float32 and bfloat16, whose bits it keeps: a double is four of the latter.
        as_parameters = [libmoe.Parameter(array.view(np.uint16)) for array in own]
        parts["parameters"] = [*parts["parameters"], *as_parameters]
        of = {"context": self.context, "communicator": self.ranks.communicator}
        return {**parts, **of, "optimizers": [self.update.optimizer]}

    # --------------------------------------------------------------------------------------------------------
    # Beginning
    # --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make the folder, its record of the text, and its log."""
        if not self.ranks.is_first:
            return
        self._lock = claim(self.folder)
        if self.settings.tokenizer:  # the run's own: that of the user may change, or go
            copy = self.folder / TOKENIZER
            write_whole(copy, Path(self.settings.tokenizer).read_bytes())
            self.settings = replace(self.settings, tokenizer=str(copy))
        self.corpus.record.save(self.folder)
        self.settings.save(self.folder)
        self._write(
            "start",
            training_bytes=self.corpus.training.n_bytes,
            held_out_bytes=self.corpus.held_out.n_bytes,
            training_tokens=self.corpus.training.n_tokens,
            files=self.corpus.n_files,
            passed_over=len(self.corpus.record.passed_over),
            dropped_characters=self.corpus.unseen.dropped,
            unknown_tokens=self.corpus.unseen.unknown,
            vocabulary_size=self.corpus.vocabulary_size,
            weights=count_weights(self.model),
            threads=used_threads(self.settings, self.ranks),
            processors=self.ranks.processors,
            library=self.context.build_info(),
            settings=asdict(self.settings),
        )

    def _resume(self) -> None:
        path = latest(self.folder)
        try:
            self.step = libmoe.load_training(path, **self._parts())
        except libmoe.InvalidArgumentError as error:
            raise UserError(f"{str(path)!r} does not fit the settings: {error}") from None
        if self.step > self.settings.steps:
            raise UserError(f"steps = {self.settings.steps}: the run has done {self.step:,} already")
        self.update.take_up()
        self._log.rewind(self.step)
        if self.ranks.is_first:
            self.settings.save(self.folder)

    def _check_memory(self) -> libmoe.ModelPlan:
        """Refuse a limit that is too small before anything is trained; log the plan and return it."""
        settings = replace(self.settings, sequences=-(-self.settings.sequences // self.ranks.size))
        free, ranks = unlimited_bytes(self.model, settings), self.ranks.size
        plan, least, why = None, 0, "it is too little on another rank"
        try:
            plan = limited_plan(self.model, settings)
        except libmoe.InvalidArgumentError as error:
            least, why = least_limit(self.model, settings), str(error)
        least = self.ranks.largest(least)
        if plan is None or least:
            self._write("stop", why="memory limit", message=why, least=least, unlimited=free, ranks=ranks)
            raise UserError(f"memory_limit = {settings.memory_limit} MiB: {why}")
        self._write("plan", total=plan.total_bytes, unlimited=free, keep=plan.keep, ranks=ranks)
        return plan
