"""Positions and attention."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._keywords import keywords, require_known
from .._native import abi, check, fields
from .._native.library import lib
from ..context import Context, handle_of
from ..errors import ArgumentTypeError, InvalidArgumentError
from ._arrays import Floats


@keywords
def rotate(
    x: Floats,
    *,
    positions: NDArray[np.int64] | None = None,
    first_position: int = 0,
    theta: float = 10000.0,
    rotary_size: int | None = None,
    frequencies: NDArray[np.float64] | None = None,
    scale: float = 1.0,
    inverse: bool = False,
    context: Context | None = None,
) -> None:
    """Rotary positions (arXiv:2104.09864) in the form of Llama, in place.

    With a = position * theta^(-2i/R), or position * frequencies[i], for i < R/2::

        x[i], x[i + R/2] = scale * (x[i] cos a - x[i + R/2] sin a),  scale * (x[i + R/2] cos a + x[i] sin a)

    Parameters
    ----------
    x : array of float32, [B, S, heads, D]
        Changed; may be part of a wider array, such as the queries that lie beside keys and values, or
        ``x[..., -R:]``, the last numbers of each head (arXiv:2405.04434).
    positions : array of int64, [B, S], optional
        Of each token, 0 to 2^31 - 1; without them token s of a sequence is at ``s + first_position``.
    theta : float
        At least 1.
    rotary_size : int, optional
        R, even: the first R numbers of a head turn, the others stay.  By default all of them turn.
    frequencies : array of float64, [R / 2], optional
        Radians per position, -2^20 to 2^20, in place of theta's (arXiv:2309.00071).
    scale : float
        Times cos and sin.
    inverse : bool
        Turn back, still times scale: the backward on gradients.
    context : Context, optional
        Whose threads compute; by default the shared one.

    Raises
    ------
    InvalidArgumentError
        R is odd, or a number is out of range.
    """
    n_sequences, length, n_heads, width = _shape("x", x)
    # Heads that are parts of wider ones are as far apart as these.
    head_size = x.strides[2] // 4 if n_heads > 1 and x.strides[2] > 0 else width
    place, stride = _rows("x", x, head_size, write=True)
    size = width if rotary_size is None else check.integer("rotary_size", rotary_size, ctypes.c_int64)
    if not 0 < size <= width:
        raise InvalidArgumentError(f"rotary_size = {size} is not in 1 ... {width}, the size of x's heads")
    if check.number("scale", scale) == 0:
        raise InvalidArgumentError("scale = 0 leaves nothing of x; 1 turns it alone")
    config = fields.filled(
        abi.moe_rotary_config,
        {"T": (n_sequences, length)},
        rotary_size=0 if size == head_size else size,
        frequencies=check.address("frequencies", frequencies, (size // 2,), dtype="f64"),
        scale=scale,
        n_tokens=n_sequences * length,
        n_heads=n_heads,
        head_size=head_size,
        stride=stride,
        sequence_length=length,
        first_position=first_position,
        positions=positions,
        theta=theta,
        inverse=inverse,
    )
    lib.moe_rotate(handle_of(context), ctypes.byref(config), place)


def attention(
    query: Floats,
    key: Floats,
    value: Floats,
    *,
    out: Floats | None = None,
    context: Context | None = None,
    **options: Any,
) -> tuple[Floats, Floats]:
    """Softmax(scale * Q K^T + masks) V of each head (arXiv:1706.03762), without the matrix of weights.

    Memory beside the arrays depends on neither S nor U (arXiv:2205.14135).

    Parameters
    ----------
    query : array of float32, [B, S, heads, D]
        May be part of a wider array, as key and value may.
    key : array of float32, [B, U, key heads, D]
        The key heads divide the heads; several heads share one where there are fewer (arXiv:2305.13245).
    value : array of float32, [B, U, key heads, Dv]
        Dv may be another size than D (arXiv:2405.04434).
    out : array of float32, [B, S, heads, Dv], optional
        Where the output goes.
    context : Context, optional
        Whose threads compute; by default the shared one.
    **options
        ``causal`` (bool): query s sees keys 0 to s + U - S.  ``scale`` (float): of q . k, by default
        1 / sqrt(D).  ``mask`` (bool, [S, U]): True = the query may see the key.  ``added_mask`` (float32,
        [S, U]): added to scale * q . k; minus infinity = never.  ``valid_mask`` (bool, [B, U]): False =
        padding.  ``window`` (int), with causal: a query sees so many keys up to its own place alone, padding
        not counted.  ``chunk`` (int), with causal: the keys alone whose place divided by chunk, rounded down,
        is that of its own.  ``sinks`` (float32, [heads]): one more logit of each head's softmax, which has no
        value and takes its share of the weight (arXiv:2309.17453); minus infinity = none.  ``dropout``
        (float), ``seed``, ``step`` (int): the probability that a weight is dropped, and what decides it.
        ``compute_dtype`` ("f32", "bf16"): bf16 rounds what is multiplied to bfloat16; arrays and sums are
        float32 in both (docs/numerics.md).

    Returns
    -------
    output : array of float32, [B, S, heads, Dv]
        0 for a query that sees no key.
    log_sums : array of float32, [B, heads, S]
        Logarithms of the softmax's divisors, for :func:`attention_backward`; minus infinity where no key is
        seen.

    Raises
    ------
    NotFiniteError
        A score is NaN or infinite; the text names sequence, head and query.  Or a sink is.
    InvalidArgumentError
        A number is out of range, or arrays overlap.
    """
    n_sequences, length, n_heads, _ = _shape("query", query)
    if out is None:
        out = np.empty((n_sequences, length, n_heads, _shape("value", value)[3]), np.float32)
    log_sums = np.empty((n_sequences, n_heads, length), np.float32)
    config, places = _attention(query, key, value, options, {"out": (out, True)})
    handle = handle_of(context)
    lib.moe_attention_forward(handle, ctypes.byref(config), *places, log_sums.ctypes.data)
    return out, log_sums


def attention_backward(
    query: Floats,
    key: Floats,
    value: Floats,
    output: Floats,
    log_sums: Floats,
    doutput: Floats,
    *,
    into: tuple[Floats, Floats, Floats] | None = None,
    dsinks: Floats | None = None,
    context: Context | None = None,
    **options: Any,
) -> tuple[Floats, Floats, Floats]:
    """Return the gradients of :func:`attention` in query, key and value.

    Parameters
    ----------
    query, key, value
        As they went into :func:`attention`.
    output, log_sums
        What it returned.
    doutput : array of float32, [B, S, heads, Dv]
        Gradient of the output.
    into : three arrays of float32, optional
        Where the gradients go, with the strides of query, key and value.
    dsinks : array of float32, [heads], optional
        The gradient of the sinks is added to it.
    context : Context, optional
        Whose threads compute; by default the shared one.
    **options
        As in the forward.

    Raises
    ------
    InvalidArgumentError
        A number is out of range, or arrays overlap.
    """
    if into is None:
        into = (_like("query", query), _like("key", key), _like("value", value))
    n_sequences, length, n_heads, _ = _shape("query", query)
    more = {"out": (output, False), "doutput": (doutput, False)}
    config, places = _attention(query, key, value, options, more)
    for name, gradient, of in zip(("query", "key", "value"), into, (query, key, value)):  # noqa: B905
        if _shape(f"d{name}", gradient) != of.shape:
            raise InvalidArgumentError(f"d{name}: expected shape {of.shape}, got {gradient.shape}")
        place, stride = _rows(f"d{name}", gradient, write=True)
        places.append(place)
        if stride != getattr(config, f"{name}_stride"):
            wanted = getattr(config, f"{name}_stride")
            raise InvalidArgumentError(f"d{name}: rows lie {stride} floats apart, but {wanted} in {name}")
    sums = check.address("log_sums", log_sums, (n_sequences, n_heads, length))
    gradients = abi.moe_attention_gradients(
        doutput=places[4],
        dquery=places[5],
        dkey=places[6],
        dvalue=places[7],
        dsinks=check.address("dsinks", dsinks, (n_heads,), write=True),
    )
    lib.moe_attention_backward(
        handle_of(context), ctypes.byref(config), *places[:4], sums, ctypes.byref(gradients)
    )
    return into


def _attention(
    query: Floats, key: Floats, value: Floats, options: dict[str, Any], more: dict[str, tuple[Floats, bool]]
) -> tuple[abi.moe_attention_config, list[int]]:
    """Return the struct of a call and where the arrays are: query, key, value, then the others."""
    n_sequences, n_queries, n_heads, head_size = _shape("query", query)
    _, n_keys, n_kv_heads, _ = _shape("key", key)
    value_size = _shape("value", value)[3]
    for name, array, size in (("key", key, head_size), ("value", value, value_size)):
        wanted = (n_sequences, n_keys, n_kv_heads, size)
        if array.shape != wanted:
            raise InvalidArgumentError(f"{name}: expected shape {wanted}, got {array.shape}")
    given: dict[str, Any] = {"causal": False, "scale": 0.0, "dropout": 0.0, "seed": 0, "step": 0}
    given.update({"window": 0, "chunk": 0, "compute_dtype": "f32"})
    given.update(dict.fromkeys(("mask", "added_mask", "valid_mask", "sinks")))
    require_known("attention", options, [*given, "out", "context"])
    given.update(options)
    given["sinks"] = check.address("sinks", given["sinks"], (n_heads,))
    config = fields.filled(
        abi.moe_attention_config,
        {"B": (n_sequences,), "S": (n_queries,), "U": (n_keys,)},
        n_sequences=n_sequences,
        n_queries=n_queries,
        n_keys=n_keys,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_size=head_size,
        value_size=value_size,
        **given,
    )
    places = []
    for name, array in (("query", query), ("key", key), ("value", value)):
        place, stride = _rows(name, array)
        places.append(place)
        setattr(config, f"{name}_stride", stride)
    for name, (array, write) in more.items():
        if _shape(name, array) != (wanted := (n_sequences, n_queries, n_heads, value_size)):
            raise InvalidArgumentError(f"{name}: expected shape {wanted}, got {array.shape}")
        place, stride = _rows(name, array, write=write)
        places.append(place)
        if config.output_stride not in (0, stride):
            raise InvalidArgumentError(
                f"{name}: rows lie {stride} floats apart, but {config.output_stride} in out"
            )
        config.output_stride = stride
    return config, places


def _shape(name: str, value: Any) -> tuple[int, int, int, int]:
    """Shape [B, tokens, heads, D] of an array that has one."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 4:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ArgumentTypeError(
            f"{name}: expected a numpy array of float32, [B, tokens, heads, D], got {found}"
        )
    if 0 in value.shape:
        raise InvalidArgumentError(f"{name}: shape {value.shape} has no elements")
    b, s, h, d = value.shape
    return b, s, h, d


