"""Ways to divide a layer among ranks: what each sends, keeps and takes.

Experts are divided over ``ep`` ranks, and R / ep such groups have copies of them, over other tokens; or each
rank has all experts, or a slice of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from .machine import Machine
from .work import LayerWork

ADDITIONS = 5e8  # a second: sums of losses, which one core adds up token by token and expert by expert
COPIES = 7  # of a row on its way in a step: into messages and out of them, and by expert
AGREEMENTS = 7  # of a forward and a backward, small messages of all with all
WORDS = 3 * 8  # bytes of one, beside those of the counts of experts
# Of rows on their way, as Sources/MoE/Ranks/RankPieces.swift has them: pieces at most, bytes of one that a
# rank sends at least, and of one of its messages.
PIECES, PIECE, MESSAGE = 5, 256 << 10, 16 << 10


@dataclass(frozen=True)
class Strategy:
    """A way to divide a layer, and what a training step of it comes to.

    Attributes
    ----------
    name : str
        ``"expert-exclusive"``: every expert has one owner.  ``"replicated"``: every rank has all experts, and
        gradients go from rank to rank.  ``"grid"``: ``ep`` ranks share the experts, and groups of them have
        copies, whose gradients the caller adds up.  ``"sliced"``: every rank has a slice of all experts, and
        computes it for all tokens.
    ep, copies : int
        Ranks that the experts are divided over, and groups of these; ``ep`` times ``copies`` is R.
    runs : bool
        Whether libmoe can: ``"sliced"`` it cannot where an expert has no slice for each rank.
    same_bits : bool
        Whether the results are those of one process.  Where the caller adds up gradients, or the library
        slices, they are so but for rounding.
    bytes_sent : float
        By one rank to others in a step.
    memory : float
        Bytes of one rank: parameters, gradients, moments, activations.
    compute : float
        Seconds of computing, beside all that waits for other ranks.
    exchange : float
        Seconds in which rows travel and nothing is computed, and small messages before and after them.
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


