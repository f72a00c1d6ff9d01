"""Commands for models in folders: let one write, talk with it, measure it, look into it, write it anew."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import libmoe

from ._conversation import Conversation, chosen
from ._folder_options import CALIBRATION, WINDOW, WINDOWS, option
from ._gguf import gguf_files, is_gguf, keys_of
from ._screen import Meter, Speed, size
from .blocks._tokens import check_sampling
from .pretrained import describe_pretrained
from .train import texts
from .train.data import Part, whole
from .train.errors import UserError
from .train.evaluate import bits_per_byte, what_is_read
from .train.folder import MODEL, is_run
from .train.output import counted, say
from .train.sample import printable
from .train.tokenizer import Tokenizer
from .words import FolderDType

LETTERS = 16  # of a calibration text that are read for each token
NAMED = 8  # experts that a line names
LEAVE = ("/exit", "/quit")
FORMATS: tuple[FolderDType, ...] = ("f32", "bf16", "f16")


def is_model_folder(folder: Path) -> bool:
    """Return whether a path is a model's rather than a run's: config.json names a family, or it is a file."""
    if folder.is_file() or gguf_files(folder):
        return True
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "model_type" in found


def generate(asked: argparse.Namespace) -> int:
    """Continue a text; what is written goes to the standard output, how fast to the standard error."""
    if asked.prompt == "-" and asked.processes.size > 1:
        raise UserError("--prompt -: the standard input is one rank's alone; give the text itself")
    text = sys.stdin.read() if asked.prompt == "-" else asked.prompt
    sampling, coder = _looked_at(asked)
    prompt = coder.encode(text)
    if not prompt:
        raise UserError("the prompt has no token; give it at least one letter")
    model = _read(asked, sampling, coder)
    speed = Speed(len(prompt), sampling.end_tokens)
    tokens = model.generate(prompt, asked.tokens, seed=asked.seed, stop=())
    print(text, end="", flush=True)
    _print(model.written(speed.timed(tokens), prompt))
    _note(asked, str(speed))
    return 0


def _note(asked: argparse.Namespace, text: str) -> None:
    """Say it on the standard error, of several ranks on the first."""
    if asked.processes.is_first:
        say(text, error=True)


def chat(asked: argparse.Namespace) -> int:
    """Talk, line by line; an empty line or the end of the input leaves."""
    sampling, coder = _looked_at(asked)
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    coder.chat([*system, {"role": "user", "content": ""}])  # now rather than after the first question
    model = _read(asked, sampling, coder)
    talk = Conversation(model, asked.system)
    say(f"write a line; {LEAVE[0]}, or the end of the input (Ctrl-D), leaves", error=True)
    while True:
        line = _asked()
        if line is None or line.strip() in LEAVE:
            return 0
        if not line.strip():
            continue
        speed = Speed(0, sampling.end_tokens)
        tokens = talk.reply(line, asked.tokens, seed=asked.seed)
        pieces = model.written(speed.timed(tokens), talk.prompt())
        talk.said(_print(pieces))
        speed.n_prompt = talk.n_unread
        say(str(speed), error=True)


def _asked() -> str | None:
    """Return the next line, without a line break; None at the end of the input."""
    say("> ", error=True, end="")
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _print(pieces: Iterator[str]) -> str:
    """Print text as it comes, a line break, then warnings, which would break into it; return the text."""
    written = []

    def heard() -> Iterator[bytes]:
        for piece in pieces:
            written.append(piece)
            yield piece.encode()

    with warnings.catch_warnings(record=True) as caught:
        for shown in printable(heard()):
            print(shown, end="", flush=True)
    print(flush=True)
    for each in caught:
        warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    return "".join(written)


def _looked_at(asked: argparse.Namespace) -> tuple[libmoe.Sampling, libmoe.Tokenizer]:
    """Return how a folder's model draws, and its tokenizer: what is wrong is said before weights are read."""
    _require_model(asked)
    given = {
        "temperature": 0.0 if asked.greedy else asked.temperature,
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "stop": asked.stop,
    }
    defaults = libmoe.Sampling.from_pretrained(asked.folder)
    if defaults.not_computed:
        asks = ", ".join(defaults.not_computed)
        _note(asked, f"generation_config.json asks for {asks}, which is not computed: it is left out")
    sampling = chosen(defaults, **given)
    check_sampling(**sampling.drawing(), seed=asked.seed)
    return sampling, libmoe.Tokenizer(asked.folder)


