"""Communicators whose bytes Python moves: the contract, errors and interruptions, over queues."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import signal
import threading
import time
import weakref
from collections import defaultdict, deque
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe._native import abi, transport
from libmoe._native.callbacks import raised
from libmoe._native.transport import End, Message, Transport
from thread_ranks import on_threads, unkept


class Queues(Transport):
    """Messages within the process, by sender, receiver and tag."""

    def __init__(self, rank: int, size: int, between: dict[Any, tuple[deque[Any], deque[Any]]]) -> None:
        self.rank, self.size = rank, size
        self._between = between
        self.given_up: list[Message] = []
        self.closed = 0
        self.raises: BaseException | None = None

    def begin(self, messages: list[Message]) -> list[Message]:
        for each in messages:
            key = (self.rank, each.other) if each.sends else (each.other, self.rank)
            sent, wanted = self._between[(*key, each.tag)]
            if each.sends:
                sent.append(bytes(each.data))
            else:
                wanted.append(each)
        return messages

    def is_done(self, begun: list[Message]) -> bool:
        if self.raises is not None:
            raise self.raises
        for each in begun:
            if each.sends:
                continue
            sent, wanted = self._between[(each.other, self.rank, each.tag)]
            while sent and wanted:
                data = sent.popleft()
                ctypes.memmove(wanted[0].data, data, len(data))
                wanted.popleft()
            if any(each is other for other in wanted):
                return False
        return True

    def give_up(self, begun: list[Message]) -> None:
        self.given_up += begun

    def close(self) -> None:
        self.closed += 1


def group(size: int) -> list[End]:
    between: dict[Any, tuple[deque[Any], deque[Any]]] = defaultdict(lambda: (deque(), deque()))
    return [End(Queues(rank, size, between)) for rank in range(size)]


def words(struct: abi.moe_communicator, code: int) -> str:
    return ctypes.string_at(struct.error(struct.user, code)).decode()


def begin_receive(struct: abi.moe_communicator, count: int = 8) -> tuple[int, int]:
    """Begin to receive what nobody sends: the code, and the request."""
    request = ctypes.c_void_p()
    memory = ctypes.create_string_buffer(count)
    code = struct.receive(struct.user, memory, count, 1 - struct.rank, 3, ctypes.addressof(request))
    return code, request.value or 0


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_contract_is_kept(size: int) -> None:
    communicators = [libmoe.Communicator.of(end) for end in group(size)]
    assert on_threads(communicators, unkept) == [None] * size


def test_long_messages_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PIECE", 1000)
    communicators = [libmoe.Communicator.of(end) for end in group(2)]
    assert on_threads(communicators, unkept) == [None, None]


def test_an_exception_of_the_transport_is_an_error_with_its_words() -> None:
    end = group(2)[0]
    code, request = begin_receive(end.struct)
    assert code == 0
    end._transport.raises = RuntimeError("the cable\nis out")  # type: ignore[attr-defined]
    code = end.struct.wait(end.struct.user, request)
    assert code != 0
    assert words(end.struct, code) == "RuntimeError: the cable is out"
    assert len(end._transport.given_up) == 1  # type: ignore[attr-defined]
    assert begin_receive(end.struct)[0] != 0  # at once, as ever after
    assert words(end.struct, 1) == "RuntimeError: the cable is out"
    assert raised.take() is None


def test_wrong_arguments_are_errors() -> None:
    for other, tag, count in [(0, 0, 8), (2, 0, 8), (-1, 0, 8), (1, 16384, 8), (1, -1, 8), (1, 0, -1)]:
        end = group(2)[0]
        request = ctypes.c_void_p()
        code = end.struct.send(end.struct.user, None, count, other, tag, ctypes.addressof(request))
        assert code != 0
        assert words(end.struct, code).startswith(
            f"ValueError: a message of {count} bytes with the tag {tag}"
        )


def test_bytes_to_oneself_have_one_number() -> None:
    end = group(1)[0]
    eight, four, at = ctypes.c_int64(8), ctypes.c_int64(4), ctypes.c_int64(0)
    request = ctypes.c_void_p()
    numbers = [ctypes.addressof(each) for each in (eight, at, four, at)]
    code = end.struct.all_to_all(end.struct.user, 8, *numbers[:2], 8, *numbers[2:], ctypes.addressof(request))
    assert code != 0
    assert words(end.struct, code) == "ValueError: rank 0 sends 8 bytes to itself, and expects 4"


def test_an_abandoned_exchange_breaks_the_communicator() -> None:
    end = group(2)[0]
    _, one = begin_receive(end.struct)
    _, other = begin_receive(end.struct)
    end.struct.abandon(end.struct.user, one)
    code = end.struct.wait(end.struct.user, other)
    assert code != 0
    assert words(end.struct, code) == "an exchange was abandoned"
    assert end._requests == {}


def test_a_closed_communicator_fails_with_words() -> None:
    end = group(2)[0]
    with libmoe.Communicator.of(end) as communicator:
        code, _ = begin_receive(communicator._struct)
        assert code == 0
    communicator.close()
    assert end._transport.closed == 1  # type: ignore[attr-defined]
    code, _ = begin_receive(communicator._struct)
    assert code == 1
    assert words(communicator._struct, code) == "the communicator is closed"
    layer = libmoe.Layer(8, 16, 4, 2, communicator=communicator)
    with pytest.raises(
        libmoe.CommunicationError, match="failed with code 1: the communicator is closed; the"
    ):
        layer(np.zeros((3, 8), np.float32))


def test_what_is_of_one_process_is_not_pickled() -> None:
    communicator = libmoe.Communicator.of(group(1)[0])
    layer = libmoe.Layer(8, 16, 4, 2, communicator=communicator)
    for refused in (
        lambda: pickle.dumps(communicator),
        lambda: copy.deepcopy(communicator),
        lambda: pickle.dumps(layer),
    ):
        with pytest.raises(TypeError, match=r"one in each process.* its state_dict\(\) on each"):
            refused()
    for way in (copy.copy, copy.deepcopy):  # within the process
        assert way(layer)._made_with["communicator"] is communicator


def test_a_signal_during_a_wait_comes_out_of_it() -> None:
    """The wait returns an error, and the exception is kept for the library's caller."""
    end = group(2)[0]
    _, request = begin_receive(end.struct)

    def interrupt() -> None:
        time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt).start()
    code = end.struct.wait(end.struct.user, request)
    assert code != 0
    assert isinstance(raised.take(), KeyboardInterrupt)
    assert words(end.struct, code) == "interrupted by KeyboardInterrupt"
    assert end._requests == {}


def test_an_exception_that_waits_does_not_stop_exchanges() -> None:
    """A rank that is cancelled still has to tell the others."""
    ends = group(2)
    raised.exception = LookupError("of a log function")
    code, request = begin_receive(ends[0].struct)
    number, sent = ctypes.c_int64(5), ctypes.c_void_p()
    assert code == 0
    struct = ends[1].struct
    assert struct.send(struct.user, ctypes.addressof(number), 8, 0, 3, ctypes.addressof(sent)) == 0
    assert struct.wait(struct.user, sent.value) == 0
    assert ends[0].struct.wait(ends[0].struct.user, request) == 0
    assert isinstance(raised.take(), LookupError)


def test_nothing_is_kept_alive() -> None:
    communicator = libmoe.Communicator.of(group(2)[0])
    gone = weakref.ref(communicator._keep)
    del communicator
    gc.collect()
    assert gone() is None
