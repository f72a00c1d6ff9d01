"""Settings of a run: one dataclass, which is also the command line and a JSON file beside the run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from .._native.check import byte_count
from ..errors import InvalidArgumentError
from ..words import ScheduleKind, WeightDType
from .errors import UserError
from .folder import LOG, SETTINGS, write_whole
from .names import meant

FILE = SETTINGS
# Of settings whose default depends on where a run begins: with a new model, and with one of a folder.
DEFAULTS = {"learning_rate": (1e-3, 1e-4), "weight_decay": (0.1, 0.0)}


def _setting(default: Any, group: str, text: str, choices: tuple[str, ...] = ()) -> Any:
    """Return a field of :class:`Settings`: its default, and what ``--help`` says of it, and where."""
    about = {"group": group, "help": text, "choices": choices}
    if default is None or isinstance(default, (tuple, str, int, float)):
        return field(default=default, metadata=about)
    return field(default_factory=lambda: dict(default), metadata=about)


def mebibytes(text: str) -> int:
    """Return a memory limit in MiB: a number of them, or a text with a unit such as ``"1GB"``."""
    if text.strip().isdigit():
        return int(text)
    try:
        size = byte_count("memory_limit", text)
    except InvalidArgumentError as error:
        raise UserError(str(error)) from None
    if 0 < size < 1 << 20:
        raise UserError(f"memory_limit = {text!r} is less than 1 MiB, the least; 0 means no limit")
    return size >> 20


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on; ``python -m libmoe train --help`` lists it with its units."""

    files: tuple[str, ...] = _setting((), "text", "text files, and folders whose text files are read")
    tokenizer: str = _setting("", "text", "file of the package tokenizers; without it tokens are bytes")
    held_out: float = _setting(0.1, "text", "share of the text that is held out, in blocks drawn by the seed")
    seed: int = _setting(0, "text", "of the split, the batches, the first weights and all that is random")

    init: str = _setting(
        "", "model", "folder of a model that the run begins with, and that decides all sizes below"
    )
    trained: str = _setting(
        "",
        "model",
        "names of the weights that are trained, with * and commas, such as *.attention.*,norm.weight; the "
        "others stay as they are",
    )
    hidden_size: int = _setting(128, "model", "features of a token, H")
    n_layers: int = _setting(4, "model", "transformer layers")
    n_heads: int = _setting(4, "model", "attention heads, a divisor of H")
    n_kv_heads: int = _setting(0, "model", "heads of keys and values; 0: as many as heads")
    n_experts: int = _setting(8, "model", "experts of each layer, E; 0: a dense transformer")
    top_k: int = _setting(2, "model", "experts that each token uses, K")
    intermediate_size: int = _setting(256, "model", "width of an expert, I")
    dense_intermediate_size: int = _setting(
        0, "model", "width of layers without experts; 0: K I, the same work for each token"
    )
    moe_every: int = _setting(1, "model", "every how many layers has experts")
    dropout: float = _setting(0.0, "model", "share that is dropped from embeddings and residuals")
    weight_dtype: str = _setting("f32", "model", "of projections and experts", get_args(WeightDType))
    balance_coef: float = _setting(0.01, "model", "weight of the balance loss")
    z_coef: float = _setting(0.001, "model", "weight of the router's z loss")
    moe: Mapping[str, Any] = _setting(
        {}, "model", "any other argument of libmoe.Layer, such as noise=gaussian noise_std=0.1"
    )

    steps: int = _setting(1000, "training", "optimiser steps")
    sequence_length: int = _setting(128, "training", "tokens of a sequence, S")
    sequences: int = _setting(8, "training", "sequences of one forward")
    accumulate: int = _setting(1, "training", "forwards whose gradients make one step")
    optimizer: str = _setting(
        "adamw", "training", "who steps; muon: matrices, and AdamW all else", ("adamw", "muon")
    )
    learning_rate: float = _setting(None, "training", "the highest (default 0.001, with init 0.0001)")
    schedule: ScheduleKind = _setting(
        "cosine", "training", "how it falls after the warm-up", get_args(ScheduleKind)
    )
    warmup_steps: int = _setting(50, "training", "steps over which it rises; with one_cycle to the top")
    final_fraction: float = _setting(0.1, "training", "of the highest rate, at the end of linear and cosine")
    weight_decay: float = _setting(
        None, "training", "of matrices; norms and biases have none (default 0.1, with init 0)"
    )
    clip: str = _setting(
        "norm",
        "training",
        "gradients are scaled down to max_norm, to a bound that follows their norms, or never",
        ("norm", "adaptive", "none"),
    )
    max_norm: float = _setting(1.0, "training", "of all gradients together, with clip norm")
    selection_bias_rate: float = _setting(
        1e-3, "training", "of the balance without a loss, with --moe selection_bias=true"
    )

    evaluate_every: int = _setting(100, "evaluation", "steps from one evaluation and checkpoint to the next")
    evaluate_tokens: int = _setting(32768, "evaluation", "held-out tokens of an evaluation")
    patience: int = _setting(0, "evaluation", "stop after so many evaluations without a better one; 0: never")
    log_every: int = _setting(
        10,
        "evaluation",
        "steps from one line of the log, or of output to a pipe, to the next",
    )

    threads: int = _setting(0, "machine", "that compute, at most the processors there are; 0: all of these")
    memory_limit: int = _setting(0, "machine", "MiB of activations in a step, or such as 1GB; 0: no limit")

    def __new__(cls, *_: Any, **given: Any) -> Settings:
        """Answer an unknown name with the one that is likely meant."""
        _refuse_unknown(given)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Refuse what no run can have; the library checks the rest."""
        # Its letters would be files otherwise.
        files = [self.files] if isinstance(self.files, (str, os.PathLike)) else self.files
        if not isinstance(files, (list, tuple)) or not all(isinstance(f, (str, os.PathLike)) for f in files):
            raise UserError(f"files = {files!r}: names of files and folders, in a tuple")
        object.__setattr__(self, "files", tuple(map(os.fspath, files)))
        for name in ("tokenizer", "init"):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for name, defaults in DEFAULTS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, defaults[bool(self.init)])
        if not isinstance(self.moe, Mapping):
            raise UserError(f"moe = {self.moe!r}: names and values of arguments of libmoe.Layer, in a dict")
        if self.moe.get("unallocated"):
            raise UserError(
                "moe: unallocated: a run has memory for all gradients; a program of your own can go without, "
                "see Model.backward's optimizer"
            )
        least = {"n_experts": 0, "n_kv_heads": 0, "dense_intermediate_size": 0, "warmup_steps": 0}
        least |= {"patience": 0, "threads": 0, "memory_limit": 0, "seed": 0}
        if isinstance(self.memory_limit, str):
            object.__setattr__(self, "memory_limit", mebibytes(self.memory_limit))
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(each.default, str) and not isinstance(value, str):
                raise UserError(f"{each.name} = {value!r}: a text is wanted")
            if isinstance(each.default, int) and not (
                isinstance(value, int) and not isinstance(value, bool) and value >= least.get(each.name, 1)
            ):
                raise UserError(f"{each.name} = {value!r}: at least {least.get(each.name, 1)}, and whole")
            if (isinstance(each.default, float) or each.name in DEFAULTS) and not (
                isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
            ):
                raise UserError(f"{each.name} = {value!r}: at least 0, and finite")
            choices = each.metadata["choices"]
            if choices and value not in choices:
                raise UserError(f"{each.name} = {value!r}: one of {', '.join(choices)}")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out = {self.held_out}: above 0 and below 1")
        if self.seed >= 1 << 64:
            raise UserError(f"seed = {self.seed}: below 2^64")
        if self.clip == "norm" and self.max_norm == 0:
            raise UserError("max_norm = 0: above 0, or clip none")
        if self.init:
            self._refuse_sizes()
        elif self.n_experts == 0:
            self._refuse_of_experts()

    def _refuse_of_experts(self) -> None:
        """Refuse what is of experts where there are none; top_k and intermediate_size tell the width."""
        for each in fields(self):
            usual = {} if each.name == "moe" else each.default
            value = getattr(self, each.name)
            if each.name in ("moe", "moe_every", "balance_coef", "z_coef") and value != usual:
                raise UserError(
                    f"{each.name} = {value!r}: there are no experts (n_experts = 0); leave it out"
                )

    def _refuse_sizes(self) -> None:
        """Refuse sizes beside a folder to begin with: its model has its own."""
        for each in fields(self):
            name, default = each.name, each.default
            if each.metadata["group"] != "model" or name in ("init", "trained", "weight_dtype"):
                continue
            value = getattr(self, name)
            if value != ({} if name == "moe" else default):
                raise UserError(f"{name} = {value!r}: the model of init has its own; leave it out")

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step learns from."""
        return self.sequences * self.sequence_length * self.accumulate

    def model_arguments(self, vocabulary_size: int) -> dict[str, Any]:
        """Return what :class:`libmoe.Model` is made with."""
        experts = {
            "n_experts": self.n_experts,
            "top_k": self.top_k,
            "intermediate_size": self.intermediate_size,
            "expert_kind": "gated",
            "activation": "silu",
            "balance_coef": self.balance_coef,
            "z_coef": self.z_coef,
            # One weight divided by itself is 1 and teaches the router nothing.
            "router_normalize": self.top_k > 1,
            **self.moe,
        }
        return {
            "hidden_size": self.hidden_size,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "vocabulary_size": vocabulary_size,
            "moe": experts if self.n_experts else None,
            "moe_every": self.moe_every,
            "dense_kind": "gated",
            "dense_intermediate_size": self.dense_intermediate_size or self.top_k * self.intermediate_size,
            "weight_dtype": self.weight_dtype,
            "dropout": self.dropout,
            "seed": self.seed,
        }

    def save(self, folder: Path) -> None:
        """Write config.json, whole or not at all; a tokenizer in the same folder by its name alone."""
        saved = asdict(self)
        if self.tokenizer and Path(self.tokenizer).absolute().parent == folder.absolute():
            saved["tokenizer"] = Path(self.tokenizer).name
        write_whole(folder / FILE, (json.dumps(saved, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Settings:
        """Read config.json.

        Raises
        ------
        UserError
            There is none, it is damaged, or it has a setting that is none.
        """
        folder = Path(folder)
        path = folder / FILE
        if not folder.exists():
            raise UserError(f"no such file or folder: {str(folder)!r}")
        cure = f"write it anew: the first line of {str(folder / LOG)!r} has the settings"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            known = f"; {cure}" if (folder / LOG).exists() else ""
            raise UserError(f"no run in {str(folder)!r}: no such file: {str(path)!r}{known}") from None
        except OSError as error:
            raise UserError(f"no run in {str(folder)!r}: {FILE}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{str(path)!r} is no JSON ({error}): {cure}") from None
        if isinstance(found, dict) and "model_type" in found:
            raise UserError(
                f"{str(folder)!r} is a model's folder, not a run: use generate, chat, eval, inspect or "
                "convert, or begin a run with it: train --init"
            )
        if not isinstance(found, dict):
            raise UserError(f"{str(path)!r} has no settings, which are one JSON object: {cure}")
        try:
            _refuse_unknown(found)
            settings = cls(**found)
        except UserError as error:
            raise UserError(f"{str(path)!r}: {error}") from None
        if settings.tokenizer and not Path(settings.tokenizer).is_absolute():
            settings = replace(settings, tokenizer=str(folder / settings.tokenizer))
        return settings

    def changed(self, values: Mapping[str, Any]) -> Settings:
        """Return these settings with other values for some of them."""
        _refuse_unknown(values)
        return replace(self, **values)


def _refuse_unknown(names: Iterable[str]) -> None:
    known = [each.name for each in fields(Settings)]
    told = []
    for name in names:
        if name not in known:
            instead, remark = meant(name, known)
            told.append(
                f"unknown setting {name!r}"
                + (f"; did you mean {instead!r}?" if instead else "")
                + (f" ({remark})" if remark else "")
            )
    if told:
        raise UserError("\n".join(told))
