"""The Mixture-of-Experts layer: parameters, forward and backward."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _abi, _check
from ._callbacks import raised
from ._check import Array, FloatArray
from ._library import Handle, Native, lib
from .context import Context, default_context
from .errors import BadStateError
from .parameter import Parameter


@dataclass(frozen=True)
class Report:
    """Losses and statistics of one forward call.  T tokens, E experts, K choices per token.

    Attributes
    ----------
    balance_loss : float
        E * sum over e of f_e P_e, where f_e is the share of the T tokens that chose expert e and P_e its mean
        probability (arXiv:2101.03961, over all K choices).  Perfect balance gives K.
    z_loss : float
        Mean over tokens of logsumexp(logits)^2 (arXiv:2202.08906).
    aux_loss : float
        balance_coef * balance_loss + z_coef * z_loss: add it to the objective.
    entropy : float
        Mean over tokens of the entropy of the router's softmax, in nats: 0 to ln E.
    tokens_per_expert : ndarray of int64, [E]
        How many tokens chose e; they sum to T * K.
    mean_probability : ndarray of float32, [E]
        P_e.
    expert_indices : ndarray of int32, [T, K]
        The chosen experts, best first.
    expert_weights : ndarray of float32, [T, K]
        Their weights in y.
    """

    balance_loss: float
    z_loss: float
    aux_loss: float
    entropy: float
    tokens_per_expert: NDArray[np.int64]
    mean_probability: FloatArray
    expert_indices: NDArray[np.int32]
    expert_weights: FloatArray


@dataclass(frozen=True)
class Output:
    """What forward gives: ``y`` of x's shape, and the ``report``."""

    y: Array
    report: Report


class Tape(Native):
    """What forward leaves for backward.  Made by :meth:`Layer.tape`, filled again at every forward.

    It also holds the x of that forward, which must not change until backward.  It serves one thread at a
    time, may outlive its layer, and keeps its memory, that of the largest call so far, until it is closed or
    dropped.
    """

    def __init__(self, layer: Layer) -> None:
        handle = layer._handle
        context = handle.keep["context"]
        self._open_handle = Handle(lib.moe_tape_create, lib.moe_tape_free, handle, keep={"context": context})

    @property
    def _x(self) -> Array | None:
        """The x of the forward that filled the tape; None while it is empty."""
        x: Array | None = self._handle.keep.get("x")
        return x

    @_x.setter
    def _x(self, x: Array | None) -> None:
        self._handle.keep["x"] = x


class _View:
    """Memory of a layer as numpy takes it: arrays made from it keep it, and it keeps the layer's handle."""

    def __init__(self, handle: Handle, address: int, shape: tuple[int, ...], dtype: type) -> None:
        self._handle = handle
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(dtype).str,
            "shape": shape,
            "data": (address, False),
        }


