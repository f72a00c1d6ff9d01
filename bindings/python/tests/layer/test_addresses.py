"""Weights at any address, as arrays of numpy and files have them: the bits do not depend on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from arrays import normal

LINE = 64  # bytes of a cache line
SIZES = [(64, 96), (96, 160), (40, 72)]  # H, I: rows of whole lines; of bfloat16 too or not; of none


def at(values: NDArray[Any], offset: int) -> NDArray[Any]:
    """A copy that begins so many bytes behind a cache line."""
    memory = np.zeros(values.nbytes + 2 * LINE, np.uint8)
    begin = -memory.ctypes.data % LINE + offset
    copy = memory[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    assert copy.ctypes.data % LINE == offset
    return copy


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512", "all"])
@pytest.mark.parametrize("weight_dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("sizes", SIZES)
def test_outputs_and_gradients_stay(sizes: tuple[int, int], weight_dtype: Any, instructions: Any) -> None:
    hidden, inner = sizes
    with libmoe.Context(n_threads=2, instructions=instructions) as context:
        kind: Any = {"expert_kind": "gated", "activation": "silu", "weight_dtype": weight_dtype}
        layer = libmoe.Layer(hidden, inner, 2, 1, **kind, context=context)
        own = {name: p.data.copy() for name, p in layer.parameters.items()}
        for tokens in (1, 2, 4, 5, 9, 40):
            x, dy = normal(tokens, hidden), normal(tokens, hidden, seed=1)
            found = set()
            for offset in (0, 4, 16, 20, 32, 60, *([2, 34] if weight_dtype != "f32" else [])):
                for name, values in own.items():
                    if name.startswith("experts."):
                        layer.bind(name, at(values, offset))
                tape = layer.tape()
                y = layer.forward(x, tape=tape).y
                layer.zero_grad()
                dx = np.empty_like(x)
                layer.backward(tape, dy, out=dx)
                gradients = b"".join(p.grad.tobytes() for p in layer.parameters.values())
                found.add(y.tobytes() + dx.tobytes() + gradients)
            assert len(found) == 1