def _require_model(asked: argparse.Namespace) -> None:
    """Refuse a folder from which no model can be read, or not so."""
    folder: Path = asked.folder
    if is_run(folder):
        raise UserError(
            f"{str(folder)!r} is a run, not a model's folder: use sample, or, where it began with "
            f"--init, the folder {str(folder / MODEL)!r}"
        )
    if not folder.exists():
        raise UserError(f"no such file or folder: {str(folder)!r}")
    if not _is_packed(describe_pretrained(folder)):
        return
    for name, usual in (("prepared", "none"), ("weight_dtype", "own"), ("weights", "none"), ("dtype", "own")):
        if (getattr(asked, name, None) or usual) != usual:
            raise UserError(
                f"--{name.replace('_', '-')}: the weights of {str(folder)!r} are packed already and stay as "
                "they are; leave it out, or name the folder that they were packed from"
            )


def _is_packed(info: libmoe.PretrainedInfo) -> bool:
    """Return whether libmoe wrote a folder with packed weights."""
    return (json.loads(info.config).get("quantization_config") or {}).get("quant_method") == "libmoe"


def _read(
    asked: argparse.Namespace,
    sampling: libmoe.Sampling | None = None,
    tokenizer: libmoe.Tokenizer | None = None,
    calibration: libmoe.Calibration | None = None,
) -> libmoe.Model:
    """Read a folder's model for inference."""
    ranks = asked.processes
    meter = Meter("reading", "read", str(asked.folder))
    model = libmoe.Model.from_pretrained(
        asked.folder,
        weight_dtype=asked.weight_dtype,
        inference_only=True,
        prepared=asked.prepared,
        resident_limit=asked.resident_limit,
        calibration=calibration,
        progress=meter if ranks.is_first else None,
        context=libmoe.Context(min(asked.threads or ranks.processors, libmoe.processors())),
        communicator=ranks.communicator,
    )
    if ranks.is_first:
        meter.end()
    if sampling is not None:
        model.sampling = sampling
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def evaluate(asked: argparse.Namespace) -> int:
    """Bits per byte and perplexity of texts."""
    if not asked.files:
        raise UserError(f"{str(asked.folder)!r} is a model's folder: name texts to evaluate it on")
    if asked.weights is not None:
        raise UserError("--weights: is of runs; a model's folder has one set of weights")
    _require_model(asked)
    coder = Tokenizer(str(libmoe.Tokenizer(asked.folder).path))
    found, passed_over = texts.find(asked.files, utf8=True)
    if texts.told(passed_over):
        _note(asked, texts.told(passed_over))
    asked.processes.require_same("texts", [text.sha256 for text in found])
    part = whole(found, coder)
    length = min(asked.sequence_length or WINDOW, part.n_tokens - 1)
    if length < 1:
        raise UserError("the texts have less than two tokens, the least that can be evaluated")
    most = asked.tokens or part.n_tokens
    model = _read(asked)
    bits = bits_per_byte(
        model,
        part,
        sequence_length=length,
        sequences=asked.sequences or WINDOWS,
        most_tokens=most,
        ranks=asked.processes,
    )
    read = what_is_read(part, most, length, "tokens")
    print(f"{bits:.4f} bits per byte, perplexity {_perplexity(bits, part):.4f} per token, of ", end="")
    print(f"{read or f'{part.n_bytes:,} bytes ({part.n_tokens:,} tokens)'}, in windows of {length}")
    return 0


def _perplexity(bits: float, part: Part) -> float:
    nats = bits / part.bits
    return math.exp(nats) if nats < 700 else math.inf


def convert(asked: argparse.Namespace) -> int:
    """Read a folder and write it anew, in another type or other shards."""
    asked.output = asked.output or asked.output_too
    if asked.output.exists() and asked.output.resolve() == asked.folder.resolve():
        raise UserError(f"{str(asked.output)!r} is the folder itself: name another one")
    if (asked.output / "config.json").exists():
        raise UserError(f"{str(asked.output)!r} has a config.json already: name a new folder")
    _require_model(asked)
    asked.weight_dtype = asked.dtype
    calibration = _calibrated(asked)
    asked.prepared, asked.resident_limit = asked.weights, 0
    model = _read(asked, calibration=calibration)
    meter = Meter("writing", "wrote", str(asked.output))
    with warnings.catch_warnings(record=True) as caught:  # the line of the meter ends first
        warnings.simplefilter("always")
        model.save_pretrained(
            asked.output, dtype=asked.dtype, max_shard_size=asked.max_shard_size, progress=meter
        )
    meter.end()
    for each in caught:
        say(f"libmoe convert: {each.message}", error=True)
    return 0


