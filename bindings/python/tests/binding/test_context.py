"""Contexts: what they say about themselves, and that they do not change a bit of the result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest

import libmoe
from arrays import normal

H = 24


def test_build_info() -> None:
    assert "\n" not in libmoe.build_info()
    for matmul in ("openblas", "reference"):
        assert matmul in libmoe.Context(2, matmul).build_info().lower()


def test_the_words_of_its_arguments_are_all_documented() -> None:
    for name, words in (("matmul", libmoe.words.Matmul), ("instructions", libmoe.words.Instructions)):
        listed = re.search(rf"^ *{name} : {{(.*)}}$", str(libmoe.Context.__doc__), re.MULTILINE)
        assert listed and sorted(listed[1].split(", ")) == sorted(f'"{word}"' for word in get_args(words))


def test_processors() -> None:
    assert 1 <= libmoe.processors() <= len(os.sched_getaffinity(0))


def test_threads_beyond_the_processors_are_said_and_bounded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert libmoe.Context().threads == libmoe.Context(libmoe.processors()).threads == libmoe.processors()
        assert libmoe.Context(1).threads == 1
    with pytest.warns(RuntimeWarning, match=f"n_threads = 999.* may use {libmoe.processors()} processors"):
        context = libmoe.Context(999)
    assert context.threads == min(999, 4 * libmoe.processors())
    assert f"threads: {context.threads} of 999 asked for" in context.build_info()


def test_one_processor_is_one_thread() -> None:
    """A process bound to one processor: the system's own tool is the judge."""
    program = "import libmoe; print(libmoe.processors(), libmoe.Context().threads)"
    one = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", one, sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output(command, text=True, env=environment).split() == ["1", "1"]


def test_log() -> None:
    lines: list[tuple[int, str]] = []
    libmoe.Layer(H, 8, 4, 2, context=libmoe.Context(1, log=lambda level, line: lines.append((level, line))))
    assert lines
    assert all(level == 0 and line and "\n" not in line for level, line in lines)


def test_an_exception_of_the_log_comes_out_of_the_call(capfd: pytest.CaptureFixture[str]) -> None:
    def log(level: int, line: str) -> None:
        raise LookupError(line)

    with pytest.raises(LookupError):
        libmoe.Layer(H, 8, 4, 2, context=libmoe.Context(1, log=log))
    assert capfd.readouterr() == ("", "")


def one_step(context: libmoe.Context) -> dict[str, bytes]:
    """Bits of everything that a training step gives."""
    layer = libmoe.Layer(H, 40, 5, 3, dropout=0.3, seed=3, context=context)
    tape, optimizer = layer.tape(), libmoe.AdamW(layer.parameters, context=context)
    x, dy = normal(301, H), normal(301, H, seed=1)
    output = layer.forward(x, tape=tape, training=True)
    dx = layer.backward(tape, dy)
    norm = libmoe.clip_grad_norm(layer.parameters, 1.0, context=context)
    bits = {f"grad of {name}": p.grad.tobytes() for name, p in layer.parameters.items()}
    optimizer.step()
    bits.update({name: p.data.tobytes() for name, p in layer.parameters.items()})
    bits.update(y=output.y.tobytes(), dx=np.asarray(dx).tobytes(), norm=np.float64(norm).tobytes())
    bits.update(losses=np.array([output.report.aux_loss, output.report.entropy]).tobytes())
    return bits


@pytest.mark.parametrize("matmul", ["auto", "openblas", "reference"])
def test_the_number_of_threads_does_not_change_a_bit(matmul: str) -> None:
    alone = one_step(libmoe.Context(1, matmul))  # type: ignore[arg-type]
    for n_threads in (2, 3, libmoe.ALL_THREADS):
        assert one_step(libmoe.Context(n_threads, matmul)) == alone  # type: ignore[arg-type]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_several_threads_call_one_layer(n_threads: int) -> None:
    layer = libmoe.Layer(H, 40, 5, 3, context=libmoe.Context(n_threads))
    inputs = [normal(100 + i, H, seed=i) for i in range(16)]
    serial = [layer.forward(x) for x in inputs]
    at_once = threading.Barrier(4)

    def work(first: int) -> list[libmoe.Output]:
        at_once.wait()
        tape = layer.tape()
        return [layer.forward(x, tape=tape) for x in inputs[first::4]]

    with ThreadPoolExecutor(4) as pool:
        for first, outputs in enumerate(pool.map(work, range(4))):
            for mine, expected in zip(outputs, serial[first::4]):  # noqa: B905
                np.testing.assert_array_equal(mine.y, expected.y)
                np.testing.assert_array_equal(mine.report.expert_indices, expected.report.expert_indices)
                assert mine.report.aux_loss == expected.report.aux_loss


def test_backward_calls_of_several_threads_take_turns() -> None:
    """Gradients that are whole numbers add up exactly, whoever comes first."""
    layer = libmoe.Layer(H, 8, n_experts=1, top_k=1, context=libmoe.Context(2))
    x = normal(50, H)

    def work(_: int) -> None:
        tape = layer.tape()
        for _ in range(20):
            layer.forward(x, tape=tape)
            layer.backward(tape, np.ones_like(x), need_dx=False)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    np.testing.assert_array_equal(
        layer.parameters["experts.down.bias"].grad, np.full((1, H), 4 * 20 * 50, np.float32)
    )
