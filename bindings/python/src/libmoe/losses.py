"""Losses over several layers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Union

import numpy as np
from numpy.typing import NDArray

from ._keywords import keywords
from ._native import check
from ._native.check import FloatArray
from ._native.library import lib
from .errors import ArgumentTypeError, InvalidArgumentError

Integers = Union[NDArray[np.int64], Sequence[NDArray[np.int64]]]
Floats = Union[FloatArray, Sequence[FloatArray]]


@keywords
def pooled_balance_loss(
    tokens_per_expert: Integers, n_valid: Integers | Sequence[int], mean_probability: Floats
) -> tuple[float, FloatArray]:
    """Return transformers' ``load_balancing_loss_func`` over several layers, and its gradient.

    With L layers of E experts, n_l the layer's tokens and N their sum::

        f_e = sum over l of tokens_per_expert[l, e] / N
        P_e = sum over l of n_l mean_probability[l, e] / N
        loss = E sum over e of f_e P_e

    f and P are pooled over the layers before they are multiplied, which is not the mean of the layers' own
    losses.  Perfect balance gives K; no tokens give 0.

    With the reports' ``sequence_counts`` [L, B, E], ``sequence_valid`` [L, B] and ``sequence_probability``
    [L, B, E] it is the mean over sequences of what each gives by itself: the loss of Switch in transformers.
    Perfect balance then gives 1, and row l of the gradient is ``d_sequence_probability`` of ``backward``.

    Parameters
    ----------
    tokens_per_expert : array of int64, [L, E] or [L, B, E]
        Of the layers' reports.
    n_valid : array of int64, [L] or [L, B]
        Of the layers' reports.
    mean_probability : array of float32, [L, E] or [L, B, E]
        Of the layers' reports.

    Returns
    -------
    loss : float
    d_mean_probability : ndarray of float32, [L, E] or [L, B, E]
        The gradient: row l times the loss's coefficient is what ``backward`` of layer l takes as
        ``d_mean_probability``.

    Raises
    ------
    ValueError
        The shapes do not fit together.
    InvalidArgumentError
        A count is negative.

    Examples
    --------
    >>> import libmoe, numpy
    >>> layers = [libmoe.Layer(64, 256, n_experts=8, top_k=2, seed=seed) for seed in range(2)]
    >>> tapes = [layer.tape() for layer in layers]
    >>> x = numpy.ones((5, 64), numpy.float32)
    >>> reports = []
    >>> for layer, tape in zip(layers, tapes):
    ...     reports.append(layer.forward(x, tape=tape, training=True).report)
    >>> loss, gradient = libmoe.pooled_balance_loss(
    ...     [report.tokens_per_expert for report in reports],
    ...     [report.n_valid for report in reports],
    ...     [report.mean_probability for report in reports],
    ... )
    >>> for layer, tape, row in zip(layers, tapes, gradient):
    ...     dx = layer.backward(tape, x, d_mean_probability=0.001 * row)
    """
    counts = check.integers("tokens_per_expert", tokens_per_expert, np.int64)
    tokens = check.integers("n_valid", n_valid, np.int64)
    try:
        probabilities = np.ascontiguousarray(mean_probability, np.float32)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"mean_probability: expected numbers in rows of one length ({error})"
        ) from None
    if counts.ndim not in (2, 3):
        raise InvalidArgumentError(
            "tokens_per_expert: expected shape [layers, experts] or [layers, sequences, experts], "
            f"got {counts.shape}"
        )
    if tokens.shape != counts.shape[:-1]:
        raise InvalidArgumentError(f"n_valid: expected shape {counts.shape[:-1]}, got {tokens.shape}")
    if probabilities.shape != counts.shape:
        raise InvalidArgumentError(
            f"mean_probability: expected shape {counts.shape}, got {probabilities.shape}"
        )
    loss, gradient = ctypes.c_float(), np.empty(counts.shape, np.float32)
    function = lib.moe_pooled_balance_loss if counts.ndim == 2 else lib.moe_pooled_sequence_loss
    function(
        *counts.shape,
        counts.ctypes.data,
        tokens.ctypes.data,
        probabilities.ctypes.data,
        ctypes.byref(loss),
        gradient.ctypes.data,
    )
    return loss.value, gradient
