"""Weights of few bits whose scales are chosen by their errors' importance, by definition in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .low_bits import Floats, unpacked

SHARES = [np.float32(1 - n / 32) for n in range(13)]
# Inputs of a block, and of a scale; 0: all of a row.
BLOCKS = {
    "int8_row": (0, 0),
    "fp8": (128, 128),
    "nvfp4": (128, 16),
    "mxfp4": (64, 32),
    "q4_k": (256, 32),
    "q6_k": (256, 16),
    "int4_g64": (64, 64),
    "int4_g128": (128, 128),
    "int4_zero_g64": (64, 64),
    "int4_zero_g128": (128, 128),
}


def importance(sums: NDArray[np.float64]) -> Floats:
    """Return the weights of errors, the largest 1: squares, and a hundredth of their mean."""
    if sums.max() <= 0:
        return np.ones(len(sums), np.float32)
    floor = 0.01 * np.add.accumulate(sums)[-1] / len(sums)
    own: Floats = ((sums + floor) * (1 / (sums.max() + floor))).astype(np.float32)
    return own


def chosen(values: Floats, form: str, weights: Floats) -> Floats:
    """Return the weights that a form keeps of a matrix [n, k] by the importance [k] of its inputs."""
    block, scale = BLOCKS.get(form, (32, 32))
    block, scale = block or values.shape[1], scale or values.shape[1]
    out = np.empty_like(values)
    for row in range(0, len(values), 32):
        for column in range(0, values.shape[1], block):
            part = np.ascontiguousarray(values[row : row + 32, column : column + block])
            own = weights[column : column + block]
            out[row : row + 32, column : column + block] = _Block(part, form, own, scale).best()
    return out


def made_up(
    values: Floats, form: str, weights: Floats, products: NDArray[np.float64], tokens: int
) -> NDArray[np.float64]:
    """Return what is kept where each block makes up for errors of those before, by mean products [k, k]."""
    block, scale = BLOCKS.get(form, (32, 32))
    n = values.shape[1]
    damped = products + 0.01 * (1 + n / tokens) * np.trace(products) / n * np.eye(n)
    r = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # upper triangular, r r^T
    kept = values.astype(np.float64)
    for first in range(0, n, block):
        here = slice(first, min(n, first + block))
        errors = (values[:, :first] - kept[:, :first]) @ r[:first, here]
        target = values[:, here] + np.linalg.solve(r[here, here].T, errors.T).T
        for row in range(0, len(values), 32):
            part = np.ascontiguousarray(target[row : row + 32]).astype(np.float32)
            kept[row : row + 32, here] = _Block(part, form, weights[here], scale).best()
    return kept


class _Block:
    def __init__(self, values: Floats, form: str, weights: Floats, scale: int) -> None:
        self.values, self.form, self.weights = values, form, weights
        self.parts = [slice(first, first + scale) for first in range(0, values.shape[1], scale)]
        self.limits = np.stack([np.abs(values[:, part]).max(1) for part in self.parts])  # [scales, n]
        if form == "fp8":
            self.limits[:] = self.limits.max()

    def kept(self, shares: Any) -> Floats:
        """With each scale's weights clipped at a share [scales, n] of the largest."""
        limits = self.limits * shares
        clipped = np.concatenate(
            [
                np.clip(self.values[:, part], -own[:, None], own[:, None])
                for part, own in zip(self.parts, limits)
            ],
            1,
        )
        return unpacked(clipped, self.form)

    def errors(self, kept: Floats) -> tuple[Floats, Floats]:
        """Of each scale [scales, n], and of each row [n], in float32 one after the other."""
        difference = self.values - kept
        error = self.weights * (difference * difference)
        scales = np.stack([np.add.accumulate(error[:, part], 1)[:, -1] for part in self.parts])
        rows = np.add.accumulate(scales, 0)[-1]
        if self.form in ("fp8", "nvfp4"):  # all rows together
            rows = np.full_like(rows, np.add.accumulate(rows)[-1])
        return (np.stack([rows]) if self.form == "fp8" else scales), rows

    def best(self) -> Floats:
        count = (len(self.parts), len(self.values))
        least, of_scale = np.full(count, np.inf, np.float32), np.ones(count, np.float32)
        row_least, of_row = np.full(count[1], np.inf, np.float32), np.ones(count[1], np.float32)
        for share in SHARES:
            scales, rows = self.errors(self.kept(np.full(count, share)))
            of_scale, least = np.where(scales < least, share, of_scale), np.minimum(scales, least)
            of_row, row_least = np.where(rows < row_least, share, of_row), np.minimum(rows, row_least)
        _, together = self.errors(self.kept(of_scale))
        return self.kept(np.where(together <= row_least, of_scale, of_row[None]))
