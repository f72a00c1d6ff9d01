"""Ways to divide a layer among ranks: what each sends, keeps and takes.

Experts are divided over ``ep`` ranks, and R / ep such groups have copies of them, over other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from .machine import Machine
from .work import LayerWork

ADDITIONS = 5e8  # a second: sums of losses, which one core adds up token by token and expert by expert
COPIES = 7  # of a row on its way in a step: into messages and out of them, and by expert
AGREEMENTS = 7  # of a forward and a backward, small messages of all with all
WORDS = 3 * 8  # bytes of one, beside those of the counts of experts


@dataclass(frozen=True)
class Strategy:
    """A way to divide a layer, and what a training step of it comes to.

    Attributes
    ----------
    name : str
        ``"expert-exclusive"``: every expert has one owner.  ``"replicated"``: every rank has all experts.
        ``"grid"``: both, ``ep`` ranks share the experts and groups of them have copies.  ``"sliced"``: every
        rank has a slice of all experts, and computes it for all tokens.
    ep, copies : int
        Ranks that the experts are divided over, and groups of these; ``ep`` times ``copies`` is R.
    runs : bool
        Whether libmoe can: ``"sliced"`` it cannot yet.
    same_bits : bool
        Whether the results are those of one process.  Where the caller adds up gradients they are so but for
        rounding.
    bytes_sent : float
        By one rank to others in a step.
    memory : float
        Bytes of one rank: parameters, gradients, moments, activations.
    compute : float
        Seconds of computing, beside all that waits for other ranks.
    exchange : float
        Seconds in which rows travel, and small messages before and after them.
    chain : float
        Seconds in which sums go on from rank to rank, one after the other.
    gradient_sum : float
        Seconds in which the caller adds up gradients of copies.
    note : str
        What it takes.
    """

    name: str
    ep: int
    copies: int
    runs: bool
    same_bits: bool
    bytes_sent: float
    memory: float
    compute: float
    exchange: float
    chain: float
    gradient_sum: float
    note: str

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute + self.exchange + self.chain + self.gradient_sum

    @property
    def exchanged_share(self) -> float:
        """The part of the time in which ranks wait for others."""
        return 1 - self.compute / self.seconds


def compute_seconds(work: LayerWork, machine: Machine, ranks: int, per_node: int, threads: int) -> float:
    """Return the seconds in which the ranks of a node compute.

    They are all operations of a node over its rate, or those of the busiest rank over what its own threads
    reach if that is more.
    """
    p = min(per_node, ranks)
    rate = machine.rate(p * threads)
    of_a_thread = rate / min(p * threads, machine.cores)
    own = work.most_operations / (of_a_thread * min(threads, machine.cores))
    return max(p * work.operations / rate, own)


def divided(
    work: LayerWork, machine: Machine, ranks: int, per_node: int, threads: int, ep: int, hidden: float
) -> Strategy:
    """Return the strategy whose groups of `ep` ranks share the experts; 1: all have all, R: one owner each.

    `hidden` is the share of the exchange of rows under which something is computed.
    """
    copies, p = ranks // ep, min(per_node, ranks)
    rows = work.tokens * work.top_k
    compute = compute_seconds(work, machine, ranks, per_node, threads)
    exchange = chain = gradient_sum = sent = 0.0
    if ep > 1:
        # Rows: of those of a rank's tokens every rank of the group gets the same share.
        near = min(p, ep)
        pieces = [rows * work.imbalance / ep * each for each in work.row_bytes]
        moved = sum(machine.all_to_all(ep, near, piece, beside=p // near) for piece in pieces)
        said = WORDS + 8 * work.n_experts / AGREEMENTS
        small = AGREEMENTS * machine.all_to_all(ep, near, said)
        # A message within a node is two copies, so that the copies alone are twice as fast.
        copied = p * COPIES * rows * 4 * work.hidden_size / (2 * machine.copy_rate)
        exchange = (1 - hidden) * moved + copied + small
        sent = (ep - 1) * (rows / ep * sum(work.row_bytes) + AGREEMENTS * said)
        # Sums of losses, then gradients of what all ranks have: each rank goes on from the one before it.
        sums = 8 * 4 * work.n_experts
        rate = machine.rate(p * threads) / p
        turn = work.tokens * work.n_experts / ADDITIONS + work.chained_operations / rate
        chain = (ep - 1) * turn
        for bytes_ in (sums, work.chained_bytes):
            chain += machine.along(ep, near, bytes_) + machine.to_all(ep, near, bytes_)
            sent += bytes_
    if copies > 1:
        of_experts = 4.0 * work.n_experts / ep * work.expert_weights
        gradient_sum = machine.sum(copies, ep, ep, per_node, of_experts)
        gradient_sum += machine.sum(copies, ep, ep, per_node, work.chained_bytes)
        sent += 2 * (copies - 1) / copies * (of_experts + work.chained_bytes)
    name = "expert-exclusive" if copies == 1 else "replicated" if ep == 1 else "grid"
    notes = {
        "expert-exclusive": "Layer(communicator=...)",
        "replicated": "a plain layer on each rank; you add up gradients and divide what is a mean",
        "grid": "Layer(communicator=...) in each group; you add up gradients of the groups",
    }
    return Strategy(
        name=name,
        ep=ep,
        copies=copies,
        runs=True,
        same_bits=copies == 1,
        bytes_sent=sent,
        memory=work.parameter_bytes(work.n_experts / ep) + work.activation_bytes(rows * work.imbalance),
        compute=compute,
        exchange=exchange,
        chain=chain,
        gradient_sum=gradient_sum,
        note=notes[name],
    )


def sliced(work: LayerWork, machine: Machine, ranks: int, per_node: int, threads: int) -> Strategy:
    """Return expert slicing: x and dy go to all, parts of outputs and of dx come back and are added up."""
    row = 4.0 * work.hidden_size
    exchange = 4 * machine.all_to_all(ranks, per_node, work.tokens * row)
    rows = ranks * work.tokens * work.top_k
    outer = 24.0 * rows * work.hidden_size  # of activations; inner features alone are divided
    inner = (work.activation_bytes(rows) - outer) / ranks
    return Strategy(
        name="sliced",
        ep=1,
        copies=1,
        runs=False,
        same_bits=False,
        bytes_sent=4 * (ranks - 1) * work.tokens * row,
        memory=work.parameter_bytes(work.n_experts / ranks) + outer + inner,
        compute=compute_seconds(work, machine, ranks, per_node, threads),
        exchange=exchange,
        chain=0.0,
        gradient_sum=0.0,
        note="not run by libmoe yet",
    )