def waited(work: LayerWork, ep: int, far: list[float], compute: float) -> float:
    """Return for how many seconds rows are between nodes and nothing is computed.

    `far` are the seconds of x, outputs, dy and dx, which travel in c pieces while others are computed.
    Nothing hides the first piece of x and of dy and the last one of the outputs, a share e: half as long as
    the others, but one expert of a rank's at least.  dx goes back while gradients of weights are made.  The
    rest is hidden as long as there is something to compute, a third of it forwards::

        forward  = max(e (x + out), x + out - compute / 3)
        backward = max(e dy, dy + dx - compute 2 / 3)      of one piece: compute / 3, the weights' gradients
    """
    sent = work.tokens * work.top_k * (ep - 1) / ep * 4 * work.hidden_size
    fitting = int(sent / max(PIECE, (ep - 1) * MESSAGE))
    experts = -(-work.n_experts // ep)
    pieces = min(max(fitting, 1), PIECES, experts)
    end = max(1, int(experts / (2 * pieces - 2) + 0.5)) / experts if pieces > 1 else 1.0
    x, out, dy, dx = far
    forward = max(end * (x + out), x + out - compute / 3 if pieces > 1 else 0.0)
    return forward + max(end * dy, dy + dx - compute * (2 if pieces > 1 else 1) / 3)


def divided(work: LayerWork, machine: Machine, ranks: int, per_node: int, threads: int, ep: int) -> Strategy:
    """Return the strategy whose groups of `ep` ranks share the experts; 1: all have all, R: one owner each.

    It sends what the library does, in as many pieces.
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
        # Cores move what stays on a node; what leaves it can be hidden.
        far = [machine.between_nodes(ep, near, piece) for piece in pieces]
        moved -= sum(far) - waited(work, ep, far, compute)
        said = WORDS + 8 * work.n_experts / AGREEMENTS
        small = AGREEMENTS * machine.all_to_all(ep, near, said)
        # A message within a node is two copies, so that the copies alone are twice as fast.
        copied = p * COPIES * rows * 4 * work.hidden_size / (2 * machine.copy_rate)
        exchange = moved + copied + small
        sent = (ep - 1) * (rows / ep * sum(work.row_bytes) + AGREEMENTS * said)
        chain, chained = chains(work, machine, ep, near, p * threads, p)
        sent += chained
    if copies > 1:
        of_experts = 4.0 * work.n_experts / ep * work.expert_weights
        gradient_sum = machine.sum(copies, ep, ep, per_node, of_experts)
        gradient_sum += machine.sum(copies, ep, ep, per_node, work.chained_bytes)
        sent += 2 * (copies - 1) / copies * (of_experts + work.chained_bytes)
    by_hand = "a plain layer on each rank" if ep == 1 else "Layer(communicator=...) in each group"
    return Strategy(
        name="expert-exclusive" if copies == 1 else "grid",
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
        note="Layer(communicator=...)" if copies == 1 else f"{by_hand}; you add up the copies' gradients",
    )


def chains(
    work: LayerWork, machine: Machine, ranks: int, near: int, busy: int, per_node: int
) -> tuple[float, float]:
    """Return seconds and bytes of a rank: sums of losses, then gradients of what all ranks have.

    Each rank goes on from the one before it, and the last one tells all.
    """
    turn = work.tokens * work.n_experts / ADDITIONS + work.chained_operations / (
        machine.rate(busy) / per_node
    )
    seconds, sent = (ranks - 1) * turn, 0.0
    for bytes_ in (8 * 4 * work.n_experts, work.chained_bytes):
        seconds += machine.along(ranks, near, bytes_) + machine.to_all(ranks, near, bytes_)
        sent += bytes_
    return seconds, sent


def replicated(work: LayerWork, machine: Machine, ranks: int, per_node: int, threads: int) -> Strategy:
    """Return the strategy with all experts on every rank: no row travels, and gradients of experts do.

    One expert after the other goes from rank to rank, and then around.  With t seconds of one expert's weight
    gradients on a rank, and h of a message with them::

        chain = (R - 1) t + (E + R - 1) h + (E + R - 2) h
    """
    p, experts = min(per_node, ranks), work.n_experts
    seconds, sent = chains(work, machine, ranks, p, p * threads, p)
    said = WORDS + 8 * experts / AGREEMENTS
    of_one = 4.0 * work.expert_weights
    hop = machine.along(ranks, p, of_one) / (ranks - 1)
    rate = machine.rate(p * threads) / p
    turn = 2.0 * work.tokens * work.top_k * work.expert_weights / experts / rate
    seconds += (ranks - 1) * turn + (2 * experts + 2 * ranks - 3) * hop
    rows = work.tokens * work.top_k
    return Strategy(
        name="replicated",
        ep=1,
        copies=ranks,
        runs=True,
        same_bits=True,
        bytes_sent=sent + 2 * (ranks - 1) / ranks * experts * of_one + AGREEMENTS * (ranks - 1) * said,
        memory=work.parameter_bytes(experts)
        + work.activation_bytes(rows)
        - 16.0 * rows * work.hidden_size  # which lie in no message
        + of_one,
        compute=compute_seconds(work, machine, ranks, per_node, threads),
        exchange=AGREEMENTS * machine.all_to_all(ranks, p, said),
        chain=seconds,
        gradient_sum=0.0,
        note='Layer(communicator=..., strategy="replicated")',
    )


def sliced(work: LayerWork, machine: Machine, ranks: int, per_node: int, threads: int) -> Strategy:
    """Return expert slicing: rows of x and dy go to all, parts of outputs and dx come back, to be added."""
    p, rows = min(per_node, ranks), work.tokens * work.top_k
    compute = compute_seconds(work, machine, ranks, per_node, threads)
    pieces = [float(rows * each) for each in work.row_bytes]
    far = [machine.between_nodes(ranks, p, piece) for piece in pieces]
    moved = sum(machine.all_to_all(ranks, p, piece) for piece in pieces)
    said = WORDS + 8 * work.n_experts / AGREEMENTS
    small = AGREEMENTS * machine.all_to_all(ranks, p, said)
    copied = p * COPIES * ranks * rows * 4 * work.hidden_size / (2 * machine.copy_rate)
    seconds, sent = chains(work, machine, ranks, p, p * threads, p)
    # Inner features alone are divided: of all ranks' rows, and of a row's parts that come back.
    outer = 24.0 * ranks * rows * work.hidden_size
    inner = work.activation_bytes(rows) - 24.0 * rows * work.hidden_size
    runs = work.expert_kind != "linear" and work.intermediate_size >= ranks
    return Strategy(
        name="sliced",
        ep=1,
        copies=1,
        runs=runs,
        same_bits=False,
        bytes_sent=sent + (ranks - 1) * (sum(pieces) + AGREEMENTS * said),
        memory=work.parameter_bytes(work.n_experts / ranks) + outer + inner,
        compute=compute,
        exchange=moved - sum(far) + waited(work, ranks, far, compute) + copied + small,
        chain=seconds,
        gradient_sum=0.0,
        note='Layer(communicator=..., strategy="sliced")' if runs else "an expert has no slice for each rank",
    )
