"""Ctrl-C, and whatever else a signal handler raises, comes out of a long call at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import libmoe
from arrays import normal
from child import ENVIRONMENT
from pretrained_models import FOLDERS, tensors

PROGRAM = """
import numpy as np, libmoe
layer = libmoe.Layer(256, 1024, 8, 2, context=libmoe.Context(2, "reference"))
x = np.ones((100_000, 256), np.float32)  # about 100 GFLOP: a minute
for _ in range(3):
    try:
        print("running", flush=True)
        layer(x)
        print("finished", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
y = layer(x[:10])
print("still works", bool(np.isfinite(y).all()), flush=True)
"""


def test_ctrl_c_ends_a_long_forward() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    try:
        for _ in range(3):
            assert child.stdout.readline() == "running\n"
            time.sleep(0.5)
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n"
            assert time.monotonic() - sent < 1
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (out, err, child.returncode) == ("still works True\n", "", 0)


class AlarmError(Exception):
    pass


@pytest.fixture
def alarm() -> Iterator[None]:
    """A handler of SIGALRM that raises."""

    def ring(number: int, frame: object) -> None:
        raise AlarmError

    previous = signal.signal(signal.SIGALRM, ring)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def test_any_handler_may_raise_at_any_moment(alarm: None, capfd: pytest.CaptureFixture[str]) -> None:
    """And does not wait for the end of the call, which is seconds away."""
    layer = libmoe.Layer(128, 512, 8, 2, context=libmoe.Context(2, "reference"))
    tape = layer.tape()
    x = normal(40_000, 128)
    few, many = x[:100], x[:8000]

    def ends_at_once(delay: float, call: Callable[[], object]) -> None:
        started = time.monotonic()
        with pytest.raises(AlarmError):
            signal.setitimer(signal.ITIMER_REAL, delay)
            call()
            pytest.fail("the call was over before the alarm")
        assert time.monotonic() - started < 1

    y = layer.forward(few, tape=tape).y
    for delay in np.linspace(0.001, 0.04, 20):
        ends_at_once(float(delay), lambda: layer(x))
    np.testing.assert_array_equal(layer.forward(few, tape=tape).y, y)

    layer.forward(many, tape=tape)
    ends_at_once(0.02, lambda: layer.backward(tape, many))
    assert capfd.readouterr() == ("", "")  # nor did ctypes print anything


def test_a_handler_that_does_not_raise_does_not_end_the_call(capfd: pytest.CaptureFixture[str]) -> None:
    rung: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        layer = libmoe.Layer(128, 512, 8, 2, context=libmoe.Context(2, "reference"))
        layer(normal(4000, 128))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(rung) > 2
    assert capfd.readouterr() == ("", "")


# Ctrl-C while the library computes is looked at when it next calls Python: on entry to a callback.
CALLBACKS = '''
import json, os, signal, sys, tempfile, threading, time
import libmoe

folder, wide = sys.argv[1:]
small = libmoe.Model.from_pretrained(folder)
sizes = {"hidden_size": 256, "n_layers": 8}
made = {**small._made_with, **sizes, "dense_intermediate_size": 512, "inference_only": True}
config = json.load(open(folder + "/config.json"))
config.update(hidden_size=256, num_hidden_layers=8, intermediate_size=512)
model = libmoe.Model(**made)
model.save_pretrained(wide, config=config)

def interrupted(call):
    """Whether Ctrl-C came out of the call; on a busy machine it may be over before the signal is sent."""
    told, over = threading.Event(), False

    def kill():
        told.wait()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        made = call(lambda *_: told.set())
        over = True
        time.sleep(10)
        print("lost")
    except KeyboardInterrupt:
        pass
    thread.join()
    return not over

def load(tell):
    return libmoe.Model.from_pretrained(wide, progress=tell)

def save(tell):
    model.save_pretrained(wide, config=config, progress=tell)

for call in (load, save) * 4:
    print(any(interrupted(call) for attempt in range(20)))
'''


def test_ctrl_c_comes_out_where_a_callback_is_told_something(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CALLBACKS, str(FOLDERS / "llama"), str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (child.stdout, child.stderr, child.returncode) == ("True\n" * 8, "", 0)


def test_a_callback_may_call_the_library_that_calls_back() -> None:
    """From any number of threads, and one within another."""
    told: list[tuple[int, int]] = []

    def outer(done: int, total: int) -> None:
        libmoe.Model.from_pretrained(FOLDERS / "llama", progress=lambda *inner: told.append(inner))

    def run() -> None:
        libmoe.Model.from_pretrained(FOLDERS / "llama", progress=outer)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    size = sum(t.nbytes for t in tensors(FOLDERS / "llama").values())
    count = sum(each == (size, size) for each in told)
    assert len(told) == count * (count // 2) > 0  # each load of a thread tells as often as it is told