def _rows(name: str, value: Floats, head_size: int | None = None, *, write: bool = False) -> tuple[int, int]:
    """Address of an array whose tokens are rows, and how many floats apart these are; heads: by default D."""
    b, s, h, d = value.shape
    d = head_size or d
    stride = h * d
    if s > 1:
        stride = value.strides[1] // 4
    elif b > 1:
        stride = value.strides[0] // 4
    wanted = (4 * s * stride, 4 * stride, 4 * d, 4)
    # numpy says nothing about the strides of axes with one element.
    fits = all(n == 1 or a == w for n, a, w in zip(value.shape, value.strides, wanted))  # noqa: B905
    if not fits or stride < h * d or not value.flags.aligned:
        raise InvalidArgumentError(
            f"{name}: tokens must be rows at equal distances; use numpy.ascontiguousarray({name})"
        )
    if write and not value.flags.writeable:
        raise InvalidArgumentError(f"{name}: expected an array that may be written to; use {name}.copy()")
    return int(value.ctypes.data), stride


def _like(name: str, value: Floats) -> Floats:
    """Return an empty array with the shape and the rows of this one."""
    b, s, h, d = value.shape
    empty = np.empty((b, s, _rows(name, value)[1]), np.float32)
    return empty[:, :, : h * d].reshape(b, s, h, d)
