"""Experts alone, over the caller's routing and the caller's weights: functions that keep nothing."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np

from . import _by_call, words
from ._by_call import Options
from ._keywords import keywords
from ._native import abi, check, fields
from ._native.library import Native, lib
from ._native.memory import Memory, row_major, shown
from ._native.numbers import instance
from .context import Context, handle_of
from .errors import InvalidArgumentError
from .expert_ranks import ExpertRanks
from .expert_weights import ExpertGradients, ExpertTensors, ExpertWeights
from .memory import Plan

_TOKENS = ("f32", "bf16")
_ROUTING = ("f32", "bf16", "f16")
FORMS = {word: number for word, number in abi.PREPARED.items() if word != "none"}
_INDICES = ("i64", "i32")


class ExpertsOutput(NamedTuple):
    """What :func:`experts_forward` returns.

    Attributes
    ----------
    y : array, [..., H]
        The weighted sum of what each token's experts put out; None where ``y=False``.
    saved : array of uint8, optional
        Bytes for :func:`experts_backward`; a copy of them is as good.
    rows : array, [..., K, H], optional
        What each choice's expert put out, before it is weighted.
    """

    y: Any
    saved: Any = None
    rows: Any = None


@keywords
class PreparedExperts(Native):
    """Experts' weights packed once, for many calls of :func:`experts_forward`: see :func:`experts_prepare`.

    Any number of threads may use it at the same time.
    """

    def __init__(
        self, weights: ExpertWeights, form: words.Prepared = "f32", *, context: Context | None = None
    ) -> None:
        own = _weights(weights)
        if own.kind not in ("gated", "mlp", "linear"):
            raise InvalidArgumentError(
                f"weights: {own.kind} experts have no matrices that could be packed; call without prepared"
            )
        number = check.choice("form", form, FORMS)
        if form == "f32" and own.dtype == "bf16":
            raise InvalidArgumentError("form = 'f32', but the weights are bfloat16; take form='bf16'")
        self._open_handle = _by_call.packed(handle_of(context), own._config(Options()), number)
        self._told_by = f"{own.n_experts} {own.kind} experts, {form}, {self.nbytes} bytes"

    _instead = "prepare the weights again with libmoe.experts_prepare"

    def _told(self) -> str:
        return self._told_by

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        size = ctypes.c_size_t()
        lib.moe_experts_prepared_size(self._handle, ctypes.byref(size))
        return size.value


@keywords
def experts_plan(
    weights: ExpertWeights,
    n_tokens: int,
    top_k: int,
    *,
    expert_indices: Any = None,
    gradients: ExpertGradients | ExpertWeights | None = None,
    prepared: PreparedExperts | None = None,
    saves: bool = True,
    io_dtype: words.IoDType = "f32",
    weight_on_input: bool = False,
    ranks: ExpertRanks | None = None,
    context: Context | None = None,
) -> Plan:
    """Return what a forward and the backward after it take, in bytes; ``tape_bytes`` is what forward saves.

    Parameters
    ----------
    weights : ExpertWeights
        As for the forward.
    n_tokens, top_k : int
        T and K.
    expert_indices : array of int32 or int64, [T, K], optional
        The choices; without them the plan is for T * K choices that all have an expert.  Over ranks they are
        needed.
    gradients : ExpertGradients, optional
        As for the backward.
    prepared : PreparedExperts, optional
        As for the forward.
    saves : bool
        Whether forward saves for the backward.
    io_dtype : {"f32", "bf16"}
        Of x and y.
    weight_on_input : bool
        As for the forward.
    ranks : ExpertRanks, optional
        As for the forward: all ranks plan together.  Where one of them saves, all have ``tape_bytes``.

    Raises
    ------
    InvalidArgumentError
        A number is out of its range, or a part of the weights is missing.
    """
    own = _weights(weights)
    config = own._config(Options(weight_on_input=weight_on_input, io_dtype=io_dtype))
    size, at, dtype = (check.count("n_tokens", n_tokens), check.count("top_k", top_k)), None, "i64"
    if expert_indices is not None:
        indices = row_major("expert_indices", expert_indices, size, _INDICES)
        at, dtype = indices.address, indices.dtype
    call = _by_call.call(*size, at, None, abi.DTYPE[dtype], abi.DTYPE["f32"], _packed(prepared), _of(ranks))
    wanted = _by_call.gradients(None, None, _parts(gradients), overwrite=False)
    plan = _by_call.planned(handle_of(context), config, call, wanted, saves=check.flag("saves", saves))
    return Plan(**{name: fields.from_c(plan, name) for name in fields.types(abi.moe_plan)})


@keywords
def experts_forward(
    x: Any,
    expert_indices: Any,
    expert_weights: Any,
    weights: ExpertWeights,
    *,
    activation: words.Activation | None = None,
    glu_limit: float = 0,
    glu_alpha: float = 0,
    glu_offset: float = 0,
    weight_on_input: bool = False,
    prepared: PreparedExperts | None = None,
    y: Any = True,
    saved: Any = False,
    rows: Any = False,
    ranks: ExpertRanks | None = None,
    context: Context | None = None,
) -> ExpertsOutput:
    """Return y[t] = sum over k of expert_weights[t, k] * expert(expert_indices[t, k])(x[t]).

    The bits are those of a :class:`Layer` with router ``"external"``, wherever and however the weights lie.
    Arrays are numpy's, torch's, or a :class:`Memory`, as in :class:`ExpertWeights`.

    Parameters
    ----------
    x : array of float32 or bfloat16, [..., H]
    expert_indices : array of int32 or int64, [..., K]
        A number that is no expert's is none: it is skipped.
    expert_weights : array of float32, bfloat16 or float16, [..., K]
        The routing weights.
    weights : ExpertWeights
        With ``prepared`` its matrices may be missing (:meth:`ExpertWeights.without_matrices`).
    activation : str, optional
        One of a :class:`Layer`'s; by default ``"silu"`` of gated experts and ``"gelu"`` of MLPs.
    glu_limit, glu_alpha, glu_offset : float
        Clamps of gated experts, as of a :class:`Layer`.
    weight_on_input : bool
        Whether the routing weights multiply what experts read.
    prepared : PreparedExperts, optional
        Used in place of the matrices.  Of few bits (int8, int4, ...) they are frozen weights to train over:
        what is saved is of experts with the packed values, and tokens stay float32 then, with ``_a8`` and
        ``_a16`` too.
    y : array or bool
        Where the result goes, of x's type; True: a new array of numpy; False: none is wanted.
    saved : array of uint8 or bool
        Where bytes for :func:`experts_backward` go, at least :func:`experts_plan`'s ``tape_bytes``; True: a
        new array of numpy; False: nothing is saved.
    rows : array or bool
        Where each choice's output goes, [..., K, H] of x's type, 0 where there is none; likewise.
    ranks : ExpertRanks, optional
        Over which the experts are spread: all ranks call together, each with tokens of its own, and
        ``expert_indices`` are numbers among the experts of all, ``weights`` those of this rank.

    Raises
    ------
    InvalidArgumentError
        Shapes, types or strides do not belong together.
    BadStateError
        The weights have changed since they were prepared, or something is saved with float32 weights that are
        prepared as bfloat16.

    Examples
    --------
    >>> import libmoe, numpy
    >>> gate_up, down = numpy.ones((4, 64, 16), numpy.float32), numpy.ones((4, 16, 32), numpy.float32)
    >>> weights = libmoe.ExpertWeights(gate_up=gate_up, down=down)
    >>> x, indices = numpy.ones((5, 16), numpy.float32), numpy.zeros((5, 2), numpy.int64)
    >>> libmoe.experts_forward(x, indices, numpy.ones((5, 2), numpy.float32), weights).y.shape
    (5, 16)
    """
    own = _weights(weights)
    tokens = _tokens(x, own)
    config = own._config(Options(activation, glu_limit, glu_alpha, glu_offset, weight_on_input, tokens.dtype))
    call, routing = _call(tokens, expert_indices, expert_weights, prepared, ranks)
    parent, shape = handle_of(context), tokens.shape
    y, y_at = _output("y", y, x, tokens, shape)
    rows, rows_at = _output("rows", rows, x, tokens, (*routing.shape, shape[-1]))
    if saved is True:
        saved = np.empty(_by_call.planned(parent, config, call, None, saves=True).tape_bytes, np.uint8)
    elif saved is False:
        saved = None
    address, size = _bytes(saved, write=True)
    lib.moe_experts_forward(parent, config, call, tokens.address, y_at, address, size, rows_at)
    return ExpertsOutput(y, saved, rows)


@keywords
def experts_backward(
    dy: Any,
    x: Any,
    expert_indices: Any,
    expert_weights: Any,
    weights: ExpertWeights,
    *,
    activation: words.Activation | None = None,
    glu_limit: float = 0,
    glu_alpha: float = 0,
    glu_offset: float = 0,
    weight_on_input: bool = False,
    prepared: PreparedExperts | None = None,
    saved: Any = None,
    dx: Any = True,
    d_expert_weights: Any = True,
    gradients: ExpertGradients | ExpertWeights | None = None,
    overwrite: bool = False,
    ranks: ExpertRanks | None = None,
    context: Context | None = None,
) -> tuple[Any, Any]:
    """Return the gradients of <dy, y> in x and in the routing weights, and write those of the weights.

    Parameters
    ----------
    dy : array, [..., H]
        Of x's type.
    x, expert_indices, expert_weights, weights, activation, glu_limit, glu_alpha, glu_offset, weight_on_input
        As in :func:`experts_forward`.
    prepared : PreparedExperts, optional
        As in :func:`experts_forward`.  Over weights of few bits x, the routing weights and biases have
        gradients, those of experts with the packed values.
    saved : array of uint8, optional
        What forward saved, or a copy; without it that is computed again, to the same bits.
    dx : array or bool
        Where the gradient in x goes, of x's type; True: a new array of numpy; False: it is not wanted.
    d_expert_weights : array or bool
        The same for the routing weights, of their type; 0 where there is no expert.
    gradients : ExpertGradients, optional
        Where the weights' gradients go; parts that are left out are not computed.  Strides and types are
        their own.  An :class:`ExpertWeights` will do where all parts are wanted.
    overwrite : bool
        Whether gradients are overwritten, with 0 for experts without a token, or added to what is there.
    ranks : ExpertRanks, optional
        As in :func:`experts_forward`.  ``saved`` is then given on all ranks or on none; what else is wanted
        may differ.

    Returns
    -------
    dx, d_expert_weights : array or None

    Raises
    ------
    InvalidArgumentError
        Shapes, types or strides do not belong together, or two arrays overlap.
    BadStateError
        ``saved`` is of another call.
    """
    own = _weights(weights)
    tokens = _tokens(x, own)
    config = own._config(Options(activation, glu_limit, glu_alpha, glu_offset, weight_on_input, tokens.dtype))
    call, routing = _call(tokens, expert_indices, expert_weights, prepared, ranks)
    shape = tokens.shape
    dy_at = row_major("dy", dy, shape, (tokens.dtype,)).address
    dx, dx_at = _output("dx", dx, x, tokens, shape)
    d_expert_weights, routing_at = _output(
        "d_expert_weights", d_expert_weights, expert_weights, routing, routing.shape
    )
    address, size = _bytes(saved, write=False)
    into = _parts(gradients)
    _require_known(gradients, own)
    wanted = _by_call.gradients(dx_at, routing_at, into, overwrite=check.flag("overwrite", overwrite))
    lib.moe_experts_backward(handle_of(context), config, call, address, size, tokens.address, dy_at, wanted)
    return dx, d_expert_weights


def experts_prepare(
    weights: ExpertWeights, form: words.Prepared = "f32", *, context: Context | None = None
) -> PreparedExperts:
    """Pack the matrices once, as the products read them: calls with few tokens gain most.

    Parameters
    ----------
    weights : ExpertWeights
        Nothing of it is kept.
    form : {"f32", "bf16", "int8", "int8_a8", "int4", "int4_a8", "int4_g64", ...}
        Of the packed copy, see :meth:`Layer.prepare`.  ``"bf16"`` of float32 weights is for forward alone;
        few bits of any are frozen weights, through which there is a backward.

    Raises
    ------
    InvalidArgumentError
        bfloat16 weights as float32, experts without matrices, or ``"q4_k"`` and ``"q6_k"`` of matrices whose
        inputs are no multiple of 256.
    BadStateError
        The context computes with OpenBLAS or the reference, which read no weights packed as f32 and bf16.
    NotFiniteError
        Few bits of a weight that is not finite, or too large for its scale.
    """
    return PreparedExperts(weights, form, context=context)


_PREPARE = "libmoe.experts_prepare(weights)"


def _weights(value: Any) -> ExpertWeights:
    weights: ExpertWeights = instance(
        "weights", value, ExpertWeights, "libmoe.ExpertWeights(gate_up=..., down=...)"
    )
    return weights


def _parts(gradients: Any) -> _by_call.Parts | None:
    if gradients is None:
        return None
    cure = "libmoe.ExpertGradients(gate_up=..., down=...)"
    return instance("gradients", gradients, (ExpertGradients, ExpertWeights), cure)._parts  # type: ignore[no-any-return]


def _require_known(gradients: ExpertTensors | None, weights: ExpertWeights) -> None:
    """Refuse gradients of parts that there are not, or of other sizes."""
    if gradients is None:
        return
    for name, place in gradients._places.items():
        if name not in weights._places:
            raise InvalidArgumentError(
                f"gradients: have {name}, which weights have not; give it in both, or in neither"
            )
        if place.shape != weights._places[name].shape:
            raise InvalidArgumentError(
                f"gradients: their {name} is {shown(place.shape)}, but that of weights "
                f"{shown(weights._places[name].shape)}; give both one shape"
            )


def _tokens(x: Any, weights: ExpertWeights) -> Memory:
    found = row_major("x", x, None, _TOKENS)
    if found.shape[-1:] != (weights.hidden_size,):
        raise InvalidArgumentError(
            f"x: expected shape [..., {weights.hidden_size}], got {shown(found.shape)}; "
            "its last axis must be hidden_size"
        )
    return found


def _packed(prepared: Any) -> Any:
    return None if prepared is None else instance("prepared", prepared, PreparedExperts, _PREPARE)._handle


def _of(ranks: Any) -> Any:
    cure = "libmoe.ExpertRanks(communicator, n_experts)"
    return None if ranks is None else instance("ranks", ranks, ExpertRanks, cure)._handle


def _call(
    tokens: Memory, expert_indices: Any, expert_weights: Any, prepared: Any, ranks: Any
) -> tuple[abi.moe_experts_call, Memory]:
    """Return the struct, and the routing weights [..., K]."""
    indices = row_major("expert_indices", expert_indices, None, _INDICES)
    shape = (*tokens.shape[:-1], *indices.shape[-1:])
    if indices.shape != shape or not shape or shape[-1] < 1:
        raise InvalidArgumentError(
            f"expert_indices: expected shape {shown((*tokens.shape[:-1], 'K'))} with a K of 1 or more, got "
            f"{shown(indices.shape)}"
        )
    routing = row_major("expert_weights", expert_weights, shape, _ROUTING)
    dtypes = abi.DTYPE[indices.dtype], abi.DTYPE[routing.dtype]
    n_tokens = math.prod(tokens.shape[:-1])
    handles = _packed(prepared), _of(ranks)
    return _by_call.call(n_tokens, shape[-1], indices.address, routing.address, *dtypes, *handles), routing


def _output(
    name: str, value: Any, like: Any, found: Memory, shape: tuple[int, ...]
) -> tuple[Any, int | None]:
    """Return an array for the library to write, and where it is; nothing where none is wanted."""
    if value is False or value is None:
        return None, None
    if value is True:
        if not isinstance(like, np.ndarray):
            raise InvalidArgumentError(f"{name}: give the array that the result goes to, or False")
        value = np.empty(shape, like.dtype)
    return value, row_major(name, value, shape, (found.dtype,), write=True).address


def _bytes(saved: Any, write: bool) -> tuple[int | None, int]:
    if saved is None:
        return None, 0
    found = row_major("saved", saved, None, ("u8",), write=write)
    return found.address, found.size
