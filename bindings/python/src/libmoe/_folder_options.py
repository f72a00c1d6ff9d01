"""Options of the commands for models in folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from ._native.check import byte_count
from .errors import InvalidArgumentError
from .train.errors import UserError
from .words import FolderDType, Prepared

WINDOW, WINDOWS = 512, 4  # tokens of a window, and windows at once
CALIBRATION = 32_768  # tokens of a text

PRETRAINED_EXAMPLES = """\
examples:
  python -m libmoe inspect OLMoE-1B-7B               what it is, and the memory it will take
  python -m libmoe generate OLMoE-1B-7B --prompt "Once upon a time" --tokens 100
  python -m libmoe generate OLMoE-1B-7B --prompt "Once upon a time" --prepared int8
  python -m libmoe chat gpt-oss-20b --resident-limit 8GB
  python -m libmoe generate Qwen3-30B-A3B-Q4_K_M.gguf --prompt "Once upon a time"
  python -m libmoe eval OLMoE-1B-7B book.txt
  python -m libmoe convert OLMoE-1B-7B OLMoE-f32 --dtype f32
  python -m libmoe convert OLMoE-1B-7B OLMoE-int4 --weights int4_a8 --calibration book.txt

FOLDER has config.json, model.safetensors or its shards, and tokenizer.json, as transformers writes them; or
it is a GGUF file, of several the first.
"""


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the folder that is read."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the model, or a GGUF file")


def add_reading(parser: argparse.ArgumentParser, title: str = "reading") -> None:
    """Add how a folder is read."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--weight-dtype",
        choices=get_args(FolderDType),
        default="own",
        help="of the weights in memory; own: that of the files (default own)",
    )
    group.add_argument(
        "--prepared",
        choices=get_args(Prepared),
        default="none",
        help="pack weights while they are read: faster, and int8 and int4 are small; stored: what the files "
        "hold in few bits as it is (default none)",
    )
    _add_limit(
        group, "of weights in memory, such as 8GB; experts beyond it are read as they are used (default none)"
    )
    add_threads(group)


def _add_limit(parser: argparse._ActionsContainer, text: str) -> None:
    parser.add_argument("--resident-limit", type=_size, default=0, metavar="SIZE", help=text)


def add_windows(parser: argparse.ArgumentParser) -> None:
    """Add the windows that a text is evaluated in."""
    for name, default, what in (
        ("--sequence-length", WINDOW, "of a window"),
        ("--sequences", WINDOWS, "windows at once"),
    ):
        text = f"{what}, for a model's folder (default {default})"
        parser.add_argument(name, type=positive, metavar="N", help=text)


def refuse_reading(asked: argparse.Namespace) -> None:
    """Refuse what is for a model's folder where there is a run, which has its own settings."""
    usual = {"weight_dtype": "own", "prepared": "none", "resident_limit": 0, "threads": 0}
    for name in (*usual, "sequence_length", "sequences"):
        if getattr(asked, name) != usual.get(name):
            raise UserError(f"{option(name)}: is of a model's folder; a run has its own settings")


def add_threads(parser: argparse._ActionsContainer) -> None:
    """Add how many threads compute."""
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="that compute (default all)")


def add_drawing(parser: argparse.ArgumentParser, tokens: int) -> None:
    """Add how tokens are drawn; what is not given is as the folder's generation_config.json has it."""
    group = parser.add_argument_group("drawing", "by default as the folder's generation_config.json says")
    group.add_argument(
        "--tokens", type=positive, default=tokens, metavar="N", help=f"to write at most (default {tokens})"
    )
    either = group.add_mutually_exclusive_group()
    either.add_argument("--temperature", type=float, metavar="X", help="0: always the likeliest")
    either.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    group.add_argument("--top-k", type=int, metavar="K", help="only of the k likeliest; 0: of all")
    group.add_argument("--top-p", type=float, metavar="P", help="only of the likeliest that add up to p")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="only of those p times as likely as the first"
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="for tokens that were there before; 1: none"
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="ends the text; may be given again")
    group.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")


def add_converting(parser: argparse.ArgumentParser) -> None:
    """Add how a folder is written."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("output", nargs="?", type=Path, metavar="OUTPUT", help="new folder")
    either.add_argument("--output", dest="output_too", type=Path, metavar="OUTPUT", help="the same")
    parser.add_argument(
        "--weights",
        choices=get_args(Prepared),
        default="none",
        help="packed so, as --prepared of the other commands packs them: small files, ready at once",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="text by which the few bits of --weights are chosen: like what the model will read",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=positive,
        metavar="N",
        help=f"of that text at most (default {CALIBRATION})",
    )
    parser.add_argument(
        "--dtype", choices=get_args(FolderDType), default="own", help="of the weights (default own)"
    )
    parser.add_argument(
        "--max-shard-size",
        type=_size,
        default="50GB",
        metavar="SIZE",
        help="of a file; 0: one file (default 50GB)",
    )
    _add_limit(parser, "of weights in memory while --calibration is read, such as 8GB (default none)")
    add_threads(parser)


def option(name: str) -> str:
    """Return the option of a setting."""
    return "--" + name.replace("_", "-")


def positive(text: str) -> int:
    """Return a whole number above 0 of the command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def _size(text: str) -> int:
    try:
        return int(text) if text.isdigit() else byte_count("size", text)
    except InvalidArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
