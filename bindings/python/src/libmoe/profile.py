"""Where the time of calls goes, phase by phase."""

from __future__ import annotations

import ctypes
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ._keywords import keywords
from ._native import abi, check
from ._native.library import Handle, lib
from ._repr import described
from .errors import ArgumentTypeError


@dataclass(frozen=True)
class PhaseTime:
    """What one phase came to in one direction.

    Attributes
    ----------
    phase : str
        ``"route"``, ``"dispatch"``, ``"gate/up"``, ``"down"``, ``"combine"``, ``"projection"``,
        ``"attention"``, ``"norm"``, ``"embedding"``, ``"loss"`` or ``"optimizer"``.
    backward : bool
        Whether it belongs to a backward.
    calls : int
        How often it ran.
    seconds : float
        Of the calling threads: a part that n threads share counts once.
    share : float
        Of the time between entering and leaving the profile.
    gflops : float
        Billions of operations of matrix products a second, 0 where there are none.
    gbytes : float
        Billions of bytes a second that had to be read or written, 0 where it is not known.
    """

    phase: str
    backward: bool
    calls: int
    seconds: float
    share: float
    gflops: float
    gbytes: float


@keywords
class Profile:
    """Measures while it is entered; made by :meth:`Context.profile`.

    >>> with context.profile() as profile:
    ...     layer.forward(x)
    >>> print(profile.table())

    It costs two looks at a clock for each part of a call.  A second profile of a context begins from 0.
    """

    def __init__(self, context: Handle, max_events: int) -> None:
        self._context = context
        self._max_events = check.integer("max_events", max_events, ctypes.c_int64)
        self._entered = 0.0
        self._phases: list[PhaseTime] = []
        self._events: list[abi.moe_profile_event] = []

    def __repr__(self) -> str:
        """Say how much was measured."""
        seconds = sum(phase.seconds for phase in self._phases)
        return described(self, f"{len(self._phases)} phases, {seconds:.3g} seconds")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: it measures calls of this process."""
        raise ArgumentTypeError(
            "a libmoe.Profile cannot be pickled or copied; pickle what it measured: profile.phases or "
            "profile.json()"
        )

    def __enter__(self) -> Profile:
        """Start."""
        lib.moe_profile_start(self._context, self._max_events)
        self._entered = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and keep what was measured."""
        seconds = time.perf_counter() - self._entered
        lib.moe_profile_stop(self._context)
        self._phases = [
            phase
            for number in abi.PHASE.values()
            for backward in (False, True)
            if (phase := self._read(number, backward, seconds)).calls > 0
        ]
        count = ctypes.c_int64()
        lib.moe_profile_events(self._context, 0, None, 0, ctypes.byref(count))
        events = (abi.moe_profile_event * count.value)()
        lib.moe_profile_events(self._context, 0, events, count.value, ctypes.byref(count))
        self._events = list(events)

    def _read(self, number: int, backward: bool, total: float) -> PhaseTime:
        sums = abi.moe_phase_time()
        lib.moe_profile_phase(self._context, number, int(backward), sums)
        rate = 1e-9 / sums.seconds if sums.seconds > 0 else 0.0
        return PhaseTime(
            phase=_name(number),
            backward=backward,
            calls=sums.calls,
            seconds=sums.seconds,
            share=sums.seconds / total,
            gflops=sums.flops * rate,
            gbytes=sums.bytes * rate,
        )

    @property
    def phases(self) -> list[PhaseTime]:
        """What ran, in the order in which data flows, forward before backward."""
        return self._phases

    def table(self) -> str:
        """Return the phases as text, one a line."""
        lines = ["phase               calls   seconds   share  GFLOP/s    GB/s"]
        for p in self.phases:
            name = f"{p.phase} backward" if p.backward else p.phase
            lines.append(
                f"{name:18s} {p.calls:6d} {p.seconds:9.4f} {p.share:6.1%} {p.gflops:8.1f} {p.gbytes:7.1f}"
            )
        rest = 1 - sum(p.share for p in self.phases)
        lines.append(f"{'elsewhere':18s} {'':6s} {'':9s} {rest:6.1%}")
        return "\n".join(lines)

    def json(self) -> str:
        """Return the phases as a JSON list of objects with the fields of :class:`PhaseTime`."""
        return json.dumps([asdict(phase) for phase in self.phases])

    def save_trace(self, path: str | Path) -> None:
        """Write the events in Chrome's trace format: a time line for chrome://tracing and Perfetto."""
        events = [
            {
                "name": f"{_name(event.phase)} backward" if event.backward else _name(event.phase),
                "ph": "X",  # an event with a beginning and a duration, in microseconds
                "pid": 0,
                "tid": event.thread,
                "ts": event.start * 1e6,
                "dur": event.seconds * 1e6,
                "args": {"flops": event.flops, "bytes": event.bytes},
            }
            for event in self._events
        ]
        Path(path).write_text(json.dumps({"traceEvents": events}))


def _name(phase: int) -> str:
    return str(lib.moe_phase_name(phase).decode())
