"""The end of the interpreter, signal handlers that call the library, forks and sub-interpreters."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import libmoe
from arrays import normal
from child import ENVIRONMENT


def run(program: str) -> tuple[int, str, str]:
    """Run a program in a Python of its own; return its status and what it printed."""
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return child.returncode, child.stdout, child.stderr


DAEMONS = """
import sys, threading, time
import numpy as np, libmoe
context = libmoe.Context(2, {matmul!r})
layer = libmoe.Layer(64, 256, 8, 2, context=context)
model = libmoe.Model(32, 2, 2, vocabulary_size=64, dense_intermediate_size=64, context=context)
x = np.ones((20_000, 64), np.float32)
ids = np.zeros((4, 64), np.int32)
def forward():
    while True:
        layer(x)
def step():
    optimizer = libmoe.AdamW(model.parameters, context=context)
    while True:
        model.backward(model.forward(ids, ids, training=True, tape=model.tape()))
        optimizer.step(max_norm=1.0)
def blocks():
    while True:
        libmoe.Layer(64, 64, 4, 2, context=libmoe.Context(1, log=lambda level, line: None))(x[:9])
for work in (forward, step, blocks):
    threading.Thread(target=work, daemon=True).start()
time.sleep({delay})
print("ends", flush=True)
"""


@pytest.mark.parametrize("number", range(20))
def test_daemon_threads_compute_while_the_interpreter_ends(number: int) -> None:
    program = DAEMONS.format(matmul=("native", "reference")[number % 2], delay=0.02 + 0.01 * number)
    assert run(program) == (0, "ends\n", "")


def test_a_daemon_thread_frees_its_locks_at_the_end() -> None:
    """What it held, a function that runs at exit after the guard's may want."""
    program = """
import atexit, threading, time
lock = threading.Lock()
atexit.register(lambda: print("freed", lock.acquire(timeout=30), flush=True))
import numpy as np, libmoe
layer = libmoe.Layer(64, 256, 8, 2, context=libmoe.Context(1, "reference"))
x = np.ones((10**6, 64), np.float32)
def work():
    with lock:
        layer(x)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""
    assert run(program) == (0, "freed True\n", "")


def test_functions_that_run_at_exit_may_compute() -> None:
    program = """
import atexit
atexit.register(lambda: print(layer(x).shape, flush=True))  # after the guard
import numpy as np, libmoe
layer, x = libmoe.Layer(4, 8, 4, 2), np.ones((3, 4), np.float32)
class Late:
    def __del__(self): print(self.layer(x).shape, flush=True)
late = Late(); late.layer = layer
"""
    status, printed, complaints = run(program)
    # What is destroyed after that finds numpy taken apart, says so, and ends as well as ever.
    assert (status, printed.splitlines()[0]) == (0, "(3, 4)"), complaints


def test_a_forked_child_ends_though_a_thread_of_its_parent_computes() -> None:
    """The child has the parent's memory and not its threads: it must not wait for their calls."""
    program = """
import os, sys, threading, time
import numpy as np, libmoe
layer = libmoe.Layer(64, 256, 8, 2, context=libmoe.Context(1, "reference"))
x = np.ones((10**6, 64), np.float32)
threading.Thread(target=lambda: layer(x), daemon=True).start()
time.sleep(0.2)
child = os.fork()
if child == 0:
    sys.exit(7)  # runs what is registered at exit
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    assert run(program) == (0, "7\n", "")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_of_multiprocessing_compute_the_same(method: str) -> None:
    program = f"""
import multiprocessing, numpy as np, libmoe
def work(layer):
    return float(layer(np.ones((3, 4), np.float32)).sum())
if __name__ == "__main__":
    layer = libmoe.Layer(4, 8, 4, 2, seed=3)
    here = work(layer)
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        print(set(pool.map(work, [layer] * 4)) == {{here}})
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "main.py"
        path.write_text(program)
        child = subprocess.run(
            [sys.executable, path], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
        )
    assert (child.returncode, child.stdout, child.stderr) == (0, "True\n", "")


def test_a_sub_interpreter_is_refused() -> None:
    interpreters = pytest.importorskip("_xxsubinterpreters")
    del interpreters
    program = """
import _xxsubinterpreters as interpreters
inner = interpreters.create()
try:
    interpreters.run_string(inner, "import libmoe")
except interpreters.RunFailedError as error:
    print("sub-interpreter" in str(error), "processes" in str(error))
"""
    status, printed, _ = run(program)
    assert (status, printed) == (0, "True True\n")


# ------------------------------------------------------------------------------------------------------------
# Signal handlers that call the library
# ------------------------------------------------------------------------------------------------------------


