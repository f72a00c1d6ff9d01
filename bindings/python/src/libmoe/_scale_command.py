"""``python -m libmoe scale``: a layer on ever more ranks, simulated."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import ranks
from ._folder_options import option, positive
from .ranks.planning import MOST
from .train.errors import UserError
from .train.output import counted, say

EXAMPLES = """\
examples:
  python -m libmoe scale                               a layer of many experts, computing as fast as here
  make bench-ranks; python -m libmoe scale --machine build/bench/ranks.json
  python -m libmoe scale --n-experts 64 --tokens 1024 --ranks 1 2 4 8 --ranks-per-node 2 --link-gbs 1.25
  python -m libmoe scale --cores 64 --ranks-per-node 4 --threads 16 --picture scale.svg

Every rank has as many tokens, however many ranks there are.  exchange, chains and sums are shares of a
step's time; flat and "by nodes" are what rows take with a message from each rank to each, and in two steps,
within nodes and then from node to node, which is better with fewer tokens a rank than it says.
docs/scale.md has the equations' limits.
"""


def _between(low: float, high: float, expected: str, kind: type[float] = float) -> Callable[[str], float]:
    """Return what reads a number of the command line, from `low` to `high`."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")

    return read


_above_0 = _between(sys.float_info.min, sys.float_info.max, "a number above 0")
_at_least_1 = _between(1.0, sys.float_info.max, "a number of at least 1")
_not_negative = _between(0, MOST, "a whole number of at least 0", int)
_up_to_most = _between(1, MOST, f"a whole number, 1 to {MOST:,}", int)

LAYER = {
    "hidden_size": (2048, "features of a token"),
    "intermediate_size": (768, "inner features of an expert"),
    "n_experts": (256, "experts"),
    "top_k": (8, "experts of a token"),
    "tokens": (4096, "tokens of a rank in a step"),
}
# Options of the machine: the field of ranks.Machine, what reads one, its unit, and what it is.
MACHINE = {
    "cores": ("cores", positive, 1, "of a node"),
    "core_gflops": ("core_rate", _above_0, 1e9, "that one core alone reaches in training"),
    "node_gflops": ("node_rate", _above_0, 1e9, "that all cores of a node reach"),
    "memory_gb": ("memory", _above_0, 1e9, "of a node"),
    "copy_gbs": ("copy_rate", _above_0, 1e9, "GB/s that the ranks of a node move to each other"),
    "copy_us": ("copy_latency", _above_0, 1e-6, "microseconds of a small message within a node"),
    "link_gbs": ("link_rate", _above_0, 1e9, "GB/s from a node into the network"),
    "link_us": ("link_latency", _above_0, 1e-6, "microseconds of a small message between nodes"),
    "message_us": ("message_time", _above_0, 1e-6, "microseconds of a core for a message between nodes"),
    "nodes_per_switch": ("nodes_per_switch", positive, 1, "nodes whose messages go through one switch"),
    "oversubscription": (
        "oversubscription",
        _at_least_1,
        1,
        "a switch's nodes over its way up: 1 is a full fat tree",
    ),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options for the layer, the ranks and the machine."""
    layer = parser.add_argument_group("layer")
    for name, (default, what) in LAYER.items():
        text = f"{what} (default {default})"
        layer.add_argument(option(name), type=positive, default=default, metavar="N", help=text)
    kinds = ("linear", "mlp", "gated")
    layer.add_argument("--expert-kind", choices=kinds, default="gated", help="default gated")
    layer.add_argument("--n-shared-experts", type=_not_negative, default=0, metavar="N", help="default 0")
    layer.add_argument("--weight-dtype", choices=("f32", "bf16"), default="f32", help="default f32")
    text = "rows of the busiest rank over the mean (default 1)"
    layer.add_argument("--imbalance", type=_at_least_1, default=1.0, metavar="X", help=text)
    spread = parser.add_argument_group("ranks")
    text = f"default {' '.join(map(str, ranks.RANKS))}"
    spread.add_argument("--ranks", type=_up_to_most, nargs="+", default=ranks.RANKS, metavar="N", help=text)
    spread.add_argument("--ranks-per-node", type=_up_to_most, default=1, metavar="N", help="default 1")
    spread.add_argument("--threads", type=_up_to_most, default=1, metavar="N", help="of a rank (default 1)")
    machine = parser.add_argument_group("machine", "what is not given is measured here, or usual")
    machine.add_argument("--machine", type=Path, metavar="FILE", help="that make bench-ranks has written")
    for name, (_, read, _, what) in MACHINE.items():
        machine.add_argument(option(name), type=read, metavar="N" if read is positive else "X", help=what)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw it, as SVG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")


def scale(asked: argparse.Namespace) -> int:
    """Simulate, print the table and what is best on the most ranks, draw and write."""
    if asked.top_k > asked.n_experts:
        raise UserError(f"--top-k {asked.top_k}: there are {asked.n_experts} experts (--n-experts)")
    for path in filter(None, (asked.picture, asked.json)):
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {str(path.absolute().parent)!r}")
    work = ranks.LayerWork(
        **{name: getattr(asked, name) for name in LAYER},
        expert_kind=asked.expert_kind,
        n_shared_experts=asked.n_shared_experts,
        weight_bytes=4 if asked.weight_dtype == "f32" else 2,
        imbalance=asked.imbalance,
    )
    machine = _machine(asked, work)
    options: dict[str, Any] = {
        "ranks_per_node": asked.ranks_per_node,
        "threads": asked.threads,
    }
    points = ranks.simulate(work, machine, asked.ranks, **options)
    print(ranks.table(points))
    if max(asked.ranks) > 1:
        print(f"\n{ranks.plan(work, machine, max(asked.ranks), **options)}")
    if asked.picture is not None:
        sizes = f"H {work.hidden_size}, I {work.intermediate_size}, E {work.n_experts}, K {work.top_k}"
        nodes = f"{work.tokens} tokens a rank, {asked.ranks_per_node} x {asked.threads} threads a node"
        asked.picture.write_text(ranks.svg(points, f"{sizes}, {nodes}"))
        say(f"drawn: {asked.picture}", error=True)
    if asked.json is not None:
        numbers = [asdict(each) for each in points]
        everything = {"machine": asdict(machine), "layer": asdict(work), "points": numbers}
        asked.json.write_text(json.dumps(everything, indent=1) + "\n")
    return 0


def _machine(asked: argparse.Namespace, work: ranks.LayerWork) -> ranks.Machine:
    """Return the machine: a file's or measured, with the numbers of the command line in place of its own."""
    if asked.machine is not None:
        machine = ranks.Machine.load(asked.machine)
    else:
        say("measuring how fast this machine computes such a layer", error=True)
        machine = ranks.measure(work)
    given: dict[str, Any] = {
        field: getattr(asked, name) * unit
        for name, (field, _, unit, _) in MACHINE.items()
        if getattr(asked, name) is not None
    }
    made = machine.with_(**given)
    if (made.cores, made.core_rate) != (machine.cores, machine.core_rate) and "node_rate" not in given:
        # The same part of what all cores could reach.
        share = machine.node_rate / machine.core_rate / machine.cores
        made = made.with_(node_rate=made.core_rate * max(1.0, made.cores * share))
    rates = f"{made.core_rate / 1e9:.1f} GFLOP/s one, {made.node_rate / 1e9:.1f} all"
    say(f"{counted(made.cores, 'core')} a node: {rates}", error=True)
    return made
