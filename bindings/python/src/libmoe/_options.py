"""The options of the command line, and what is suggested in place of those that there are not."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import libmoe

from . import _folder_options as folder_options
from . import _installed
from . import _scale_command as scale_command
from ._folder_options import option
from ._keywords import nearest
from .train.config import DEFAULTS, Settings, mebibytes
from .train.errors import UserError
from .train.names import meant

Command = Callable[[argparse.Namespace], int]

EXAMPLES = """\
examples:
  python -m libmoe generate OLMoE-1B-7B --prompt "Once upon a time"    a model's folder, as people have it
  python -m libmoe chat OLMoE-1B-7B-Instruct
  python -m libmoe train book.txt --init OLMoE-1B-7B --output runs/tuned
  python -m libmoe train book.txt --output runs/book --steps 500
  python -m libmoe train src/ notes.md --output runs/code --n-experts 16 --top-k 2 --threads 4
  python -m libmoe train --resume runs/book          goes on where it stopped, with the same bits
  python -m libmoe inspect runs/book --plots         what happened, what is wrong, pictures
  python -m libmoe sample runs/book --prompt "It was" --tokens 300
  python -m libmoe eval runs/book other.txt
  python -m libmoe bench --hidden-size 256 --threads 2
  python -m libmoe scale --n-experts 64 --ranks-per-node 2     how a layer does on many machines
"""

TRAIN_EXAMPLES = """\
examples:
  python -m libmoe train book.txt --output runs/book
  python -m libmoe train book.txt --output runs/small --hidden-size 64 --n-layers 2 --steps 200
  python -m libmoe train book.txt --output runs/noisy --moe noise=gaussian noise_std=0.1
  python -m libmoe train book.txt --output runs/dense --n-experts 0
  python -m libmoe train --resume runs/book --steps 2000
  python -m libmoe train book.txt --init OLMoE-1B-7B --trained "*.attention.*" --output runs/tuned

RUN must be new or empty.  RUN/config.json has the settings, RUN/texts.json names, sizes and checksums of the
text, RUN/log.jsonl what happened, one JSON object a line; RUN/last.safetensors and RUN/best.safetensors are
the checkpoints.  With --init RUN/model is a folder again, that of the best evaluation, of which the first is
that of FOLDER itself.

Ctrl-C finishes the step, saves, and leaves with status 130; a second one leaves at once.  SIGTERM (143) and a
terminal that is closed (129) do so too.  Where nobody reads what is printed any more, training goes on.
"""


def parse(arguments: Sequence[str] | None, commands: Mapping[str, Command]) -> argparse.Namespace:
    """Read a command line; leave with status 2 where it is wrong, with a suggestion."""
    parser, parsers = _parser(commands)
    asked, unknown = parser.parse_known_args(arguments)
    if not unknown:
        return asked
    used = parsers[asked.command]
    wrong = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
    used.error(f"unrecognized arguments: {' '.join(unknown)}{_instead(wrong, used)}")


class _Parser(argparse.ArgumentParser):
    """One that suggests a word in place of one that there is not, as it does of options."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = nearest(str(value), action.choices or ())
            if near:
                error.message += f"; did you mean {' or '.join(near)}?"
            raise


def _instead(wrong: str, parser: argparse.ArgumentParser) -> str:
    """Say which option of a command is likely meant, or nothing."""
    names = {action.dest: bool(action.option_strings) for action in parser._actions}
    name, remark = meant(wrong.lstrip("-").replace("-", "_"), names) if wrong else ("", "")
    if not name:
        return ""
    if not names[name]:
        return f"; {name} are named without an option"
    return f"; did you mean {option(name)}?" + (f" ({remark})" if remark else "")


def _parser(
    run: Mapping[str, Command],
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and that of each command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "python -m libmoe",
        description="Train Mixture-of-Experts language models on the CPU, and use those in folders.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=libmoe.__version__)
    for name, place, what in (
        ("--library", _installed.library, "the shared library in use"),
        ("--include-dir", _installed.include_dir, "the folder of moe.h and moe.hpp"),
        ("--cmake-dir", _installed.cmake_dir, "libmoe_DIR for CMake's find_package(libmoe)"),
    ):
        parser.add_argument(name, action=_Tell, const=place, help=f"print {what}, and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=raw, allow_abbrev=False
        )
        added.set_defaults(run=run[name])
        return added

    train = command("train", "train a model on text", TRAIN_EXAMPLES)
    train.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        default=None,
        help="text files, UTF-8 with a tokenizer, or folders of them",
    )
    train.add_argument("--output", type=Path, metavar="RUN", help="new folder of the run (default run)")
    train.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run, with the settings it has"
    )
    train.add_argument(
        "--profile",
        action="store_true",
        help="print where the time went; also RUN/profile.json, and RUN/trace.json for Perfetto",
    )
    _add_settings(train, ("text", "model", "training", "evaluation", "machine"))

    evaluate = command("eval", "bits per byte of held-out text, or of other files")
    _add_folder(evaluate, "FOLDER", "folder of a run, or of a model", default=None)
    evaluate.add_argument("files", nargs="*", metavar="FILE", help="in place of the run's held-out text")
    evaluate.add_argument(
        "--tokens", type=folder_options.positive, help="at most so many, in whole windows (default all)"
    )
    folder_options.add_windows(evaluate)
    folder_options.add_reading(evaluate, "of a model's folder")

    write = command("sample", "let a model write")
    _add_folder(write)
    write.add_argument("--prompt", default="\n", help="what it continues (default a line break)")
    write.add_argument("--tokens", type=folder_options.positive, default=400, help="to write (default 400)")
    write.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest (default 0.8)")
    write.add_argument("--top-k", type=int, default=0, help="only of the k likeliest; 0: of all (default 0)")
    write.add_argument(
        "--top-p", type=float, default=1.0, help="only of the likeliest that add up to p (default 1)"
    )
    write.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")

    look = command("inspect", "what happened in a run, or what a model's folder holds and will take")
    look.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a run, or of a model")
    look.add_argument("--plots", action="store_true", help="draw pictures into the folder; needs matplotlib")

    _add_folder_commands(command)

    time = command("bench", "how fast a model of given sizes is on this machine")
    time.add_argument(
        "--rounds", type=folder_options.positive, default=5, help="whose median counts (default 5)"
    )
    time.add_argument("--profile", action="store_true", help="print where the time of training goes")
    _add_settings(time, ("model", "machine"), also=("sequence_length", "sequences"), but=("trained",))

    far = command(
        "scale", "a layer on 1 to 1,024 ranks, simulated from what is measured", scale_command.EXAMPLES
    )
    scale_command.add_options(far)
    return parser, dict(commands.choices)


