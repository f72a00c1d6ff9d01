"""Communicators whose bytes Python moves: the functions of a ``moe_communicator`` over a class of Python."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import abi, callbacks
from .running import running

TAGS = 16384
"""Below are the caller's; from here on as many are those of all_to_all, by its number."""
PIECE = 1 << 30
"""Bytes of the longest message: counts are 32 bits wide in most transports."""
_BUSY = 0.002
"""Seconds that a wait only yields before it sleeps between its looks: ranks may share processors."""


@dataclass
class Message:
    """Bytes that go to another rank, or come from it."""

    sends: bool
    data: Any
    """A ctypes array over memory of the library's, at least one byte."""
    other: int
    tag: int


class Transport:
    """What moves messages; derived classes say how."""

    rank: int
    size: int

    def begin(self, messages: list[Message]) -> Any:
        """Begin them, without a wait for another rank; return what stands for all of them."""
        raise NotImplementedError

    def is_done(self, begun: Any) -> bool:
        """Return whether all are done, without a wait; move them on."""
        raise NotImplementedError

    def give_up(self, begun: Any) -> None:
        """Forget messages that may still be under way."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the transport has of its own."""
        raise NotImplementedError


class End:
    """A ``moe_communicator``, as :attr:`struct`, whose bytes a :class:`Transport` moves."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._requests: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._exchanges = itertools.count()
        self._reason: str | None = None
        self._words = ctypes.create_string_buffer(1024)
        self.struct = abi.moe_communicator(rank=transport.rank, size=transport.size, user=1)
        for name in ("all_to_all", "send", "receive", "test", "wait", "abandon"):
            kind = getattr(abi, f"moe_communicator_{name}")
            setattr(self.struct, name, callbacks.telling(kind, self._told(getattr(self, f"_{name}"))))
        # The address of the words, whatever is asked: no function of Python, which a signal may interrupt.
        address = ctypes.addressof(self._words)
        constant = functools.partial(max, address, key=address.__eq__)
        self.struct.error = abi.moe_communicator_error(constant)

    def close(self) -> None:
        """Have every later call fail."""
        if self._reason is None:
            self._break("the communicator is closed")
            self._transport.close()

    def _break(self, reason: str) -> None:
        """Have every later call fail, for this reason if it is the first."""
        if self._reason is None:
            self._reason = reason
            text = reason.replace("\n", " ").encode()[: len(self._words) - 1]
            self._words.value = text.decode(errors="ignore").encode()

    def _told(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what the native callback tells: a transport's exceptions are codes, others come out."""

        def told(_user: int, *arguments: Any) -> Any:
            try:
                function(*arguments)
            except Exception as exception:
                self._break(f"{type(exception).__name__}: {exception}")
                return callbacks.FAILED
            except BaseException as exception:
                self._break(f"interrupted by {type(exception).__name__}")
                raise
            return None

        return told

    # The functions of the struct, without its user pointer.

    def _begin(self, messages: Iterable[Message], request: int) -> None:
        if self._reason is not None:
            raise RuntimeError(self._reason)
        number = next(self._numbers)
        self._requests[number] = self._transport.begin(list(messages))
        ctypes.c_void_p.from_address(request).value = number

    def _all_to_all(
        self,
        send: int | None,
        send_bytes: int,
        send_offsets: int,
        receive: int | None,
        receive_bytes: int,
        receive_offsets: int,
        request: int,
    ) -> None:
        rank, size = self._transport.rank, self._transport.size
        tag = TAGS + next(self._exchanges) % TAGS
        out, out_at = _numbers(send_bytes, size), _numbers(send_offsets, size)
        into, into_at = _numbers(receive_bytes, size), _numbers(receive_offsets, size)
        if out[rank] != into[rank]:
            raise ValueError(f"rank {rank} sends {out[rank]} bytes to itself, and expects {into[rank]}")
        messages: list[Message] = []
        # Each begins with its neighbour: not all with the same one.
        for r in ((rank + size - i) % size for i in range(1, size)):
            messages += _pieces(False, receive, into_at[r], into[r], r, tag)
        for r in ((rank + i) % size for i in range(1, size)):
            messages += _pieces(True, send, out_at[r], out[r], r, tag)
        self._begin(messages, request)
        if out[rank] > 0:
            ctypes.memmove((receive or 0) + into_at[rank], (send or 0) + out_at[rank], out[rank])

    def _send(self, data: int | None, bytes_: int, to: int, tag: int, request: int) -> None:
        self._require(bytes_, to, tag)
        self._begin(_pieces(True, data, 0, bytes_, to, tag), request)

    def _receive(self, data: int | None, bytes_: int, sender: int, tag: int, request: int) -> None:
        self._require(bytes_, sender, tag)
        self._begin(_pieces(False, data, 0, bytes_, sender, tag), request)

    def _require(self, bytes_: int, other: int, tag: int) -> None:
        rank, size = self._transport.rank, self._transport.size
        if bytes_ < 0 or not 0 <= tag < TAGS or not 0 <= other < size or other == rank:
            raise ValueError(
                f"a message of {bytes_} bytes with the tag {tag} is between the ranks {rank} and {other} "
                f"of {size}"
            )

    def _is_done(self, number: int) -> bool:
        """Return whether a request is done; one that is done has ended."""
        if self._reason is not None:
            raise RuntimeError(self._reason)
        done = self._transport.is_done(self._requests[number])
        if done:
            del self._requests[number]
        return done

    def _end(self, number: int) -> None:
        self._transport.give_up(self._requests.pop(number))

    @contextlib.contextmanager
    def _ending(self, number: int) -> Iterator[None]:
        """Have a request end with an exception too."""
        try:
            yield
        except BaseException:
            if number in self._requests:
                self._end(number)
            raise

    def _test(self, number: int, done: int) -> None:
        with self._ending(number):
            ctypes.c_int32.from_address(done).value = self._is_done(number)

    def _wait(self, number: int) -> None:
        begun = time.monotonic()
        with self._ending(number):
            while not self._is_done(number):
                if running.must_stop():
                    raise RuntimeError("the interpreter ends, and waits for this thread")
                if time.monotonic() - begun < _BUSY:
                    os.sched_yield()
                else:
                    time.sleep(5e-5)

    def _abandon(self, number: int) -> None:
        self._end(number)
        self._break("an exchange was abandoned")


def _numbers(address: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(address))


def _pieces(
    sends: bool, address: int | None, offset: int, count: int, other: int, tag: int
) -> Iterable[Message]:
    for at in range(0, count, PIECE):
        data = (ctypes.c_uint8 * min(PIECE, count - at)).from_address((address or 0) + offset + at)
        yield Message(sends, data, other, tag)
