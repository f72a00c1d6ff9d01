"""How tokens are drawn where a call does not say it: a model's defaults, and those of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Place
from typing import Any

import numpy as np

from ._gguf import is_gguf, keys_of
from ._gguf_tokenizer import end_tokens as end_tokens_of
from ._keywords import keywords
from ._native import check
from .blocks._tokens import check_sampling
from .checkpoint import Path, place_of
from .errors import ArgumentTypeError, FileError, InvalidArgumentError

FILE = "generation_config.json"
TOP_K = 50  # of transformers, where a file that asks for sampling does not say it

# Keys of the file that choose other tokens and are not computed here, and values at which they do nothing.
_OTHERS: Mapping[str, Sequence[Any]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "watermarking_config": (),
}
# Those that only act where tokens are drawn.
_DRAWN: Mapping[str, Sequence[Any]] = {
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (1,),
    "typical_p": (1,),
}
# Keys of the file that have another name here.
_KEYS = {
    "n_tokens": ("max_new_tokens", "a number of tokens"),
    "end_tokens": ("eos_token_id", "a token's number or a list of such"),
    "stop": ("stop_strings", "a text or a list of texts, none of them empty"),
    "max_length": ("max_length", "a number of tokens"),
}


@keywords
@dataclass(frozen=True)
class Sampling:
    """Defaults of :meth:`Model.generate`, :meth:`Model.generate_batch` and :meth:`Model.write`.

    Attributes
    ----------
    temperature : float
        0: the largest logit.
    top_k : int
        Of the k likeliest alone; 0: of all.
    top_p : float
        Of the fewest, likeliest that hold this share; 1: of all.
    min_p : float
        Of those at least so many times as likely as the likeliest; 0: of all.
    repetition_penalty : float
        For tokens that were there before; 1: none.
    n_tokens : int, optional
        How many at most.
    end_tokens : tuple of int
        Tokens after which a sequence has ended.
    stop : tuple of str
        Texts after which it has ended.
    not_computed : tuple of str
        What a folder asks for beside that; generation is refused until the model's ``sampling`` is set.
    max_length : int, optional
        Without n_tokens: how many at most together with the prompt, padding included.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    n_tokens: int | None = None
    end_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    not_computed: tuple[str, ...] = ()
    max_length: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that no call could use."""
        check_sampling(**self.drawing(), seed=0)
        object.__setattr__(self, "end_tokens", end_tokens(self.end_tokens))
        object.__setattr__(self, "stop", stop_texts(self.stop))
        if self.n_tokens is not None:
            check.count("n_tokens", self.n_tokens)
        if self.max_length is not None:
            check.count("max_length", self.max_length)

    def most_tokens(self, n_prompt: int) -> int:
        """Return how many tokens follow a prompt of so many where the call does not say it.

        Raises
        ------
        InvalidArgumentError
            There is no default, or the prompt leaves no room.
        """
        if self.n_tokens is not None:
            return self.n_tokens
        if self.max_length is None:
            raise InvalidArgumentError("n_tokens: say how many tokens at most; this model has no default")
        if n_prompt >= self.max_length:
            raise InvalidArgumentError(
                f"n_tokens: say how many tokens at most; the model's default is max_length = "
                f"{self.max_length} together with the prompt, which has {n_prompt} already"
            )
        return self.max_length - n_prompt

    def drawing(self) -> dict[str, Any]:
        """Return what :func:`libmoe.blocks.sample` is told."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_pretrained(cls, folder: Path) -> Sampling:
        """Return what generation_config.json of a folder asks for, as transformers reads it; or a GGUF file.

        Where there is none, end tokens are those of config.json; without ``do_sample`` the largest logit is
        taken.

        Raises
        ------
        InvalidArgumentError
            The file is no JSON object, or a number in it is out of range.
        FileError
            It cannot be read.
        """
        if is_gguf(folder):
            return _of_gguf(folder)
        path = place_of(folder) / FILE
        found = _read(path)
        if found is None:
            path = place_of(folder) / "config.json"
            config = _read(path) or {}
            inner = config.get("text_config")
            found = {"eos_token_id": config.get("eos_token_id")}
            if found["eos_token_id"] is None and isinstance(inner, dict):
                found["eos_token_id"] = inner.get("eos_token_id")
        try:
            return _of(found)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{str(path)!r}: {_by_key(str(error), found)}") from None


# Keys of GGUF files, and what they are here.
_GGUF = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def _of_gguf(path: Path) -> Sampling:
    """Return what the keys of a GGUF file say."""
    keys = keys_of(path)
    drawn = {ours: keys.get(f"general.sampling.{theirs}") for theirs, ours in _GGUF.items()}
    found = {**drawn, "do_sample": drawn["temperature"] is not None, "eos_token_id": end_tokens_of(keys)}
    try:
        return _of(found)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{str(path)!r}: its keys of general.sampling: {error}") from None


def _by_key(text: str, found: Mapping[str, Any]) -> str:
    """Say what is wrong with a value by the key that it has in the file."""
    for ours, (key, wanted) in _KEYS.items():
        if text.startswith((ours + ":", ours + " ", ours + "[")):
            return f"{key} = {json.dumps(found.get(key))} is not {wanted}: mend it, or take it away"
    return text


def _read(path: Place) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileError(f"{str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{str(path)!r} is no JSON ({error}): mend it, or take it away") from None
    if not isinstance(found, dict):
        raise InvalidArgumentError(f"{str(path)!r}: expected one JSON object: mend it, or take it away")
    return found


def _of(found: Mapping[str, Any]) -> Sampling:
    drawn = bool(found.get("do_sample"))
    names = ("repetition_penalty", *(("temperature", "top_p", "min_p") if drawn else ()))
    given = {name: found[name] for name in names if found.get(name) is not None}
    if drawn:
        given["top_k"] = TOP_K if found.get("top_k") is None else found["top_k"]
    else:
        given["temperature"] = 0.0
    end, stop = found.get("eos_token_id"), found.get("stop_strings")
    others = {**_OTHERS, **(_DRAWN if drawn else {})}
    return Sampling(
        **given,
        n_tokens=found.get("max_new_tokens"),
        max_length=found.get("max_length"),
        end_tokens=() if end is None else end,
        stop=() if stop is None else stop,
        not_computed=tuple(
            f"{name} = {found[name]!r}"
            for name, idle in others.items()
            if found.get(name) is not None and found[name] not in idle
        ),
    )


def end_tokens(value: Any) -> tuple[int, ...]:
    """Return end tokens as a tuple: one int, or several."""
    listed = [value] if isinstance(value, (int, np.integer)) else check.listed("end_tokens", value, "[2]")
    return tuple(check.integers("end_tokens", listed, np.int32).tolist())


def stop_texts(value: Any) -> tuple[str, ...]:
    """Return texts that end a sequence as a tuple: one str, or several."""
    listed = [value] if isinstance(value, str) else check.listed("stop", value, 'a list of texts: ["\\n\\n"]')
    for text in listed:
        if not isinstance(text, str):
            raise ArgumentTypeError(f"stop: expected texts, got {type(text).__name__}; tokens are end_tokens")
        if not text:
            raise InvalidArgumentError("stop: an empty text would end at once; leave it out")
    return tuple(listed)