def _add_folder_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add what is for the folders of models alone."""
    examples = folder_options.PRETRAINED_EXAMPLES
    go_on = command("generate", "let a model in a folder continue a text", examples)
    folder_options.add_folder(go_on)
    go_on.add_argument("--prompt", required=True, metavar="TEXT", help="what it continues; -: standard input")
    folder_options.add_drawing(go_on, 200)
    folder_options.add_reading(go_on)

    talk = command("chat", "talk with a model in a folder, by its chat template", examples)
    folder_options.add_folder(talk)
    talk.add_argument("--system", default="", metavar="TEXT", help="what the model is told before")
    folder_options.add_drawing(talk, 1000)
    folder_options.add_reading(talk)

    anew = command("convert", "write a model's folder anew, in another type or other shards", examples)
    folder_options.add_folder(anew)
    folder_options.add_converting(anew)


class _Tell(argparse.Action):
    """Print where something is, alone on a line for other programs to read, and leave."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: Any, help: str) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, const=const, default=argparse.SUPPRESS, help=help
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            place = self.const()
        except libmoe.FileError as error:
            parser.exit(1, f"libmoe {self.option_strings[0]}: {error}\n")
        if hasattr(sys.stdout, "buffer"):  # the path's own bytes, which may be no text
            sys.stdout.buffer.write(os.fsencode(place) + b"\n")
        else:
            print(place)
        parser.exit()


def _add_folder(
    parser: argparse.ArgumentParser,
    metavar: str = "RUN",
    text: str = "folder of the run",
    default: str | None = "best",
) -> None:
    parser.add_argument("folder", type=Path, metavar=metavar, help=text)
    parser.add_argument(
        "--weights", choices=("best", "last"), default=default, help="of which checkpoint (default best)"
    )


_METAVARS = {"init": "FOLDER", "trained": "NAMES"}  # of settings whose type does not say it


def _add_settings(
    parser: argparse.ArgumentParser, groups: Sequence[str], also: Sequence[str] = (), but: Sequence[str] = ()
) -> None:
    """Options for the settings of these groups; their values are None where they are not given."""
    made: dict[str, Any] = {}
    for each in fields(Settings):
        group, choices = each.metadata["group"], each.metadata["choices"]
        if each.name in ("files", *but) or (group not in groups and each.name not in also):
            continue
        if group not in made:
            made[group] = parser.add_argument_group(group)
        text = each.metadata["help"].replace("%", "%%")
        if each.name == "moe":
            made[group].add_argument("--moe", nargs="+", type=_pair, metavar="NAME=VALUE", help=text)
            continue
        default = "" if each.default in ("", None) else f" (default {each.default})"
        kind: Any = float if each.name in DEFAULTS else type(each.default)
        metavar = _METAVARS.get(each.name) or {int: "N", float: "X", str: "FILE"}[kind]
        parse = _mebibytes if each.name == "memory_limit" else kind
        made[group].add_argument(
            option(each.name),
            type=parse,
            choices=choices or None,
            metavar=None if choices else metavar,
            help=text + default,
        )


def given_settings(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line has."""
    names = {each.name for each in fields(Settings)}
    given = {name: value for name, value in vars(asked).items() if name in names and value is not None}
    # Absolute, so that the run can be taken up from anywhere.
    for name in ("files", "tokenizer", "init"):
        if not given.get(name, True):
            del given[name]
    if "files" in given:
        given["files"] = tuple(map(os.path.abspath, given["files"]))
    for name in ("tokenizer", "init"):
        if name in given:
            given[name] = os.path.abspath(given[name])
    if "moe" in given:
        given["moe"] = dict(given["moe"])
    return given


def _pair(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is JSON where it can be, else the text itself."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _mebibytes(text: str) -> int:
    try:
        return mebibytes(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
