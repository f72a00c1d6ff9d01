"""The command line: train a language model on text, evaluate it, let it write, look into it, time it.

The exit status is 0, or 1 for an error, 2 for a wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import libmoe

from .train import log, plots
from .train.bench import bench
from .train.config import Settings, UserError, mebibytes
from .train.data import load, load_whole
from .train.doctor import diagnose, told
from .train.evaluate import bits_per_byte
from .train.run import make_context, make_model, memory_limit, open_run
from .train.sample import printable, sample
from .train.trainer import Trainer

INTERRUPTED = 130
EVENTS = 20_000  # of a time line, the first ones: what a browser still shows with ease

EXAMPLES = """\
examples:
  python -m libmoe train book.txt --output runs/book --steps 500
  python -m libmoe train src/ notes.md --output runs/code --n-experts 16 --top-k 2 --threads 4
  python -m libmoe train --resume runs/book          goes on where it stopped, with the same bits
  python -m libmoe inspect runs/book --plots         what happened, what is wrong, pictures
  python -m libmoe sample runs/book --prompt "It was" --tokens 300
  python -m libmoe eval runs/book other.txt
  python -m libmoe bench --hidden-size 256 --threads 2
"""

TRAIN_EXAMPLES = """\
examples:
  python -m libmoe train book.txt --output runs/book
  python -m libmoe train book.txt --output runs/small --hidden-size 64 --n-layers 2 --steps 200
  python -m libmoe train book.txt --output runs/noisy --moe noise=gaussian noise_std=0.1
  python -m libmoe train book.txt --output runs/dense --n-experts 0
  python -m libmoe train --resume runs/book --steps 2000

RUN/config.json has the settings, RUN/log.jsonl what happened, one JSON object a line; RUN/last.safetensors
and RUN/best.safetensors are the checkpoints.  Ctrl-C finishes the step, saves, and leaves with status 130; a
second one leaves at once.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a sample may hold what the terminal cannot show
    asked = _parser().parse_args(arguments)
    try:
        return int(asked.run(asked))
    except (UserError, libmoe.MoeError, OSError) as error:
        if isinstance(
            error, BrokenPipeError
        ):  # the reader has seen enough; nothing more can be flushed to it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"libmoe {asked.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nlibmoe {asked.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


# ------------------------------------------------------------------------------------------------------------
# The commands
# ------------------------------------------------------------------------------------------------------------


def _train(asked: argparse.Namespace) -> int:
    given = _given(asked)
    if asked.resume is not None:
        if asked.output is not None:
            raise UserError("--output: a resumed run stays where it is")
        folder = asked.resume
        settings = _resumed(Settings.load(folder), given)
    else:
        folder = asked.output or Path("run")
        settings = Settings().changed(given)
        if not settings.files:
            raise UserError("no text: name files or folders, or a run to --resume")
    trainer = Trainer(settings, folder, resume=asked.resume is not None)
    _describe(trainer)
    measuring: contextlib.AbstractContextManager[libmoe.Profile | None] = contextlib.nullcontext()
    if asked.profile:
        measuring = trainer.context.profile(EVENTS)
    try:
        with measuring as profile:
            outcome = trainer.train()
        if profile is not None:
            print(profile.table())
            (folder / "profile.json").write_text(profile.json() + "\n")
            profile.save_trace(folder / "trace.json")
        print(
            f"{outcome.why} at step {outcome.step}; best held-out bits per byte {outcome.best_bits:.4f}; "
            f"in {folder}",
            flush=True,
        )
    finally:
        _print_hints(folder, settings)
    return 128 + outcome.signal if outcome.signal else 0


def _resumed(settings: Settings, given: dict[str, Any]) -> Settings:
    """Other settings for the rest of a run: not those that its weights and its text depend on."""
    for each in fields(Settings):
        if each.name in given and each.metadata["group"] in ("text", "model"):
            raise UserError(f"{_option(each.name)}: cannot change in a run that goes on")
    return settings.changed(given)


