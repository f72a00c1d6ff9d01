"""The numbers of a machine that the time of a step depends on, and how long its messages take."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .._native import check
from ..errors import InvalidArgumentError


@dataclass(frozen=True)
class Machine:
    """Nodes of several cores, joined by a fat tree.

    Parameters
    ----------
    cores : int
        Of a node.
    core_rate, node_rate : float
        Operations a second of a training step of the layer in question, on one core alone and on all of a
        node.
    memory : float
        Bytes of a node.
    copy_rate : float
        Bytes a second that all ranks of a node together move to each other.
    copy_latency : float
        Seconds that a small message within a node takes.
    link_rate : float
        Bytes a second from a node into the network, and as many back at the same time.
    link_latency : float
        Seconds that a small message between nodes takes.
    message_time : float
        Seconds of a core for each message between nodes.
    nodes_per_switch : int
        Nodes whose messages to each other go through one switch.
    oversubscription : float
        Bytes a second of a switch's nodes over those of its way up: 1 is a full fat tree.

    Raises
    ------
    InvalidArgumentError
        What should be a number is none, or it is out of range.
    """

    cores: int
    core_rate: float
    node_rate: float
    memory: float = 64e9
    copy_rate: float = 5e9
    copy_latency: float = 2e-6
    link_rate: float = 12.5e9
    link_latency: float = 3e-6
    message_time: float = 5e-7
    nodes_per_switch: int = 16
    oversubscription: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no number above 0."""
        for each in fields(self):
            value = getattr(self, each.name)
            read = check.count if each.name in ("cores", "nodes_per_switch") else check.number
            if not 0 < read(each.name, value) < math.inf:
                raise InvalidArgumentError(f"{each.name} = {value!r}, but it is a number above 0")
        if self.oversubscription < 1:
            raise InvalidArgumentError(f"oversubscription = {self.oversubscription}, but it is at least 1")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Machine:
        """Read one that :meth:`save` or ``make bench-ranks`` has written.

        Raises
        ------
        InvalidArgumentError
            The file has no machine in it.
        """
        try:
            found: Any = json.loads(Path(path).read_text())
        except ValueError as error:
            raise InvalidArgumentError(f"{os.fspath(path)!r} is no JSON: {error}") from None
        numbers = found.get("machine", found) if isinstance(found, dict) else None
        known = {each.name for each in fields(cls)}
        if not isinstance(numbers, dict) or not {"cores", "core_rate", "node_rate"} <= set(numbers) <= known:
            raise InvalidArgumentError(
                f"{os.fspath(path)!r} has no machine: expected {', '.join(sorted(known))}"
            )
        try:
            return cls(**numbers)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{os.fspath(path)!r}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the numbers as JSON."""
        Path(path).write_text(json.dumps({"machine": asdict(self)}, indent=1) + "\n")

    def with_(self, **numbers: Any) -> Machine:
        """Return a machine with some numbers other than this one's; None leaves one as it is."""
        return replace(self, **{name: value for name, value in numbers.items() if value is not None})

    # ---- computing -----------------------------------------------------------------------------------------

    def rate(self, busy: int) -> float:
        """Return the operations a second of a node on which so many threads compute.

        Beyond one core each adds the same, up to those that there are; more threads share them.
        """
        if self.cores == 1:
            return self.node_rate
        more = (min(busy, self.cores) - 1) / (self.cores - 1)
        return self.core_rate + more * (self.node_rate - self.core_rate)

    # ---- messages ------------------------------------------------------------------------------------------

    def all_to_all(self, ranks: int, per_node: int, piece: float, beside: int = 1) -> float:
        """Return the seconds in which every rank sends every other one a message of `piece` bytes.

        The p ranks of a node share its memory and its link, with those of other groups that are `beside` each
        other on it; beyond a switch they share the way up::

            near = p (p - 1) piece beside / copy_rate + (p - 1) copy_latency
            far  = p (R - p) piece / link_rate max(1, beyond oversubscription)
            time = near + far + (R - p) message_time + link_latency

        `beyond` is the share of these bytes that leaves the switch.
        """
        p = min(per_node, ranks)
        near = self._near(p, p * (p - 1) * piece * beside) + (p - 1) * self.copy_latency
        return near + self.between_nodes(ranks, per_node, piece)

    def between_nodes(self, ranks: int, per_node: int, piece: float) -> float:
        """Return `far` of :meth:`all_to_all` and what stands behind it: what no core has to do."""
        p = min(per_node, ranks)
        return self._far(ranks, p, p * (ranks - p) * piece, messages=ranks - p)

    def by_nodes(self, ranks: int, per_node: int, piece: float) -> float:
        """Return the same in two steps, within nodes by the receiver's place in its own, then between nodes.

        Messages to other nodes are then R / p - 1 of p pieces each, and all bytes move within nodes, too.
        """
        p = min(per_node, ranks)
        nodes = -(-ranks // p)
        near = self._near(p, p * (p - 1) * nodes * piece) + (p - 1) * self.copy_latency
        return near + self._far(ranks, p, p * (ranks - p) * piece, messages=nodes - 1)

    def _near(self, p: int, bytes_: float) -> float:
        return bytes_ / self.copy_rate if p > 1 else 0.0

    def _far(self, ranks: int, p: int, bytes_: float, messages: int) -> float:
        """Bytes out of a node to all others."""
        if ranks <= p:
            return 0.0
        beyond = max(ranks - p * self.nodes_per_switch, 0) / (ranks - p)  # the share that leaves the switch
        seconds = bytes_ / self.link_rate * max(1.0, beyond * self.oversubscription)
        return seconds + messages * self.message_time + self.link_latency

    def hop(self, bytes_: float, near: bool) -> float:
        """Return the seconds of a message from one rank to the next."""
        if near:
            return self.copy_latency + bytes_ / self.copy_rate
        return self.link_latency + self.message_time + bytes_ / self.link_rate

    def along(self, ranks: int, per_node: int, bytes_: float) -> float:
        """Return the seconds of a message that goes from rank to rank, to the last one."""
        p = min(per_node, ranks)
        nodes = -(-ranks // p)
        return (ranks - nodes) * self.hop(bytes_, near=True) + (nodes - 1) * self.hop(bytes_, near=False)

    def to_all(self, ranks: int, per_node: int, bytes_: float) -> float:
        """Return the seconds in which one rank sends every other the same, one after the other."""
        p = min(per_node, ranks)
        far = ranks - p
        near = (p - 1) * (self.copy_latency + bytes_ / self.copy_rate)
        return near + (
            far * (self.message_time + bytes_ / self.link_rate) + self.link_latency if far else 0.0
        )

    def sum(self, members: int, groups: int, span: int, per_node: int, bytes_: float) -> float:
        """Return the seconds of a sum over `members` ranks, which all get, in a ring.

        `groups` such sums run at the same time, over ranks that are `span` apart: 2 (m - 1) / m of the bytes
        leave every rank, through the memory of its node or, where the next member is on another one, through
        its link.
        """
        if members == 1:
            return 0.0
        moved = 2 * (members - 1) / members * bytes_
        ranks = members * groups
        p = min(per_node, ranks)
        if span * members <= p:  # all members on one node
            return p * moved / self.copy_rate + 2 * (members - 1) * self.copy_latency
        crossing = min(span, p)  # rings that leave a node
        far = (
            crossing
            * moved
            / self.link_rate
            * (self.oversubscription if ranks > p * self.nodes_per_switch else 1.0)
        )
        near = (p - crossing) * moved / self.copy_rate
        return near + far + 2 * (members - 1) * (self.link_latency + self.message_time)