@contextmanager
def handled(handler: Callable[[], object], delay: float = 0.01, interval: float = 0.0) -> Iterator[list[int]]:
    """Have a handler of SIGALRM run soon; give how often it has."""
    rung: list[int] = []

    def ring(number: int, frame: object) -> None:
        rung.append(number)
        handler()

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, delay, interval)
    try:
        yield rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def slow() -> libmoe.Layer:
    return libmoe.Layer(128, 512, 8, 2, context=libmoe.Context(2, "reference"))


def test_a_handler_calls_the_library_while_a_call_runs(
    slow: libmoe.Layer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each kind of call, of this layer and of others; the running call ends with its own result."""
    x = normal(6000, 128)
    expected = slow(x)
    other = libmoe.Layer(128, 512, 8, 2, seed=7, context=libmoe.Context(2, "reference"))
    tape, few, found = other.tape(), x[:500], []

    def handler() -> None:
        found.append((slow(few[:50]), other.forward(few, tape=tape).y, other.backward(tape, few)))
        libmoe.AdamW(other.parameters, 0.0).step(max_norm=1.0)
        slow.state_dict()

    with handled(handler) as rung:
        y = slow(x)
    assert len(rung) == 1
    np.testing.assert_array_equal(y, expected)
    for mine, others, _ in found:
        np.testing.assert_array_equal(mine, expected[:50])
        np.testing.assert_array_equal(others, other(few))
    assert capfd.readouterr() == ("", "")


def test_handlers_within_handlers(slow: libmoe.Layer, capfd: pytest.CaptureFixture[str]) -> None:
    """A handler's own call is long enough to be interrupted by the next signal."""
    x, depth, deepest = normal(4000, 128), [0], [0]
    expected = slow(x)

    def handler() -> None:
        depth[0] += 1
        deepest[0] = max(deepest[0], depth[0])
        if depth[0] < 3:
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # rings while the call below runs
            slow(x[:1500])

    with handled(handler):
        np.testing.assert_array_equal(slow(x), expected)
    assert deepest[0] == 3
    assert capfd.readouterr() == ("", "")


def test_an_exception_of_a_handlers_call_ends_both(
    slow: libmoe.Layer, capfd: pytest.CaptureFixture[str]
) -> None:
    def handler() -> None:
        slow(np.full((1, 128), np.nan, np.float32))

    with handled(handler), pytest.raises(libmoe.NotFiniteError):
        slow(normal(20_000, 128))
    assert np.isfinite(slow(normal(3, 128))).all()
    assert capfd.readouterr() == ("", "")


def test_what_would_wait_for_the_running_call_is_refused(
    slow: libmoe.Layer, capfd: pytest.CaptureFixture[str]
) -> None:
    """A backward takes turns with the one that it interrupts, and would wait for ever."""
    x, said = normal(3000, 128), []
    tape, other = slow.tape(), slow.tape()
    slow.forward(x, tape=tape)
    slow.forward(x[:5], tape=other)
    slow.backward(tape, x)
    expected = slow.parameters["experts.up.weight"].grad.copy()
    slow.zero_grad()

    def handler() -> None:
        for call in (
            lambda: slow.backward(other, x[:5]),
            slow.zero_grad,
            lambda: slow.forward(x[:5], tape=tape),
        ):
            with pytest.raises(libmoe.BadStateError) as error:
                call()
            said.append(str(error.value))

    slow.forward(x, tape=tape)
    with handled(handler) as rung:
        slow.backward(tape, x)
    assert len(rung) == 1
    assert all("this signal handler" in text for text in said)
    assert len(said) == 3
    np.testing.assert_array_equal(slow.parameters["experts.up.weight"].grad, expected)
    assert capfd.readouterr() == ("", "")


def test_a_log_function_may_call_the_library() -> None:
    lines: list[str] = []
    layer = libmoe.Layer(4, 8, 4, 2)

    def log(level: int, line: str) -> None:
        lines.append(line)
        layer(normal(3, 4))

    libmoe.Context(1, log=log)
    assert lines


def test_what_a_log_function_raises_comes_out() -> None:
    def log(level: int, line: str) -> None:
        raise LookupError(line)

    with pytest.raises(LookupError):
        libmoe.Context(1, log=log)


def test_finalisers_that_call_the_library_while_a_call_runs(slow: libmoe.Layer) -> None:
    """The collector finds them when the running call asks Python whether to go on."""
    other = libmoe.Layer(4, 8, 4, 2)
    ran: list[tuple[int, ...]] = []

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            ran.append(other(normal(3, 4)).shape)

    x = normal(3000, 128)
    expected = slow(x)

    def handler() -> None:
        Cycle()
        gc.collect()

    with handled(handler):
        y = slow(x)
    np.testing.assert_array_equal(y, expected)
    assert (3, 4) in ran
