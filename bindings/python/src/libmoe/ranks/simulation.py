"""A layer on ever more ranks: the time of a step, what of it is waiting, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .._native import check
from .._screen import size
from .machine import Machine
from .planning import plan
from .strategies import Strategy
from .work import LayerWork

RANKS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Point:
    """One number of ranks.

    Attributes
    ----------
    ranks : int
        How many.
    strategy : Strategy
        Experts over as many ranks as can have some.
    efficiency : float
        Tokens a second and rank, over those of one rank alone.
    flat, by_nodes : float
        Seconds of the exchanges of rows of a step, with a message from every rank to every other, and in two
        steps: within nodes, then from node to node.
    tokens_by_nodes : float
        With fewer tokens a rank than these the two steps are faster.
    best : Strategy
        What :func:`plan` chooses.
    """

    ranks: int
    strategy: Strategy
    efficiency: float
    flat: float
    by_nodes: float
    tokens_by_nodes: float
    best: Strategy


def simulate(
    work: LayerWork,
    machine: Machine,
    ranks: Iterable[int] = RANKS,
    *,
    ranks_per_node: int = 1,
    threads: int = 1,
) -> list[Point]:
    """Return what a step comes to on each of these numbers of ranks; every rank has the tokens of `work`.

    Parameters
    ----------
    work, machine, ranks_per_node, threads
        As of :func:`plan`.
    ranks : iterable of int
        Numbers of ranks.

    Raises
    ------
    InvalidArgumentError
        As of :func:`plan`.
    """
    alone = _exclusive(work, machine, 1, 1, threads)[0].seconds
    points = []
    for count in check.listed("ranks", ranks, "a list such as [1, 8, 64]"):
        strategy, best = _exclusive(work, machine, count, ranks_per_node, threads)
        near = min(ranks_per_node, strategy.ep)

        def moved(way: Callable[[int, int, float], float], ep: int, near: int, tokens: float) -> float:
            """Seconds of a step's rows, which are linear in the tokens."""
            return (
                sum(way(ep, near, tokens * work.top_k / ep * each) for each in work.row_bytes)
                if ep > 1
                else 0.0
            )

        flat, by_nodes, at_0, by_nodes_at_0 = (
            moved(way, strategy.ep, near, tokens)
            for tokens in (work.tokens, 0)
            for way in (machine.all_to_all, machine.by_nodes)
        )
        more = (by_nodes - by_nodes_at_0) - (flat - at_0)
        fewer = work.tokens * (at_0 - by_nodes_at_0) / more if more > 0 else 0.0
        points.append(Point(count, strategy, alone / strategy.seconds, flat, by_nodes, fewer, best))
    return points


def _exclusive(
    work: LayerWork, machine: Machine, ranks: int, per_node: int, threads: int
) -> tuple[Strategy, Strategy]:
    """Return the strategy with the experts over most ranks, and the best one."""
    found = plan(work, machine, ranks, ranks_per_node=per_node, threads=threads)
    owned = (each for each in found.strategies if each.name in ("expert-exclusive", "grid"))
    return max(owned, key=lambda each: each.ep), found.best


def table(points: Sequence[Point]) -> str:
    """Return the points as lines of text."""
    lines = [
        f"{'ranks':>6} {'experts over':>12} {'a step':>12} {'efficiency':>10} {'exchange':>8} {'chains':>7} "
        f"{'sums':>6} {'memory':>10} {'flat':>10} {'by nodes':>10} {'better below':>12}  best"
    ]
    for each in points:
        made = each.strategy
        best = f"{each.best.name} {each.best.ep} x {each.best.copies}" if each.ranks > 1 else ""
        shares = [part / made.seconds for part in (made.exchange, made.chain, made.gradient_sum)]
        below = f"{each.tokens_by_nodes:,.0f} tok" if each.tokens_by_nodes >= 1 else "-"
        lines.append(
            f"{each.ranks:6,} {made.ep:12,} {1e3 * made.seconds:9.1f} ms {each.efficiency:10.1%} "
            f"{shares[0]:8.1%} {shares[1]:7.1%} {shares[2]:6.1%} {size(int(made.memory)):>10} "
            f"{1e3 * each.flat:7.1f} ms {1e3 * each.by_nodes:7.1f} ms {below:>12}  {best}"
        )
    return "\n".join(lines)
