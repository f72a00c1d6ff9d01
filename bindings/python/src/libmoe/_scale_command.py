"""``python -m libmoe scale``: a layer on ever more ranks, simulated."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import ranks
from ._folder_options import positive
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

LAYER = {
    "hidden_size": (2048, "features of a token"),
    "intermediate_size": (768, "inner features of an expert"),
    "n_experts": (256, "experts"),
    "top_k": (8, "experts of a token"),
    "tokens": (4096, "tokens of a rank in a step"),
}
NUMBERS = {
    "cores": (int, 1.0, "of a node"),
    "core_gflops": (float, 1e9, "that one core alone reaches in training"),
    "node_gflops": (float, 1e9, "that all cores of a node reach"),
    "memory_gb": (float, 1e9, "of a node"),
    "copy_gbs": (float, 1e9, "GB/s that the ranks of a node move to each other"),
    "copy_us": (float, 1e-6, "microseconds of a small message within a node"),
    "link_gbs": (float, 1e9, "GB/s from a node into the network"),
    "link_us": (float, 1e-6, "microseconds of a small message between nodes"),
    "message_us": (float, 1e-6, "microseconds of a core for each message between nodes"),
    "nodes_per_switch": (int, 1.0, "nodes whose messages go through one switch"),
    "oversubscription": (float, 1.0, "a switch's nodes over its way up: 1 is a full fat tree"),
}
FIELDS = {
    "core_gflops": "core_rate",
    "node_gflops": "node_rate",
    "memory_gb": "memory",
    "copy_gbs": "copy_rate",
    "copy_us": "copy_latency",
    "link_gbs": "link_rate",
    "link_us": "link_latency",
    "message_us": "message_time",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options for the layer, the ranks and the machine."""
    layer = parser.add_argument_group("layer")
    for name, (default, what) in LAYER.items():
        text = f"{what} (default {default})"
        layer.add_argument(_option(name), type=positive, default=default, metavar="N", help=text)
    kinds = ("linear", "mlp", "gated")
    layer.add_argument("--expert-kind", choices=kinds, default="gated", help="default gated")
    layer.add_argument("--n-shared-experts", type=int, default=0, metavar="N", help="default 0")
    layer.add_argument("--weight-dtype", choices=("f32", "bf16"), default="f32", help="default f32")
    text = "rows of the busiest rank over the mean (default 1)"
    layer.add_argument("--imbalance", type=float, default=1.0, metavar="X", help=text)
    spread = parser.add_argument_group("ranks")
    text = f"default {' '.join(map(str, ranks.RANKS))}"
    spread.add_argument("--ranks", type=positive, nargs="+", default=ranks.RANKS, metavar="N", help=text)
    spread.add_argument("--ranks-per-node", type=positive, default=1, metavar="N", help="default 1")
    spread.add_argument("--threads", type=positive, default=1, metavar="N", help="of a rank (default 1)")
    machine = parser.add_argument_group("machine", "what is not given is measured here, or usual")
    machine.add_argument("--machine", type=Path, metavar="FILE", help="that make bench-ranks has written")
    for name, (kind, _, what) in NUMBERS.items():
        machine.add_argument(_option(name), type=kind, metavar="N" if kind is int else "X", help=what)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw it, as SVG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")


def scale(asked: argparse.Namespace) -> int:
    """Simulate, print the table and what is best on the most ranks, draw and write."""
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
        FIELDS.get(name, name): getattr(asked, name) * (1 if kind is int else unit)
        for name, (kind, unit, _) in NUMBERS.items()
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


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