def _describe(trainer: Trainer) -> None:
    corpus, parameters = trainer.corpus, trainer.model.parameters.values()
    print(
        f"{corpus.training.n_bytes:,} bytes to train on, {corpus.held_out.n_bytes:,} held out, of "
        f"{corpus.n_files:,} files"
        + (
            f" ({corpus.passed_over:,} passed over: copies, empty, binary or unreadable)"
            if corpus.passed_over
            else ""
        )
    )
    print(
        f"{sum(parameter.data.size for parameter in parameters):,} weights; {trainer.context.build_info()}",
        flush=True,
    )
    if trainer.step:
        print(f"goes on after step {trainer.step}", flush=True)


def _print_hints(folder: Path, settings: Settings) -> None:
    hints = diagnose(settings, log.read(folder))
    if hints:
        print(told(hints), file=sys.stderr)


def _eval(asked: argparse.Namespace) -> int:
    trained = open_run(asked.folder, asked.weights)
    settings = trained.settings
    if asked.files:
        part, name = load_whole(asked.files, settings.tokenizer), "the files"
    else:
        text = load(
            settings.files, held_out=settings.held_out, seed=settings.seed, tokenizer=settings.tokenizer
        )
        part, name = text.held_out, "held-out text"
    bits = bits_per_byte(
        trained.model,
        part,
        sequence_length=settings.sequence_length,
        sequences=settings.sequences,
        most_tokens=asked.tokens or part.n_tokens,
        memory_limit=memory_limit(settings),
    )
    print(f"{bits:.4f} bits per byte of {name}, {part.n_bytes:,} bytes")
    return 0


def _sample(asked: argparse.Namespace) -> int:
    trained = open_run(asked.folder, asked.weights)
    pieces = sample(
        trained,
        asked.prompt.encode("utf-8", "surrogateescape"),
        asked.tokens,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        seed=asked.seed,
    )
    print(asked.prompt, end="")
    for piece in printable(pieces):
        print(piece, end="", flush=True)
    print()
    return 0


def _inspect(asked: argparse.Namespace) -> int:
    settings, records = Settings.load(asked.folder), log.read(asked.folder)
    (start,) = log.of_kind(records, "start")
    steps, evaluations, stops = (log.of_kind(records, kind) for kind in ("step", "evaluation", "stop"))
    done = steps[-1]["step"] if steps else 0
    state = stops[-1]["why"] if stops else "running, or killed"
    print(f"{asked.folder}: {done} of {settings.steps} steps, {state}")
    print(f"{start['weights']:,} weights, {start['training_bytes']:,} bytes of text to train on")
    if log.of_kind(records, "plan"):  # else the limit was too small, as the hint says
        model = make_model(settings, start["vocabulary_size"], make_context(settings))
        limit = memory_limit(settings)
        plan = model.plan(settings.sequences, settings.sequence_length, training=True, memory_limit=limit)
        print(f"a step: {settings.tokens_per_step:,} tokens; activations {plan}")
    if steps:
        last = steps[-1]
        print(
            f"last: loss {last['loss']:.4f} nats, gradient norm {last['norm']:.3g}, learning rate "
            f"{last['learning_rate']:.3g}, {last['tokens_per_second']:,.0f} tokens/s"
        )
        for layer in last["layers"]:
            load = " ".join(f"{share:.0%}" for share in _shares(layer["load"]))
            print(
                f"  layer {layer['layer']}: load {load}, dropped {layer['dropped']:.1%}, dead {layer['dead']}"
            )
    if evaluations:
        best = min(evaluations, key=lambda record: record["bits_per_byte"])
        print(f"best: {best['bits_per_byte']:.4f} held-out bits per byte, at step {best['step']}")
    hints = diagnose(settings, records)
    print(told(hints) or "nothing is wrong that the log shows")
    if asked.plots:
        print("drawn:", *_plots(asked.folder, settings, records))
    return 0


def _shares(load: Sequence[int]) -> list[float]:
    return [tokens / max(1, sum(load)) for tokens in load]


def _plots(folder: Path, settings: Settings, records: list[log.Record]) -> list[Path]:
    model = text = None
    if not settings.tokenizer and (folder / "best.safetensors").exists():
        model = open_run(folder).model
        text = load(settings.files, held_out=settings.held_out, seed=settings.seed).held_out
    return plots.draw(folder, records, model, text)


