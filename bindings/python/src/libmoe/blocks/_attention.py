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
    inverse: bool = False,
    context: Context | None = None,
) -> None:
    """Rotary positions (arXiv:2104.09864) in the form of Llama, in place.

    With a = position * theta^(-2i/D), for i < D/2::

        x[i], x[i + D/2] = x[i] cos a - x[i + D/2] sin a,  x[i + D/2] cos a + x[i] sin a

    Parameters
    ----------
    x : array of float32, [B, S, heads, D]
        Changed; may be part of a wider array, such as the queries that lie beside keys and values.
    positions : array of int64, [B, S], optional
        Of each token, 0 to 2^31 - 1; without them token s of a sequence is at ``s + first_position``.
    theta : float
        At least 1.
    inverse : bool
        Turn back: the backward on gradients.
    context : Context, optional
        Whose threads compute; by default the shared one.

    Raises
    ------
    InvalidArgumentError
        D is odd, or a number is out of range.
    """
    n_sequences, length, n_heads, head_size = _shape("x", x)
    place, stride = _rows("x", x, write=True)
    config = fields.filled(
        abi.moe_rotary_config,
        {"T": (n_sequences, length)},
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
    key, value : array of float32, [B, U, key heads, D]
        The key heads divide the heads; several heads share one where there are fewer (arXiv:2305.13245).
    out : array of float32, [B, S, heads, D], optional
        Where the output goes.
    context : Context, optional
        Whose threads compute; by default the shared one.
    **options
        ``causal`` (bool): query s sees keys 0 to s + U - S.  ``scale`` (float): of q . k, by default
        1 / sqrt(D).  ``mask`` (bool, [S, U]): True = the query may see the key.  ``added_mask`` (float32,
        [S, U]): added to scale * q . k; minus infinity = never.  ``valid_mask`` (bool, [B, U]): False =
        padding.  ``dropout`` (float), ``seed``, ``step`` (int): the probability that a weight is dropped, and
        what decides it.

    Returns
    -------
    output : array of float32, [B, S, heads, D]
        0 for a query that sees no key.
    log_sums : array of float32, [B, heads, S]
        Logarithms of the softmax's divisors, for :func:`attention_backward`.

    Raises
    ------
    NotFiniteError
        A score is NaN or infinite; the text names sequence, head and query.
    InvalidArgumentError
        A number is out of range, or arrays overlap.
    """
    n_sequences, length, n_heads, _ = shape = _shape("query", query)
    if out is None:
        out = np.empty(shape, np.float32)
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
    doutput : array of float32, [B, S, heads, D]
        Gradient of the output.
    into : three arrays of float32, optional
        Where the gradients go, with the strides of query, key and value.
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
        doutput=places[4], dquery=places[5], dkey=places[6], dvalue=places[7]
    )
    lib.moe_attention_backward(
        handle_of(context), ctypes.byref(config), *places[:4], sums, ctypes.byref(gradients)
    )
    return into


def _attention(
    query: Floats, key: Floats, value: Floats, options: dict[str, Any], more: dict[str, tuple[Floats, bool]]
) -> tuple[abi.moe_attention_config, list[int]]:
    """Return the struct of a call and where the arrays are: query, key, value, then the others."""
    n_sequences, n_queries, n_heads, head_size = shape = _shape("query", query)
    _, n_keys, n_kv_heads, _ = _shape("key", key)
    for name, array in (("key", key), ("value", value)):
        if array.shape != (n_sequences, n_keys, n_kv_heads, head_size):
            wanted = (n_sequences, n_keys, n_kv_heads, head_size)
            raise InvalidArgumentError(f"{name}: expected shape {wanted}, got {array.shape}")
    given: dict[str, Any] = {"causal": False, "scale": 0.0, "dropout": 0.0, "seed": 0, "step": 0}
    given.update(dict.fromkeys(("mask", "added_mask", "valid_mask")))
    require_known("attention", options, [*given, "out", "context"])
    given.update(options)
    config = fields.filled(
        abi.moe_attention_config,
        {"B": (n_sequences,), "S": (n_queries,), "U": (n_keys,)},
        n_sequences=n_sequences,
        n_queries=n_queries,
        n_keys=n_keys,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_size=head_size,
        **given,
    )
    places = []
    for name, array in (("query", query), ("key", key), ("value", value)):
        place, stride = _rows(name, array)
        places.append(place)
        setattr(config, f"{name}_stride", stride)
    for name, (array, write) in more.items():
        if _shape(name, array) != shape:
            raise InvalidArgumentError(f"{name}: expected shape {shape}, got {array.shape}")
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


def _rows(name: str, value: Floats, *, write: bool = False) -> tuple[int, int]:
    """Address of an array whose tokens are rows, and how many floats apart these are."""
    b, s, h, d = value.shape
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
