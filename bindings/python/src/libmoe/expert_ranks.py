"""Which experts of calls are on which rank."""

from __future__ import annotations

from collections.abc import Sequence

from . import _ranks
from ._keywords import keywords
from ._native import check
from ._native.library import Handle, Native, lib
from .communicator import Communicator
from .context import Context, handle_of


@keywords
class ExpertRanks(Native):
    """The ranks that calls of :func:`experts_forward` and its kin are spread over: give it as ``ranks=``.

    Each rank has some of the experts, one after another, and calls with their weights and with tokens of its
    own, also with none.  All ranks make the same calls in the same order, which come to the bits of one
    process with the tokens of rank 0, then those of rank 1, and so on, and all experts.

    Parameters
    ----------
    communicator : Communicator
        This rank's end of the group.
    n_experts : int
        E, of all ranks together.
    experts_per_rank : sequence of int, optional
        How many experts each rank has, 0 or more; by default E / size each, and one more on the first.

    Attributes
    ----------
    n_experts : int
        E.
    own : slice
        This rank's experts among them.

    Raises
    ------
    InvalidArgumentError
        The numbers do not add up to E.

    Examples
    --------
    ::

        ranks = libmoe.ExpertRanks(libmoe.mpi.communicator(), 64)
        mine = libmoe.ExpertWeights(gate_up=gate_up[ranks.own], down=down[ranks.own])
        y = libmoe.experts_forward(x, indices, routing, mine, ranks=ranks).y
    """

    def __init__(
        self,
        communicator: Communicator,
        n_experts: int,
        experts_per_rank: Sequence[int] | None = None,
        *,
        context: Context | None = None,
    ) -> None:
        given, parent = _ranks.structure(communicator), handle_of(context)
        self.n_experts = check.count("n_experts", n_experts)
        size, rank = communicator.size, communicator.rank
        counts = _ranks.counts(communicator, experts_per_rank)
        even = [self.n_experts // size + (each < self.n_experts % size) for each in range(size)]
        sizes = even if counts is None else counts.tolist()
        self.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        self._told_by = f"rank {rank} of {size}, experts {self.own.start}:{self.own.stop} of {self.n_experts}"
        self._open_handle = Handle(
            lib.moe_experts_ranks_create,
            lib.moe_experts_ranks_free,
            parent,
            given,
            self.n_experts,
            None if counts is None else counts.ctypes.data,
            keep={"context": parent, "communicator": communicator},
        )

    _instead = "make one in every process, with its communicator"

    def _told(self) -> str:
        return self._told_by
