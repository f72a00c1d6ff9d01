"""A communicator over the processes of torch.distributed, whose gloo moves the bytes."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.distributed as dist

from .._native.transport import End, Message, Transport
from ..communicator import Communicator
from ..errors import ArgumentTypeError, BadStateError, InvalidArgumentError


def communicator(group: Any = None) -> Communicator:
    """Return a communicator over the ranks of a process group; all of its ranks call this.

    A gloo group of the same processes is made for it, whatever the group's own backend is, so that messages
    do not mix with those of the program.  Ranks are those within the group.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        Whose ranks they are; all processes if it is left out.

    Raises
    ------
    BadStateError
        ``torch.distributed`` is not there, or not initialised.
    InvalidArgumentError
        This process is not one of the group's.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise BadStateError("communicator: call torch.distributed.init_process_group first")
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise InvalidArgumentError("group: this process is not one of the group's")
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ArgumentTypeError(
            f"group: expected a torch.distributed.ProcessGroup, got {type(group).__name__}"
        )
    ranks = dist.get_process_group_ranks(group)
    # In the order of the group; versions of torch that cannot be told sort them, in every group.
    order: dict[str, Any] = {} if ranks == sorted(ranks) else {"sort_ranks": False}
    own = dist.new_group(ranks, backend="gloo", use_local_synchronization=True, **order)
    return Communicator.of(End(_GlooTransport(own)))


class _Begun:
    """Messages under way, and the thread that waits for them: gloo tells of the end of one only who waits."""

    def __init__(self, works: list[Any], tensors: list[torch.Tensor]) -> None:
        self.error: BaseException | None = None
        self._works, self._tensors = works, tensors
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            for work in self._works:
                work.wait()
        except BaseException as error:
            self.error = error

    def is_done(self) -> bool:
        if self._thread.is_alive():
            return False
        if self.error is not None:
            raise self.error
        return True


class _GlooTransport(Transport):
    """Messages of gloo, over a group of its own."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def begin(self, messages: list[Message]) -> Any:
        tensors = [torch.frombuffer(each.data, dtype=torch.uint8) for each in messages]
        works = []
        for each, tensor in zip(messages, tensors):  # noqa: B905  (Python 3.9 has no strict)
            if each.sends:
                works.append(dist.isend(tensor, group=self._group, group_dst=each.other, tag=each.tag))
            else:
                works.append(dist.irecv(tensor, group=self._group, group_src=each.other, tag=each.tag))
        return _Begun(works, tensors) if works else None

    def is_done(self, begun: Any) -> bool:
        return begun is None or begun.is_done()

    def give_up(self, begun: Any) -> None:
        pass  # the thread that waits holds what it needs, as long as gloo does

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group(self._group)
