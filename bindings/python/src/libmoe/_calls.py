"""A layer's calls: forward, backward and their memory, and their options as the library reads them."""

from __future__ import annotations

import ctypes
import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import words
from ._keywords import keywords, require_known
from ._native import abi, check, fields
from ._native.check import Array, FloatArray
from ._native.library import Handle, lib
from ._native.reports import Report
from ._weights import Weights
from .errors import BadStateError
from .memory import Plan, planned
from .optim import Optimizer
from .report import Blank, Output, n_sequences
from .routing import Routing
from .tape import Tape


@keywords
class Calls(Weights):
    """What a layer computes."""

    _io_dtype: str
    _losses: list[str]  # the names of its losses

    def __call__(self, x: Array) -> Array:
        """Return y = layer(x), for evaluation: a new array with x's type and shape, [..., H].

        It raises what :meth:`forward` does.
        """
        n_tokens = check.tokens("x", x, self.hidden_size, self._io_dtype)
        return self._forward(x, n_tokens, None, None, None, None)

    def forward(
        self,
        x: Array,
        *,
        tape: Tape | None = None,
        training: bool = False,
        step: int = 0,
        out: Array | None = None,
        valid_mask: NDArray[np.bool_] | NDArray[np.uint8] | None = None,
        token_ids: NDArray[np.int64] | None = None,
        expert_indices: NDArray[np.int32] | None = None,
        expert_weights: FloatArray | None = None,
        sequence_length: int = 0,
        global_counts: NDArray[np.int64] | None = None,
        record: Routing | None = None,
        replay: Routing | None = None,
        memory_limit: int | str = 0,
        tape_policy: words.TapePolicy = "auto",
        loss_mask: NDArray[np.bool_] | NDArray[np.uint8] | None = None,
        noise: FloatArray | None = None,
        jitter: FloatArray | None = None,
        second: FloatArray | None = None,
        chunk_tokens: int = 0,
    ) -> Output:
        """Return y = layer(x) with its losses and statistics.

        Parameters
        ----------
        x : ndarray of io_dtype, [..., H]
            Any leading dimensions; their product is T.
        tape : Tape, optional
            Filled for :meth:`backward`; it holds x, which must not change until then.
        training : bool
            Whether dropout and exploration act.
        step : int
            Which training step this is, 0 to 2^56 - 1: random numbers differ from step to step, and only by
            this number.
        out : ndarray of x's type and shape, optional
            Memory for y; must overlap neither x nor a parameter.
        valid_mask : ndarray of bool or uint8, [...], optional
            1 for real tokens.  No expert sees the others: their y and dx are 0, and they count nowhere.
        token_ids : ndarray of int64, [...], optional
            Of router ``"hash"``, below its vocabulary_size.
        expert_indices : ndarray of int32, [..., K], optional
            These experts are used, -1 for none, and nothing is dropped.  Required by router ``"external"``.
        expert_weights : ndarray of float32, [..., K], optional
            With expert_indices: their weights, in place of the router's.  Required by router ``"external"``.
        sequence_length : int
            Tokens of each sequence, a divisor of T; 0 means T.
        global_counts : ndarray of int64, [E], optional
            Of the loss ``"megatron_global"``: choices counted elsewhere, to which this call's are added.
        record : Routing, optional
            Gets the experts that each token used.
        replay : Routing, optional
            In place of expert_indices, the record of a call with as many tokens and choices.
        memory_limit : int or str
            Bytes (or ``"2 GB"``) of scratch and tape for this call and its backward; 0: the context's limit.
            The call is divided into chunks of tokens to keep to it, which changes no bit of the result.
        tape_policy : {"auto", "full", "lean"}
            Whether the tape keeps the experts' pre-activations, or backward computes them again.
        loss_mask : ndarray of bool or uint8, [...], optional
            1 for tokens that count in losses and in the report, in place of valid_mask: a real token with 0
            is computed all the same, and padding with 1 is routed for the losses alone.
        noise : ndarray of float32, [..., E], optional
            In training, in place of the normal numbers that ``noise`` draws; with ``noise="none"`` it is
            added to the logits as it is.
        jitter : ndarray of float32, [..., H], optional
            In training, u in x (1 + jitter u), in place of numbers drawn from -1 to 1.
        second : ndarray of float32, [...], optional
            In training, with ``random_second``: a second choice of weight w is kept where 2 w is at least
            this number, in place of one drawn from 0 to 1.
        chunk_tokens : int
            Tokens that experts compute at once, rounded up to a multiple of 256; 0 means as planned.  It
            changes no bit that a memory limit would not.

        Returns
        -------
        Output
            ``y``, of x's shape, which is ``out`` where that is given, and the ``report``.

        Raises
        ------
        TypeError, ValueError
            An array has the wrong type, shape or layout, or overlaps another; or what the router needs is
            missing.
        BadStateError
            The tape is another layer's, or something is closed.
        NotFiniteError
            A router logit is NaN or plus infinity, or too few experts are open; the text names the token.
        OutOfMemoryError
            There is no memory for the call.

        After any of these the tape is empty.
        """
        given = dict(locals())  # all arguments by name, as long as nothing else is there
        n_tokens = check.tokens("x", x, self.hidden_size, self._io_dtype)
        options = self._options(x.shape[:-1], given)
        listed = self.n_experts if self._config.router == abi.ROUTER["expert_choice"] else self.top_k
        sizes = {"n_experts": self.n_experts, "n_tokens": n_tokens, "choices": listed}
        if sequence_length:
            sizes["n_sequences"] = n_sequences(n_tokens, sequence_length)
        blank = Blank(self._losses, **sizes)
        y = self._forward(x, n_tokens, options, out, tape, blank.c_report)
        return Output(y, Report(**blank.filled()))

    def _forward(
        self,
        x: Array,
        n_tokens: int,
        options: abi.moe_forward_options | None,
        out: Array | None,
        tape: Tape | None,
        report: abi.moe_report | None,
    ) -> Array:
        if tape is not None:
            check.instance("tape", tape, Tape, "layer.tape()")
        y = np.empty_like(x) if out is None else self._tokens("out", out, x.shape, write=True)
        if tape is not None:
            tape._x = None  # a forward that fails leaves the tape empty
        lib.moe_layer_forward(
            self._handle,
            x.ctypes.data,
            n_tokens,
            options,
            y.ctypes.data,
            None if tape is None else tape._handle,
            report,
        )
        if tape is not None:
            tape._x = x
            length = 0 if options is None else options.sequence_length
            tape._sequences = n_sequences(n_tokens, length)
        return y

    def _tokens(self, name: str, value: Any, shape: tuple[int, ...], *, write: bool = False) -> Any:
        return check.array(name, value, shape, write=write, dtype=self._io_dtype)

    def _shapes(self, every: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return what the letters of arrays' shapes stand for in a call of tokens [every]."""
        return {"T": every, "K": (self.top_k,), "E": (self.n_experts,), "H": (self.hidden_size,)}

    def _options(self, every: tuple[int, ...], given: dict[str, Any]) -> abi.moe_forward_options:
        # What is left out needs no look: most calls give nothing.
        known = {
            name: given[name]
            for name in fields.types(abi.moe_forward_options)
            if name in given and given[name] is not _DEFAULTS.get(name, _ABSENT)
        }
        return forward_options(self._shapes(every), known)

    def plan(self, n_tokens: int, *, taped: bool = True, **options: Any) -> Plan:
        """Return the memory of a forward and backward of n_tokens tokens; nothing is allocated.

        Parameters
        ----------
        n_tokens : int
            T.
        taped : bool
            Whether forward will have a tape.
        **options
            As of :meth:`forward`: memory_limit, tape_policy and chunk_tokens, and what else changes sizes
            (training, masks, sequence_length, expert_indices, noise, jitter).

        Raises
        ------
        InvalidArgumentError
            The limit is too small; the text says what would do.
        """
        n_tokens = check.integer("n_tokens", n_tokens, ctypes.c_int64)
        left_out = ("self", "x", "tape", "out")
        known = [name for name in inspect.signature(Calls.forward).parameters if name not in left_out]
        require_known("Layer.plan", options, known)
        return planned(self._handle, n_tokens, taped, self._options((n_tokens,), options))

    def tape(self) -> Tape:
        """Return an empty tape for :meth:`forward` to fill; one serves step after step."""
        return Tape(self)

    def backward(
        self,
        tape: Tape,
        dy: Array,
        *,
        d_aux_loss: float = 1.0,
        need_dx: bool = True,
        out: Array | None = None,
        d_mean_probability: FloatArray | None = None,
        d_expert_weights: FloatArray | None = None,
        d_sequence_probability: FloatArray | None = None,
        optimizer: Optimizer | None = None,
        clip_factor: float = 0.0,
        frozen_experts: bool = False,
    ) -> Array | None:
        """Add the gradients of L = <dy, y> + d_aux_loss * aux_loss to those of the parameters.

        Parameters
        ----------
        tape : Tape
            Filled by the forward that gave y; the parameters must be as they were then.
        dy : ndarray of y's type and shape
            Gradient of the objective with respect to y.
        d_aux_loss : float
            Gradient of the objective with respect to ``report.aux_loss``: 1 when it is simply added.
        need_dx : bool
            False saves the time of dx, and returns None.
        out : ndarray of x's type and shape, optional
            Memory for dx; must overlap neither x nor dy.
        d_mean_probability : ndarray of float32, [E], optional
            Gradient of the objective with respect to ``report.mean_probability``, for losses of your own and
            :func:`pooled_balance_loss`.
        d_expert_weights : ndarray of float32, [..., K], optional
            Memory for the gradient with respect to the expert_weights that forward was given; overwritten.
        d_sequence_probability : ndarray of float32, [B, E], optional
            Gradient of the objective with respect to ``report.sequence_probability``.
        optimizer : Optimizer, optional
            Made from ``layer.parameters`` of a layer without ``"expert_gradients"``, see its
            ``unallocated``: the call is :meth:`zero_grad`, backward and a step in one, with the same bits,
            and has the gradient of one expert at a time.  Afterwards the tape is of no more use.
        clip_factor : float
            With an optimizer: what every gradient is multiplied by, above 0; 0, the default, is 1.
        frozen_experts : bool
            Whether gradients of the experts' matrices and their biases are left out, which saves a third of
            the products; they need no memory then.

        Returns
        -------
        ndarray of x's type and shape, or None
            dx, the gradient with respect to x, which is ``out`` where that is given.

        Raises
        ------
        TypeError, ValueError
            An array has the wrong type, shape or layout, or overlaps another; d_aux_loss is not finite; or
            d_expert_weights is given, and forward was not given weights.
        BadStateError
            The tape is empty (also after a backward with an optimizer) or another layer's, the layer is
            inference_only, or something is closed; the layer has no memory for some gradient and there is no
            optimizer, or has it for all and there is one.
        OutOfMemoryError
            There is no memory for the call.

        After an exception of a signal handler, such as KeyboardInterrupt, the gradients are partly added:
        call :meth:`zero_grad`.  With an optimizer it may also be that the step has been made: signals are
        looked after until the first expert is stepped, and again after the last.
        """
        x = check.instance("tape", tape, Tape, "layer.tape()")._x
        if x is None:
            raise BadStateError("tape: is empty; run layer.forward(x, tape=tape) first")
        dy = self._tokens("dy", dy, x.shape)
        dx = None
        if out is not None:
            dx = self._tokens("out", out, x.shape, write=True)
        elif check.flag("need_dx", need_dx):
            dx = np.empty_like(x)
        options = backward_options(
            {**self._shapes(x.shape[:-1]), "B": (tape._sequences,)},
            optimizer=optimizer,
            clip_factor=self._factor(optimizer, clip_factor),
            frozen_experts=frozen_experts,
            d_mean_probability=d_mean_probability,
            d_expert_weights=d_expert_weights,
            d_sequence_probability=d_sequence_probability,
        )
        lib.moe_layer_backward(
            self._handle,
            tape._handle,
            x.ctypes.data,
            dy.ctypes.data,
            check.number("d_aux_loss", d_aux_loss),
            None if dx is None else dx.ctypes.data,
            options,
        )
        if optimizer is not None:
            tape._x = None  # parameters have moved
        return dx

    def _factor(self, optimizer: Optimizer | None, clip_factor: float) -> float:
        """Return what gradients are multiplied by, where this layer's parameters are the optimiser's."""
        if not isinstance(optimizer, Optimizer):
            return clip_factor
        return optimizer._for_backward_of(self.parameters.values(), clip_factor)


_ABSENT = object()
_DEFAULTS = {name: p.default for name, p in inspect.signature(Calls.forward).parameters.items()}


def forward_options(shapes: fields.Shapes, given: dict[str, Any]) -> abi.moe_forward_options:
    """Check what a forward is given besides x and memory, all of it by name."""
    handles = {name: _handle(name, given.get(name)) for name in ("record", "replay")}
    pointers = {name: handle and handle._as_parameter_ for name, handle in handles.items()}
    options = fields.filled(abi.moe_forward_options, shapes, **{**given, **pointers})
    options.handles = tuple(handles.values())  # which nobody frees while the library uses them
    return options


def backward_options(shapes: fields.Shapes, **given: Any) -> abi.moe_backward_options:
    """Check what a backward is given besides dy and memory."""
    optimizer = given["optimizer"]
    if optimizer is not None:
        check.instance("optimizer", optimizer, Optimizer, "one such as libmoe.AdamW")
    handle = None if optimizer is None else optimizer._handle
    given["optimizer"] = handle and handle._as_parameter_
    options = fields.filled(abi.moe_backward_options, shapes, **given)
    options.handles = (handle,)
    return options


def _handle(name: str, routing: Routing | None) -> Handle | None:
    """Return the handle of a record, to be held while the library uses it."""
    if routing is not None:
        check.instance(name, routing, Routing, "libmoe.Routing()")
    return None if routing is None else routing._handle