class Layer(Native):
    """A router and E experts, each a small network, of which every token x uses K.

    ::

        logits = x W_r^T + b_r                                  x [T, H]   logits [T, E]
        i, w = the K largest of them, and their weights         i, w [T, K]
        y[t] = sum over k of w[t, k] * expert(i[t, k])(x[t])    y [T, H]

        expert "mlp":     W_down act(W_up x + b_up) + b_down
        expert "gated":   W_down (act(W_gate x + b_gate) * (W_up x + b_up)) + b_down
        expert "linear":  W x + b

    Parameters
    ----------
    hidden_size, intermediate_size, n_experts, top_k : int
        H, I (the experts' width), E and K; each at least 1, and K at most E.  ``"linear"`` experts have no
        width: give 0, or H.
    router_weights : {"scores", "topk_softmax", "topk_sigmoid"}
        What the K chosen experts weigh: their scores among all E, or a softmax or the sigmoid of their
        logits.
    normalize : bool or {"sum", "none", "norm1", "norm2"}
        What the chosen values are divided by: their sum (True), nothing (False), the sum of their
        magnitudes, or the root of the sum of their squares.
    score : {"softmax", "sigmoid", "sqrt_softplus", "identity"}
        Scores of all experts, from the logits.
    selection_bias : bool
        Whether ``buffers["router.selection_bias"]`` is added for the choice alone (arXiv:2412.19437); see
        :meth:`update_selection_bias`.
    expert_scale : bool
        Whether there is a trained factor ``router.expert_scale`` for each expert's weight.
    n_groups, top_groups, group_top_m : int
        With n_groups, experts are chosen within the top_groups groups of neighbours whose group_top_m largest
        scores have the largest sum.
    group_mask : {"minus_infinity", "zero"}
        What takes the place of the other groups' scores.
    normalize_epsilon, epsilon_form : float, {"added", "least"}
        Added to the divisor, or the least it may be.
    routed_scale : float
        Multiplies all weights.
    router_bias, expert_bias : bool, optional
        Whether there are biases.  By default ``"gated"`` experts have none, all others and the router do.
    expert_kind : {"mlp", "gated", "linear"}
        ``"gated"`` with ``"silu"`` is SwiGLU, with ``"gelu"`` GeGLU.  ``"linear"`` experts have no activation
        and no dropout.
    activation : {"gelu", "gelu_tanh", "silu", "relu", "relu2", "quick_gelu"}
        act.  ``"relu2"`` is max(v, 0)^2, ``"quick_gelu"`` v sigmoid(1.702 v).
    inference_only : bool
        No memory for gradients, and no backward.
    dropout : float
        Share of the experts' inner activations that is dropped in training, in [0, 1).
    balance_coef, z_coef : float
        Weights of the two losses in ``report.aux_loss``, at least 0.
    seed : int
        Of the initial parameters and of dropout: the same seed gives the same bits.
    weight_dtype : {"f32", "bf16"}
        Of the experts' weight matrices.  ``"bf16"``: they, and the arrays of tokens they are multiplied
        with, are bfloat16, and their products are added up in float32: half the memory, and faster where
        the processor multiplies bfloat16.  Router, biases and all gradients stay float32, and the optimisers
        keep float32 copies.
    io_dtype : {"f32", "bf16"}
        Of x, y and their gradients.
    glu_limit, glu_alpha, glu_offset : float
        Of ``"gated"`` experts, at least 0.  With a limit L the gate is at most L before the activation, the
        up projection within -L and L; 0 means no limit.  ``glu_alpha``, with ``"silu"`` alone, makes the
        activation v sigmoid(alpha v); 0 means 1.  ``glu_offset`` is added to the up projection afterwards.
        gpt-oss has 7, 1.702 and 1, DeepSeek-V4 a limit of 10.
    context : Context, optional
        Whose threads compute; by default the shared one.  The layer keeps it alive.

    Raises
    ------
    InvalidArgumentError
        A size, word or number is out of range; the text names it and its value.
    OutOfMemoryError
        There is no memory for the parameters and their gradients.

    Notes
    -----
    The layer owns its parameters, except those that were bound to arrays of the caller's.

    Several threads may run forward at once, each with its own tape and outputs.  Backward calls take turns by
    themselves.  What changes the layer (bind, zero_grad, an optimiser's step) wants it for itself.

    Examples
    --------
    >>> import libmoe, numpy
    >>> layer = libmoe.Layer(64, 256, n_experts=8, top_k=2)
    >>> optimizer, tape = libmoe.AdamW(layer.parameters), layer.tape()
    >>> x = numpy.ones((3, 5, 64), numpy.float32)
    >>> output = layer.forward(x, tape=tape, training=True, step=0)
    >>> int(output.report.tokens_per_expert.sum())  # 15 tokens, 2 experts for each
    30
    >>> dx = layer.backward(tape, dy=output.y)  # of |y|^2 / 2 + aux_loss
    >>> dx.shape
    (3, 5, 64)
    >>> optimizer.step()
    >>> layer.zero_grad()
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        n_experts: int,
        top_k: int,
        *,
        router_weights: Literal["scores", "topk_softmax", "topk_sigmoid"] = "scores",
        normalize: bool | Literal["sum", "none", "norm1", "norm2"] = True,
        score: Literal["softmax", "sigmoid", "sqrt_softplus", "identity"] = "softmax",
        selection_bias: bool = False,
        expert_scale: bool = False,
        n_groups: int = 0,
        top_groups: int = 0,
        group_top_m: int = 0,
        group_mask: Literal["minus_infinity", "zero"] = "minus_infinity",
        normalize_epsilon: float = 0.0,
        epsilon_form: Literal["added", "least"] = "added",
        routed_scale: float = 1.0,
        router_bias: bool | None = None,
        expert_kind: Literal["mlp", "gated", "linear"] = "mlp",
        activation: Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "quick_gelu"] = "gelu",
        expert_bias: bool | None = None,
        inference_only: bool = False,
        dropout: float = 0.0,
        balance_coef: float = 0.01,
        z_coef: float = 0.001,
        seed: int = 0,
        weight_dtype: Literal["f32", "bf16"] = "f32",
        io_dtype: Literal["f32", "bf16"] = "f32",
        glu_limit: float = 0.0,
        glu_alpha: float = 0.0,
        glu_offset: float = 0.0,
        context: Context | None = None,
    ) -> None:
        config = _abi.moe_layer_config(
            hidden_size=_check.integer("hidden_size", hidden_size, ctypes.c_int64),
            intermediate_size=_check.integer("intermediate_size", intermediate_size, ctypes.c_int64),
            n_experts=_check.integer("n_experts", n_experts, ctypes.c_int64),
            top_k=_check.integer("top_k", top_k, ctypes.c_int64),
            router_weights=_check.choice("router_weights", router_weights, _abi.ROUTER_WEIGHTS),
            router_normalize=_check.choice("normalize", _normalize(normalize), _abi.NORMALIZE),
            score=_check.choice("score", score, _abi.SCORE),
            selection_bias=bool(selection_bias),
            expert_scale=bool(expert_scale),
            n_groups=_check.integer("n_groups", n_groups, ctypes.c_int32),
            top_groups=_check.integer("top_groups", top_groups, ctypes.c_int32),
            group_top_m=_check.integer("group_top_m", group_top_m, ctypes.c_int32),
            group_mask=_check.choice("group_mask", group_mask, _abi.GROUP_MASK),
            epsilon_form=_check.choice("epsilon_form", epsilon_form, _abi.EPSILON),
            normalize_epsilon=_check.number("normalize_epsilon", normalize_epsilon),
            routed_scale=_check.number("routed_scale", routed_scale),
            router_bias=_bias(router_bias),
            expert_kind=_check.choice("expert_kind", expert_kind, _abi.EXPERT),
            activation=_check.choice("activation", activation, _abi.ACTIVATION),
            expert_bias=_bias(expert_bias),
            inference_only=bool(inference_only),
            dropout=_check.number("dropout", dropout),
            balance_coef=_check.number("balance_coef", balance_coef),
            z_coef=_check.number("z_coef", z_coef),
            seed=_check.integer("seed", seed, ctypes.c_uint64),
            weight_dtype=_check.choice("weight_dtype", weight_dtype, _abi.DTYPE),
            io_dtype=_check.choice("io_dtype", io_dtype, _abi.DTYPE),
            glu_limit=_check.number("glu_limit", glu_limit),
            glu_alpha=_check.number("glu_alpha", glu_alpha),
            glu_offset=_check.number("glu_offset", glu_offset),
        )
        parent = (context or default_context())._handle
        self._open_handle = Handle(
            lib.moe_layer_create,
            lib.moe_layer_free,
            parent,
            ctypes.byref(config),
            keep={"context": parent},
        )
        self._config = config
        self._io_dtype = io_dtype
        self._views: weakref.WeakValueDictionary[tuple[str, str], _View] = weakref.WeakValueDictionary()

    # Read-only: the memory that a call reads and writes follows from them.
    @property
    def hidden_size(self) -> int:
        """H, the features of a token."""
        return int(self._config.hidden_size)

    @property
    def intermediate_size(self) -> int:
        """I, the experts' width; of linear experts what was given."""
        return int(self._config.intermediate_size)

    @property
    def n_experts(self) -> int:
        """E, the experts there are."""
        return int(self._config.n_experts)

    @property
    def top_k(self) -> int:
        """K, the experts that each token uses."""
        return int(self._config.top_k)

    def __call__(self, x: Array) -> Array:
        """Return y = layer(x), for evaluation.

        Parameters
        ----------
        x : ndarray of io_dtype, [..., H]
            Any leading dimensions; their product is T.

        Returns
        -------
        ndarray of x's type, [..., H]
            A new array.

        Raises
        ------
        TypeError, ValueError, NotFiniteError, OutOfMemoryError
            As :meth:`forward`.
        """
        return self._forward(x, None, None, None, None)

    def forward(
        self,
        x: Array,
        *,
        tape: Tape | None = None,
        training: bool = False,
        step: int = 0,
        out: Array | None = None,
    ) -> Output:
        """Return y = layer(x) with its losses and statistics.

        Parameters
        ----------
        x : ndarray of io_dtype, [..., H]
            Any leading dimensions; their product is T.
        tape : Tape, optional
            Filled for :meth:`backward`; it holds x, which must not change until then.
        training : bool
            Whether dropout acts.
        step : int
            Which training step this is, 0 to 2^56 - 1: dropout differs from step to step, and only by this
            number.
        out : ndarray of x's type and shape, optional
            Memory for y; must overlap neither x nor a parameter.

        Returns
        -------
        Output
            ``y``, of x's shape, which is ``out`` where that is given, and the ``report``.

        Raises
        ------
        TypeError, ValueError
            An array has the wrong type, shape or layout, or overlaps another.
        BadStateError
            The tape is another layer's, or something is closed.
        NotFiniteError
            A router logit is NaN or plus infinity, or too few experts are open; the text names the token.
        OutOfMemoryError
            There is no memory for the call.

        After any of these the tape is empty.
        """
        options = _abi.moe_forward_options(
            training=bool(training), step=_check.integer("step", step, ctypes.c_uint64)
        )
        n_tokens = _check.tokens("x", x, self.hidden_size, self._io_dtype)
        tokens_per_expert = np.empty(self.n_experts, np.int64)
        mean_probability = np.empty(self.n_experts, np.float32)
        expert_indices = np.empty((n_tokens, self.top_k), np.int32)
        expert_weights = np.empty((n_tokens, self.top_k), np.float32)
        report = _abi.moe_report(
            tokens_per_expert=tokens_per_expert.ctypes.data,
            mean_probability=mean_probability.ctypes.data,
            expert_indices=expert_indices.ctypes.data,
            expert_weights=expert_weights.ctypes.data,
        )
        y = self._forward(x, options, out, tape, report)
        return Output(
            y,
            Report(
                balance_loss=report.balance_loss,
                z_loss=report.z_loss,
                aux_loss=report.aux_loss,
                entropy=report.entropy,
                tokens_per_expert=tokens_per_expert,
                mean_probability=mean_probability,
                expert_indices=expert_indices,
                expert_weights=expert_weights,
            ),
        )

    def _forward(
        self,
        x: Array,
        options: _abi.moe_forward_options | None,
        out: Array | None,
        tape: Tape | None,
        report: _abi.moe_report | None,
    ) -> Array:
        n_tokens = _check.tokens("x", x, self.hidden_size, self._io_dtype)
        y = np.empty_like(x) if out is None else self._tokens("out", out, x.shape, write=True)
        if tape is not None:
            tape._x = None  # a forward that fails leaves the tape empty
        _run(
            lib.moe_layer_forward,
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
        return y

    def _tokens(self, name: str, value: Any, shape: tuple[int, ...], *, write: bool = False) -> Any:
        return _check.array(name, value, shape, write=write, dtype=self._io_dtype)

    def tape(self) -> Tape:
        """Return an empty tape for :meth:`forward` to fill; one serves step after step."""
        return Tape(self)

    def backward(
        self,
        tape: Tape,
        dy: Array,
        *,
        d_aux_loss: float = 1.0,
        out: Array | None = None,
        need_dx: bool = True,
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
        out : ndarray of x's type and shape, optional
            Memory for dx; must overlap neither x nor dy.
        need_dx : bool
            False saves the time of dx, and returns None.

        Returns
        -------
        ndarray of x's type and shape, or None
            dx, the gradient with respect to x, which is ``out`` where that is given.

        Raises
        ------
        TypeError, ValueError
            An array has the wrong type, shape or layout, or overlaps another; or d_aux_loss is not finite.
        BadStateError
            The tape is empty or another layer's, the layer is inference_only, or something is closed.
        OutOfMemoryError
            There is no memory for the call.

        After an exception of a signal handler, such as KeyboardInterrupt, the gradients are partly added:
        call :meth:`zero_grad`.
        """
        x = tape._x
        if x is None:
            raise BadStateError("tape: is empty; run layer.forward(x, tape=tape) first")
        dy = self._tokens("dy", dy, x.shape)
        dx = None
        if out is not None:
            dx = self._tokens("out", out, x.shape, write=True)
        elif need_dx:
            dx = np.empty_like(x)
        _run(
            lib.moe_layer_backward,
            self._handle,
            tape._handle,
            x.ctypes.data,
            dy.ctypes.data,
            _check.number("d_aux_loss", d_aux_loss),
            None if dx is None else dx.ctypes.data,
        )
        return dx

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by name, their arrays being the layer's memory itself.

        Those that the configuration has of::

            router.weight [E, H]           router.bias [E]
            experts.gate.weight [E, I, H]  experts.gate.bias [E, I]     (gated experts)
            experts.up.weight [E, I, H]    experts.up.bias [E, I]
            experts.down.weight [E, H, I]  experts.down.bias [E, H]

            router.expert_scale [E]

        The layer owns that memory; the arrays keep it alive, also after the layer is closed.
        """
        return {name: parameter for name, parameter in self._tensors().items() if name not in _BUFFERS}

    @property
    def buffers(self) -> dict[str, NDArray[Any]]:
        """What belongs to the layer's state and is not trained by gradients: ``router.selection_bias`` [E].

        The arrays are the layer's memory itself.
        """
        return {name: parameter.data for name, parameter in self._tensors().items() if name in _BUFFERS}

    def _tensors(self) -> dict[str, Parameter]:
        count = ctypes.c_int64()
        lib.moe_layer_parameter_count(self._handle, ctypes.byref(count))
        return {parameter.name: parameter for parameter in map(self._parameter, range(count.value))}

    def update_selection_bias(
        self, tokens_per_expert: NDArray[np.int64], rate: float = 1e-3, *, zero_sum: bool = False
    ) -> None:
        """Balance without a loss: favour experts with fewer tokens than the mean in the choices to come.

        ``bias += d`` with ``d = rate * sign(mean(n) - n)`` (arXiv:2412.19437), or ``d - mean(d)``.

        Parameters
        ----------
        tokens_per_expert : ndarray of int64, [E]
            n, the reports' counts since the last update added up; once per optimiser step.
        rate : float
            At least 0.
        zero_sum : bool
            Whether the biases' mean stays as it is.

        Raises
        ------
        BadStateError
            The layer has no selection_bias, or is closed.
        InvalidArgumentError
            A count or the rate is negative.
        """
        counts = np.ascontiguousarray(tokens_per_expert, np.int64)
        if counts.shape != (self.n_experts,):
            raise ValueError(f"tokens_per_expert: expected shape ({self.n_experts},), got {counts.shape}")
        rate = _check.number("rate", rate)
        lib.moe_layer_update_selection_bias(self._handle, counts.ctypes.data, rate, bool(zero_sum))

    def _parameter(self, index: int) -> Parameter:
        tensor = self._tensor(index)
        name = tensor.name.decode()
        grad = self._array(name, "grad", tensor) if tensor.grad else None
        return Parameter._of_layer(name, self._array(name, "data", tensor), grad)

    def _tensor(self, index: int) -> _abi.moe_tensor:
        tensor = _abi.moe_tensor()
        lib.moe_layer_parameter(self._handle, index, ctypes.byref(tensor))
        return tensor

    def _array(self, name: str, part: str, tensor: _abi.moe_tensor) -> Array:
        """Return what the caller bound, else an array over the library's memory."""
        bound: Array | None = self._handle.keep.get((name, part))
        if bound is not None:
            return bound
        view = self._views.get((name, part))
        if view is None:
            half = part == "data" and tensor.dtype == _abi.DTYPE["bf16"]
            dtype = np.uint16 if half else np.float32
            view = _View(self._handle, getattr(tensor, part), tuple(tensor.shape[: tensor.rank]), dtype)
            self._views[name, part] = view
        return np.asarray(view)

    def bind(self, name: str, data: Array, grad: FloatArray | None = None) -> None:
        """Use the caller's arrays as a parameter, without a copy, with the values they have.

        Arrays that were taken from ``parameters`` before must be gone, and optimisers made from them too: the
        memory behind them is freed.

        Parameters
        ----------
        name : str
            One of ``parameters``.
        data : ndarray of the parameter's type and shape
            Its values from now on; the layer holds the array.
        grad : ndarray of float32, of the parameter's shape, optional
            Its gradient from now on; where it is not given, the gradient stays where it is.

        Raises
        ------
        TypeError, ValueError
            There is no such parameter, or an array has the wrong type, shape or layout.
        BadStateError
            Arrays that were taken from ``parameters`` are still in use.
        """
        index = ctypes.c_int64()
        lib.moe_layer_find_parameter(self._handle, name.encode(), ctypes.byref(index))
        tensor = self._tensor(index.value)
        name = tensor.name.decode()  # C compared up to the first NUL only
        shape = tuple(tensor.shape[: tensor.rank])
        dtype = "bf16" if tensor.dtype == _abi.DTYPE["bf16"] else "f32"
        arrays = {(name, "data"): _check.array("data", data, shape, write=True, dtype=dtype)}
        if grad is not None:
            arrays[name, "grad"] = _check.array("grad", grad, shape, write=True)
        for key in arrays:
            if key in self._views:
                raise BadStateError(
                    f"{name}: its {key[1]} is still in use by an array or an optimiser; delete it before bind"
                )
        lib.moe_layer_bind_parameter(
            self._handle, index, data.ctypes.data, None if grad is None else grad.ctypes.data
        )
        self._handle.keep.update(arrays)

    def prepare(self, prepared: Literal["none", "f32", "bf16"] = "f32") -> None:
        """Pack the experts' weights once for the forward calls to come, or let go of the packed copy.

        Few tokens gain most: their time is that of reading the weights.  The copy takes 4 or 2 bytes for each
        weight and does not follow them: after a change prepare again.

        Parameters
        ----------
        prepared : {"none", "f32", "bf16"}
            ``"f32"``: forward gives the same bits.  ``"bf16"``: forward computes as a layer with
            ``weight_dtype="bf16"`` does, with half the memory to read; the only form for such a layer, for
            the others without a tape only.  ``"none"``: no copy.

        Raises
        ------
        InvalidArgumentError
            ``"f32"`` for weights that are bfloat16.
        OutOfMemoryError
            There is no memory for the copy; the layer is as it was.
        BadStateError
            The layer is closed.  :meth:`forward` raises it too, when weights that it uses have changed since:
            it compares 16 values of each matrix.
        """
        lib.moe_layer_prepare(self._handle, _check.choice("prepared", prepared, _abi.PREPARED))

    def zero_grad(self) -> None:
        """Set every gradient to 0.

        Raises
        ------
        BadStateError
            The layer is inference_only, or closed.
        """
        lib.moe_layer_zero_grad(self._handle)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters by name, for ``numpy.savez`` for instance."""
        return {name: parameter.data.copy() for name, parameter in self._tensors().items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy values into the parameters; all names and shapes must agree, else nothing changes.

        Parameters
        ----------
        state : mapping of str to ndarray
            As :meth:`state_dict` gives it.

        Raises
        ------
        TypeError, ValueError
            A name is missing or unknown, or an array has the wrong type, shape or layout.
        """
        parameters = self._tensors()
        if parameters.keys() != state.keys():
            missing = sorted(parameters.keys() - state.keys())
            unknown = sorted(state.keys() - parameters.keys())
            raise ValueError(f"state: missing names {missing}, unknown names {unknown}")
        for name, parameter in parameters.items():
            dtype = _check.dtype_of(parameter.data)
            _check.array(f"state[{name!r}]", state[name], parameter.data.shape, dtype=dtype)
        for name, parameter in parameters.items():
            parameter.data[...] = state[name].view(parameter.data.dtype)


_BUFFERS = {"router.selection_bias"}


def _normalize(wanted: bool | str) -> str:
    """Return the word; True and False are the usual ones."""
    return wanted if isinstance(wanted, str) else "sum" if wanted else "none"


def _bias(wanted: bool | None) -> int:
    """Return the enum value; None is the default."""
    return _abi.BIAS["default" if wanted is None else "on" if wanted else "off"]


def _run(function: Any, *arguments: Any) -> None:
    """Call a function that asks the cancel callback."""
    raised.take()  # of two signals in a row, an earlier call may have raised the second and left the first
    function(*arguments)
