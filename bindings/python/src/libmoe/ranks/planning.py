"""Which way to divide a layer among ranks: all of them beside each other, and the one to take."""

from __future__ import annotations

from dataclasses import dataclass

from .._native import check
from .._screen import size
from ..errors import InvalidArgumentError
from .machine import Machine
from .strategies import Strategy, divided, replicated, sliced
from .work import LayerWork

MOST = 1 << 20  # ranks


@dataclass(frozen=True)
class RankPlan:
    """All strategies, those that libmoe runs first, by time; ``best`` is the first that fits.

    Attributes
    ----------
    ranks, ranks_per_node : int
        How many there are.
    best : Strategy
        To take.
    strategies : tuple of Strategy
        All of them.
    """

    ranks: int
    ranks_per_node: int
    best: Strategy
    strategies: tuple[Strategy, ...]

    def __str__(self) -> str:
        """Return a table."""
        lines = [
            f"{self.ranks} ranks, {self.ranks_per_node} a node",
            f"{'':2}{'strategy':17}{'experts over':>13}{'copies':>8}{'a step':>12}{'waiting':>9}"
            f"{'sent a rank':>13}{'memory':>11}  bits",
        ]
        for each in self.strategies:
            bits = "of one process" if each.same_bits else "but for rounding" if each.runs else each.note
            lines.append(
                f"{'* ' if each is self.best else '  '}{each.name:17}{each.ep:13,}{each.copies:8,}"
                f"{1e3 * each.seconds:9.1f} ms{each.exchanged_share:9.1%}{size(int(each.bytes_sent)):>13}"
                f"{size(int(each.memory)):>11}  {bits}"
            )
        lines.append(f"* {self.best.note}")
        return "\n".join(lines)


def plan(
    work: LayerWork,
    machine: Machine,
    ranks: int,
    *,
    ranks_per_node: int | None = None,
    threads: int = 1,
) -> RankPlan:
    """Compare the ways to divide a layer among ranks, and choose one that libmoe runs and that fits.

    Expert-exclusive needs at least one expert a rank to be of use; grids are those whose groups divide R and
    have at most E ranks.  :class:`LayerWork` and :class:`Machine` have the equations; docs/scale.md says how
    well they agree with what is measured.

    Parameters
    ----------
    work : LayerWork
        The layer, and the tokens of a rank.
    machine : Machine
        Where it runs.
    ranks, ranks_per_node : int
        How many, and on one node: all of them if it is left out.
    threads : int
        Of a rank.

    Raises
    ------
    InvalidArgumentError
        What should be a number is none, or it is out of range, or nothing fits the memory of a node; the text
        says what would.
    """
    per_node = ranks if ranks_per_node is None else ranks_per_node
    for name, value in (("ranks", ranks), ("ranks_per_node", per_node), ("threads", threads)):
        if not 1 <= check.count(name, value) <= MOST:
            raise InvalidArgumentError(f"{name} = {value}, but it is 1 to {MOST:,}")
    per_node = min(per_node, ranks)
    groups = [ep for ep in range(1, min(ranks, work.n_experts) + 1) if ranks % ep == 0]
    found = [divided(work, machine, ranks, per_node, threads, ep) for ep in groups]
    if ranks > 1:
        found += [each(work, machine, ranks, per_node, threads) for each in (replicated, sliced)]
    found.sort(key=lambda each: (not each.runs, each.seconds))
    room = machine.memory / per_node
    fitting = [each for each in found if each.runs and each.memory <= room]
    if not fitting:
        least = min((each for each in found if each.runs), key=lambda each: each.memory)
        raise InvalidArgumentError(
            f"nothing fits {size(int(room))} a rank: {least.name} needs the least, "
            f"{size(int(least.memory))}; take fewer tokens, or fewer ranks a node"
        )
    return RankPlan(ranks, per_node, fitting[0], tuple(found))
