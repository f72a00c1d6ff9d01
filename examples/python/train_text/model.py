"""The model: a libmoe layer between an embedding and a softmax, forwards and backwards.

    x = the embeddings of the CONTEXT bytes before, one after the other    [T,H]
    h = x + moe(norm(x))                                                   [T,H]
    p = softmax(norm(h) W^T + b)                                           [T,256]

The Mixture of Experts and its losses are libmoe's; everything around it is numpy.  The feed-forward language
model over a window of embeddings is that of Bengio et al., JMLR 3 (2003); norm is RMSNorm, arXiv:1910.07467.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe
from train_text.text import Bytes

Floats = NDArray[np.float32]

CONTEXT = 16  # bytes the model sees
WIDTH = 16  # of one byte's embedding
HIDDEN = CONTEXT * WIDTH  # H
INTERMEDIATE = 2 * HIDDEN
N_EXPERTS = 16
TOP_K = 2


@dataclass
class Activations:
    """What backward needs of a forward."""

    contexts: Bytes  # [T,CONTEXT]
    norm_x: Normed
    norm_h: Normed
    probabilities: Floats  # [T,256]
    report: libmoe.Report


class TextModel:
    """Probabilities of the next byte, and their gradients."""

    def __init__(self, shares: NDArray[np.float64], seed: int, moe: libmoe.Layer | None = None) -> None:
        """Begin as the unigram model with these shares [256] of the bytes.

        moe is the layer in the middle, of HIDDEN features; without one it is that of the constants above.
        """
        rng = np.random.default_rng(seed)
        self.moe = moe or libmoe.Layer(
            HIDDEN, INTERMEDIATE, N_EXPERTS, TOP_K, balance_coef=0.01, z_coef=0.001, seed=seed
        )
        self.tape = self.moe.tape()
        self.embedding = libmoe.Parameter(
            0.3 * rng.standard_normal((256, WIDTH), np.float32), name="embedding"
        )
        self.gain_x = libmoe.Parameter(np.ones(HIDDEN, np.float32), name="norm_x.gain")
        self.gain_h = libmoe.Parameter(np.ones(HIDDEN, np.float32), name="norm_h.gain")
        self.weight = libmoe.Parameter(np.zeros((256, HIDDEN), np.float32), name="output.weight")
        self.bias = libmoe.Parameter(np.log(shares).astype(np.float32), name="output.bias")
        self._own = [self.embedding, self.gain_x, self.gain_h, self.weight, self.bias]
        self.parameters = [*self._own, *self.moe.parameters.values()]

    def save(self, path: Path) -> None:
        """Write all weights by name; a file of that name is replaced in one go, or stays as it was."""
        moe = {f"moe.{name}": parameter.data for name, parameter in self.moe.parameters.items()}
        weights: dict[str, Any] = {p.name: p.data for p in self._own} | moe
        unfinished = path.with_name(path.name + ".unfinished")
        try:
            with unfinished.open("wb") as file:
                np.savez(file, **weights)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> TextModel:
        """Read what `save` wrote."""
        model = cls(np.full(256, 1 / 256), seed=0)
        with np.load(path) as weights:
            for parameter in model._own:
                parameter.data[:] = weights[parameter.name]
            model.moe.load_state_dict({name: weights[f"moe.{name}"] for name in model.moe.parameters})
        return model

    def zero_grad(self) -> None:
        """Set every gradient to 0."""
        for parameter in self._own:
            parameter.grad.fill(0)
        self.moe.zero_grad()

    def forward(self, contexts: Bytes, *, training: bool = False, step: int = 0) -> Activations:
        """Probabilities of the byte after each context [T,CONTEXT]; in training, `backward` may follow."""
        x = self.embedding.data[contexts].reshape(-1, HIDDEN)  # [T,H]
        norm_x = rms_norm(x, self.gain_x.data)
        tape = self.tape if training else None
        moe = self.moe.forward(norm_x.y, tape=tape, training=training, step=step, **self.given(contexts))
        norm_h = rms_norm(x + moe.y, self.gain_h.data)
        probabilities = softmax(norm_h.y @ self.weight.data.T + self.bias.data)  # [T,256]
        return Activations(contexts, norm_x, norm_h, probabilities, moe.report)

    def given(self, contexts: Bytes) -> dict[str, Any]:
        """Return what the router has to be told of contexts [T,CONTEXT]: nothing, but of some routers."""
        return {}

    def backward(self, a: Activations, targets: Bytes) -> None:
        """Add the gradients of  mean cross-entropy with targets [T]  +  the layer's auxiliary loss."""
        d_logits = a.probabilities.copy()  # [T,256]: (p - one-hot) / T
        d_logits[np.arange(len(targets)), targets] -= 1
        d_logits /= len(targets)
        self.weight.grad[:] += d_logits.T @ a.norm_h.y
        self.bias.grad[:] += d_logits.sum(0)
        dh = rms_norm_backward(a.norm_h, d_logits @ self.weight.data, self.gain_h)  # [T,H]
        d_moe = self.moe.backward(self.tape, dh)
        assert d_moe is not None
        dx = dh + rms_norm_backward(a.norm_x, d_moe, self.gain_x)
        self._embedding_backward(a.contexts, dx)

    def _embedding_backward(self, contexts: Bytes, dx: Floats) -> None:
        """embedding.grad[byte] += the rows of dx that came from that byte."""
        # Sorted by byte the rows of one byte stand together: far faster than np.add.at.
        order = np.argsort(contexts, axis=None, kind="stable")
        byte = contexts.reshape(-1)[order]
        first = np.flatnonzero(np.diff(byte, prepend=byte[0] ^ 1))
        self.embedding.grad[byte[first]] += np.add.reduceat(dx.reshape(-1, WIDTH)[order], first)


@dataclass
class Normed:
    """y = gain * unit, where the rows of unit = x * scale have mean square 1."""

    y: Floats  # [T,H]
    unit: Floats  # [T,H]
    scale: Floats  # [T,1]


def rms_norm(x: Floats, gain: Floats) -> Normed:
    """Divide the rows of x [T,H] by their root mean square, then scale the columns by gain [H]."""
    mean_square = np.einsum("th,th->t", x, x)[:, None] / np.float32(x.shape[1])
    scale = 1 / np.sqrt(mean_square + np.float32(1e-6))
    unit = x * scale
    return Normed(unit * gain, unit, scale)


def rms_norm_backward(forward: Normed, dy: Floats, gain: libmoe.Parameter) -> Floats:
    """Gradient with respect to x [T,H]; that of the gain is added to it."""
    gain.grad[:] += np.einsum("th,th->h", dy, forward.unit)
    d_unit = dy * gain.data
    along: Floats = np.einsum("th,th->t", d_unit, forward.unit)[:, None] / np.float32(dy.shape[1])
    return (d_unit - forward.unit * along) * forward.scale


def softmax(logits: Floats) -> Floats:
    """Rows [T,256] to probabilities, in place."""
    logits -= logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(1, keepdims=True)
    return logits
