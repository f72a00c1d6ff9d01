"""Both ends of a language model, as functions over numpy arrays: embeddings, the loss, the next token."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._keywords import keywords
from .._native import abi, check, fields
from .._native.check import Array
from .._native.library import lib
from ..context import Context, handle_of
from ..errors import InvalidArgumentError
from ._arrays import Floats, Integers, matrix, weight_of


@keywords
def embedding(
    tokens: Integers,
    table: Floats,
    positions: Floats | None = None,
    *,
    first_position: int = 0,
    context: Context | None = None,
) -> Floats:
    """Return the tokens' rows of a table, plus the rows of their positions.

    Parameters
    ----------
    tokens : array of int32, [B, S]
    table : array of float32, [rows, H]
    positions : array of float32, [places, H], optional
        Token s of a sequence is at ``s + first_position``.

    Returns
    -------
    array of float32, [B, S, H]

    Raises
    ------
    InvalidArgumentError
        A token or a position is beyond its table; the text names it.
    """
    rows, width = matrix("table", table)
    n_sequences, length = _tokens(tokens)
    places = 0 if positions is None else matrix("positions", positions)[0]
    y = np.empty((n_sequences, length, width), np.float32)
    config = abi.moe_embedding_config(
        n_tokens=tokens.size,
        hidden_size=width,
        n_rows=rows,
        n_positions=places,
        sequence_length=length,
        first_position=check.integer("first_position", first_position, ctypes.c_int64),
    )
    lib.moe_embedding_forward(
        handle_of(context),
        ctypes.byref(config),
        tokens.ctypes.data,
        table.ctypes.data,
        check.address("positions", positions, (places, width)),
        y.ctypes.data,
    )
    return y


@keywords
def embedding_backward(
    tokens: Integers,
    dy: Floats,
    *,
    dtable: Floats | None = None,
    dpositions: Floats | None = None,
    n_rows: int | None = None,
    first_position: int = 0,
    context: Context | None = None,
) -> None:
    """Add the rows of dy [B, S, H] to those of ``dtable`` and ``dpositions``, in the order of the tokens.

    ``n_rows`` is needed without ``dtable``.
    """
    n_sequences, length = _tokens(tokens)
    width = check.array("dy", dy).shape[-1]
    if dtable is None and n_rows is None:
        raise InvalidArgumentError("n_rows: is needed without dtable; give the rows of the table")
    rows = n_rows if dtable is None else matrix("dtable", dtable)[0]
    places = 0 if dpositions is None else matrix("dpositions", dpositions)[0]
    config = abi.moe_embedding_config(
        n_tokens=tokens.size,
        hidden_size=width,
        n_rows=check.integer("n_rows", rows, ctypes.c_int64),
        n_positions=places,
        sequence_length=length,
        first_position=check.integer("first_position", first_position, ctypes.c_int64),
    )
    lib.moe_embedding_backward(
        handle_of(context),
        ctypes.byref(config),
        tokens.ctypes.data,
        check.address("dy", dy, (n_sequences, length, width)),
        check.address("dtable", dtable, (rows or 0, width), write=True),
        check.address("dpositions", dpositions, (places, width), write=True),
    )


@keywords
def cross_entropy(
    x: Floats,
    weight: Array,
    targets: Integers,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    d_loss: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float = 0.0,
    bias: Floats | None = None,
    dx: Floats | None = None,
    dweight: Floats | None = None,
    dbias: Floats | None = None,
    token_losses: Floats | None = None,
    context: Context | None = None,
) -> tuple[float, int]:
    """Cross-entropy of the logits logit_scale (x W^T + bias), without ever holding all of them.

    The mean over the tokens whose target is not ``ignore_index``, in nats, as
    ``torch.nn.functional.cross_entropy`` has it.

    Parameters
    ----------
    x : array of float32, [T, H]
    weight : array of any type of weights, [V, H]
    targets : array of int32, [T]
    d_loss : float
        What the gradients are multiplied by.
    logit_scale, logit_softcap : float
        What logits are multiplied by, and c, with which they become c tanh(logit / c); 0: they stay.
    bias : array of float32, [V], optional
    dx : array of float32, [T, H], optional
        Overwritten with the gradient in x.
    dweight : array of float32, [V, H], optional
        The gradient in weight is added to it.
    dbias : array of float32, [V], optional
        The gradient in bias is added to it.
    token_losses : array of float32, [T], optional
        Overwritten with each token's loss.

    Returns
    -------
    loss : float
    counted : int
        How many tokens it is the mean of; without any it is 0.

    Raises
    ------
    NotFiniteError
        A token's loss is not finite; gradients are partly written.
    InvalidArgumentError
        A target is not in the vocabulary, or a number is out of range.
    """
    tokens, width = matrix("x", x)
    vocabulary, dtype = weight_of(weight, width)
    loss, counted = ctypes.c_double(), ctypes.c_int64()
    config = abi.moe_cross_entropy_config(
        n_tokens=tokens,
        hidden_size=width,
        vocabulary_size=vocabulary,
        weight_dtype=dtype,
        ignore_index=check.integer("ignore_index", ignore_index, ctypes.c_int32),
        label_smoothing=check.number("label_smoothing", label_smoothing),
        d_loss=check.number("d_loss", d_loss),
        logit_scale=_scale("logit_scale", logit_scale),
        logit_softcap=check.number("logit_softcap", logit_softcap),
        bias=check.address("bias", bias, (vocabulary,)),
        dbias=check.address("dbias", dbias, (vocabulary,), write=True),
    )
    lib.moe_cross_entropy(
        handle_of(context),
        ctypes.byref(config),
        x.ctypes.data,
        weight.ctypes.data,
        check.address("targets", targets, (tokens,), dtype="i32"),
        ctypes.byref(loss),
        ctypes.byref(counted),
        check.address("token_losses", token_losses, (tokens,), write=True),
        check.address("dx", dx, x.shape, write=True),
        check.address("dweight", dweight, weight.shape, write=True),
    )
    return loss.value, counted.value


@keywords
def sample(
    logits: Floats,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    history: Sequence[int] | Integers | None = None,
    seed: int = 0,
    draw: int = 0,
    context: Context | None = None,
) -> int:
    """Draw a token from its logits [V].

    Temperature 0 takes the largest logit.  Else ``top_k`` keeps the k most likely tokens (0: all), and
    ``top_p`` (arXiv:1904.09751), from 0 to 1, the fewest of these that hold that share of their probability,
    at least one: 0 is the most likely token alone.  ``min_p`` (arXiv:2407.01082), from 0 to 1, keeps of these
    the tokens that are at least min_p times as likely as the most likely one; 0 keeps all.  ``seed`` and
    ``draw``, the number of the token, decide.

    Before all that, and for temperature 0 too, the logits of the tokens in ``history``, of each once, are
    divided by ``repetition_penalty`` (arXiv:1909.05858) where they are positive, and multiplied with it where
    they are negative; 1 changes none.

    Raises
    ------
    NotFiniteError
        A logit is NaN or plus infinity, or all are minus infinity.
    InvalidArgumentError
        A number is out of range.
    """
    shape = check.array("logits", logits).shape
    if len(shape) != 1:
        raise InvalidArgumentError(
            f"logits: expected those of one token, shape [V], got {shape}; "
            "draw for each row by itself, logits[0]"
        )
    (size,) = shape
    sampling = check_sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    so_far = check.integers("history", () if history is None else history, np.int32)
    if so_far.ndim != 1:
        raise InvalidArgumentError(
            f"history: expected the tokens of one sequence, got shape {so_far.shape}; give that of this row"
        )
    sampling.history, sampling.n_history = so_far.ctypes.data, so_far.size
    token = ctypes.c_int32()
    lib.moe_sample(
        handle_of(context),
        logits.ctypes.data,
        size,
        ctypes.byref(sampling),
        check.integer("draw", draw, ctypes.c_uint64),
        ctypes.byref(token),
    )
    return token.value


def check_sampling(
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> abi.moe_sampling:
    """Return how tokens are drawn as the library reads it; numbers out of range are refused."""
    sampling = fields.filled(
        abi.moe_sampling,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    if not 0 <= sampling.temperature < math.inf:
        raise InvalidArgumentError(
            f"sampling: temperature = {temperature} is not a number of at least 0; 0 takes the best"
        )
    if sampling.top_k < 0:
        raise InvalidArgumentError(f"sampling: top_k = {top_k} is negative; 0 means all tokens")
    if not 0 <= sampling.top_p <= 1:
        raise InvalidArgumentError(
            f"sampling: top_p = {top_p} is not in [0, 1]; 1 means all tokens, 0 the best alone"
        )
    if not 0 <= sampling.min_p <= 1:
        raise InvalidArgumentError(f"sampling: min_p = {min_p} is not in [0, 1]; 0 means all tokens")
    if not 0 < sampling.repetition_penalty < math.inf:
        raise InvalidArgumentError(
            f"sampling: repetition_penalty = {repetition_penalty} is not a number above 0; 1 is none"
        )
    return sampling


def _scale(name: str, value: float) -> float:
    number = check.number(name, value)
    if number == 0:
        raise InvalidArgumentError(f"{name} = 0: all logits would be alike; 1 leaves them as they are")
    return number


def _tokens(tokens: Any) -> tuple[int, int]:
    """Return the number of sequences and their length."""
    shape = check.array("tokens", tokens, dtype="i32").shape
    if len(shape) != 2:
        raise InvalidArgumentError(f"tokens: expected shape [sequences, length], got {shape}")
    return int(shape[0]), int(shape[1])