def _bench(asked: argparse.Namespace) -> int:
    settings = Settings().changed(_given(asked))
    speed = bench(settings, asked.rounds)
    print(f"{speed.weights:,} weights, {settings.sequences} x {settings.sequence_length} tokens a forward")
    print(f"training    {speed.training:12,.0f} tokens/s, activations {speed.step_bytes / 2**20:.1f} MiB")
    print(f"evaluation  {speed.evaluation:12,.0f} tokens/s")
    print(f"generation  {speed.generation:12,.0f} tokens/s, one sequence")
    if asked.profile:
        print(f"\ntraining, phase by phase:\n{speed.profile.table()}")
    return 0


# ------------------------------------------------------------------------------------------------------------
# The options
# ------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m libmoe",
        description="Train Mixture-of-Experts language models on the CPU.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=libmoe.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, epilog: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=raw)
        added.set_defaults(run=run)
        return added

    train = command("train", _train, "train a model on text", TRAIN_EXAMPLES)
    train.add_argument(
        "files", nargs="*", metavar="FILE", default=None, help="text files, or folders of them"
    )
    train.add_argument("--output", type=Path, metavar="RUN", help="folder of the run (default run)")
    train.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run, with the settings it has"
    )
    train.add_argument(
        "--profile",
        action="store_true",
        help="print where the time went; also RUN/profile.json, and RUN/trace.json for Perfetto",
    )
    _add_settings(train, ("text", "model", "training", "evaluation", "machine"))

    evaluate = command("eval", _eval, "bits per byte of held-out text, or of other files")
    _add_folder(evaluate)
    evaluate.add_argument("files", nargs="*", metavar="FILE", help="in place of the run's held-out text")
    evaluate.add_argument("--tokens", type=_positive, help="at most so many (default all)")

    write = command("sample", _sample, "let a model write")
    _add_folder(write)
    write.add_argument("--prompt", default="\n", help="what it continues (default a line break)")
    write.add_argument("--tokens", type=_positive, default=400, help="to write (default 400)")
    write.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest (default 0.8)")
    write.add_argument("--top-k", type=int, default=0, help="only of the k likeliest; 0: of all (default 0)")
    write.add_argument(
        "--top-p", type=float, default=1.0, help="only of the likeliest that add up to p (default 1)"
    )
    write.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")

    look = command("inspect", _inspect, "what happened in a run, and what is wrong with it")
    look.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    look.add_argument("--plots", action="store_true", help="draw pictures into the folder; needs matplotlib")

    time = command("bench", _bench, "how fast a model of given sizes is on this machine")
    time.add_argument("--rounds", type=_positive, default=5, help="whose median counts (default 5)")
    time.add_argument("--profile", action="store_true", help="print where the time of training goes")
    _add_settings(time, ("model", "machine"), also=("sequence_length", "sequences"))
    return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--weights", choices=("best", "last"), default="best", help="of which checkpoint (default best)"
    )


def _add_settings(parser: argparse.ArgumentParser, groups: Sequence[str], also: Sequence[str] = ()) -> None:
    """Options for the settings of these groups; their values are None where they are not given."""
    made: dict[str, Any] = {}
    for each in fields(Settings):
        group, choices = each.metadata["group"], each.metadata["choices"]
        if each.name == "files" or (group not in groups and each.name not in also):
            continue
        if group not in made:
            made[group] = parser.add_argument_group(group)
        text = each.metadata["help"].replace("%", "%%")
        if each.name == "moe":
            made[group].add_argument("--moe", nargs="+", type=_pair, metavar="NAME=VALUE", help=text)
            continue
        default = "" if each.default == "" else f" (default {each.default})"
        kind = type(each.default)
        metavar = None if choices else {int: "N", float: "X", str: "FILE"}[kind]
        parse = _mebibytes if each.name == "memory_limit" else kind
        made[group].add_argument(
            _option(each.name), type=parse, choices=choices or None, metavar=metavar, help=text + default
        )


def _given(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line has."""
    names = {each.name for each in fields(Settings)}
    given = {name: value for name, value in vars(asked).items() if name in names and value is not None}
    # Absolute, so that the run can be taken up from anywhere.
    for name in ("files", "tokenizer"):
        if not given.get(name, True):
            del given[name]
    if "files" in given:
        given["files"] = tuple(map(os.path.abspath, given["files"]))
    if "tokenizer" in given:
        given["tokenizer"] = os.path.abspath(given["tokenizer"])
    if "moe" in given:
        given["moe"] = dict(given["moe"])
    return given


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


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


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)