def _calibrated(asked: argparse.Namespace) -> libmoe.Calibration | None:
    """Return what the folder's own weights read of the text that few bits are chosen by."""
    if asked.calibration is None:
        for name in ("calibration_tokens", "resident_limit"):
            if getattr(asked, name):
                raise UserError(f"{option(name)}: is of the text that --calibration names; give both")
        return None
    if asked.weights == "none":
        raise UserError("--calibration: it chooses few bits; say with --weights which, such as int4_a8")
    n_tokens = asked.calibration_tokens or CALIBRATION
    try:
        with asked.calibration.open(encoding="utf-8") as file:
            text = file.read(LETTERS * n_tokens)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(asked.calibration)!r} is no text in UTF-8 ({error}): name one that is"
        ) from None
    asked.prepared = "none"
    with _read(asked) as model:
        meter = Meter("calibrating with", "calibrated with", str(asked.calibration), "{:,} tokens".format)
        calibration = libmoe.calibrate(model, text, tokens=n_tokens, progress=meter)
        meter.end()
    few = calibration.few
    if few:
        named = ", ".join(f"{each.name} {each.expert} ({each.n_tokens})" for each in few[:NAMED])
        more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
        say(
            f"libmoe convert: fewer than 32 tokens reached {len(few)} experts ({named}{more}): they are "
            "packed by what all experts of their layer read; a longer text may reach them",
            error=True,
        )
    return calibration


def inspect(folder: Path) -> Iterator[str]:
    """Tell what a folder holds, line by line, and what it will take."""
    info = describe_pretrained(folder)
    positions = f", {info.max_positions:,} positions" if info.max_positions else ""
    yield (
        f"{folder}: {info.model_type}, {counted(info.n_layers, 'layer')}, hidden size {info.hidden_size}, "
        f"vocabulary {info.vocabulary_size:,}{positions}"
    )
    if info.n_moe_layers:
        layers = counted(info.n_moe_layers, "layer")
        yield f"{layers} of experts: {info.top_k} of {info.n_experts} for each token"
    yield f"{info.n_parameters:,} weights, {info.n_active:,} of them used for a token"
    held = _packed(folder) if _is_packed(info) else f"most of them {info.dtype}"
    yield f"files: {size(info.file_bytes)} in {info.n_tensors:,} tensors, {held}"
    yield from _memory(folder, info)
    if info.n_left_tensors:
        yield f"the model does not use {counted(info.n_left_tensors, 'tensor')} ({info.left_tensors})"
    if info.ignored_keys:
        yield f"keys of config.json that change no number: {info.ignored_keys}"
    sampling = libmoe.Sampling.from_pretrained(folder)
    if sampling.not_computed:
        yield f"generation_config.json asks for what is not computed: {', '.join(sampling.not_computed)}"
    if is_gguf(folder):
        yield f"tokenizer: {keys_of(folder).get('tokenizer.ggml.model', 'none')}"
        return
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if not (folder / name).exists():
            yield f"there is no {name}"


def _packed(folder: Path) -> str:
    """Say in which forms a folder's weights are packed, that of most bytes first."""
    whole = folder / "model.safetensors"
    path = whole if whole.exists() else folder / "model.safetensors.index.json"
    sizes: dict[str, int] = {}
    with libmoe.Checkpoint(path) as checkpoint:
        for name in checkpoint:
            _, mark, form = name.partition(".packed.")
            if mark:
                sizes[form] = sizes.get(form, 0) + checkpoint[name].nbytes
    return f"packed as {', '.join(sorted(sizes, key=lambda form: -sizes[form]))}"


def _memory(folder: Path, info: libmoe.PretrainedInfo) -> Iterator[str]:
    if _is_packed(info):
        experts = f"of which experts {size(info.expert_bytes)}"
        yield f"weights are packed and mapped: {size(info.parameter_bytes)}, {experts}"
        return
    yield "memory of the weights:"
    for form in FORMATS:
        other = describe_pretrained(folder, weight_dtype=form, inference_only=True)
        yield (
            f"  {form:5}{size(other.parameter_bytes):>10}, of which experts "
            f"{size(other.expert_bytes)}; to train them all {size(_training(other))}"
        )


def _training(info: libmoe.PretrainedInfo) -> int:
    """Bytes of weights, gradients and AdamW's two moments, and of the float32 copies of 16-bit weights."""
    narrow = info.parameter_bytes < 4 * info.n_parameters
    return info.parameter_bytes + (4 + 8 + 4 * narrow) * info.n_parameters
