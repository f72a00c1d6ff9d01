"""The Mixture-of-Experts layer: forward and backward."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import config, words
from ._calls import backward_options, forward_options
from ._keywords import keywords, unknown
from ._native import abi, check, fields
from ._native.check import Array, FloatArray
from ._native.library import Handle, lib
from ._weights import Weights
from .context import Context, handle_of
from .errors import ArgumentTypeError, BadStateError
from .memory import Plan, planned
from .optim import Optimizer
from .report import Blank, Output, Report, n_sequences, sequence_arrays
from .routing import Routing
from .tape import Tape


@keywords
class Layer(Weights):
    """A router and E experts, each a small network, of which every token x uses K.

    ::

        z = x W_r^T + b_r                                       x [T, H]   z [T, E], the logits
        s = score(z)                                            s [T, E]
        i = the K largest of s + selection bias, within the top_groups best groups    i [T, K]
        w = s[i] / (their sum, or as router_normalize says) * routed_scale * expert scale    w [T, K]
        y[t] = sum over k of w[t, k] * expert(i[t, k])(x[t]) + shared experts         y [T, H]

        expert "mlp":     W_down act(W_up x + b_up) + b_down
        expert "gated":   W_down (act(W_gate x + b_gate) * (W_up x + b_up)) + b_down
        expert "linear":  W x + b

    Every 0, and every first word, is the classic router; :mod:`libmoe.presets` has those of known models.

    Parameters
    ----------
    hidden_size, intermediate_size, n_experts, top_k : int
        H, I (the experts' width), E and K; each at least 1, and K at most E.  ``"linear"`` experts have no
        width: give 0, or H.  With ``expert_groups`` give 0.
    router : {"token_choice", "expert_choice", "hierarchical", "hash", "sinkhorn", "external"}
        How experts and tokens find each other.  Each token takes its K best experts; each expert its best
        tokens, as many as it has room for (arXiv:2202.09368); a gate chooses ``top_groups`` of ``n_groups``
        groups, then each group's gate its experts; a table by token id (arXiv:2106.04426); in training the K
        best after Sinkhorn's iteration towards equal loads, as Megatron-Core; forward is given indices and
        weights.
    router_weights : {"scores", "topk_softmax", "topk_sigmoid", "equal", "sparsemixer", "group_softmax"}
        What the K chosen experts weigh: their scores among all E; a softmax or the sigmoid of their logits;
        1; each its share in a softmax over the experts not chosen before it whose logits are near its own
        (PhiMoE); or, of router ``"hierarchical"``, the coarse gate's probability of the group times a softmax
        over the chosen experts of the group alone.
    mask_threshold : float
        Of ``"sparsemixer"``, above 0: near is (best - z) / max(|z|, best) <= 2 mask_threshold.
    router_normalize : bool or {"sum", "none", "norm1", "norm2", "normp"}
        What the chosen values are divided by: their sum (True), nothing (False), the sum of their
        magnitudes, the root of the sum of their squares, or (sum of |v|^normalize_p)^(1/normalize_p).
    normalize_p : float
        Of ``"normp"``, at least 1.
    normalize_epsilon, epsilon_form : float, {"added", "least"}
        Added to the divisor, or the least it may be.
    score : {"softmax", "sigmoid", "sqrt_softplus", "identity"}
        Scores of all experts, from the logits.
    selection_bias : bool
        Whether ``buffers["router.selection_bias"]`` is added for the choice alone (arXiv:2412.19437); see
        :meth:`update_selection_bias`.
    expert_scale : bool
        Whether there is a trained factor ``router.expert_scale`` for each expert's weight.
    n_groups, top_groups, group_top_m : int
        With n_groups, experts are chosen within the top_groups groups of neighbours whose group_top_m largest
        scores (0: 1) have the largest sum.  -1 is none, whatever the other two and group_mask are.
    group_mask : {"minus_infinity", "zero"}
        What takes the place of the other groups' scores.
    routed_scale : float
        Multiplies all weights; 0 means 1.
    weight_on_input : bool
        Whether it is expert(w x) in place of w expert(x) (Llama-4).
    router_bias, expert_bias : bool, optional
        Whether there are biases.  By default ``"gated"`` experts have none, all others and the router do.
    output_bias : bool
        Whether a trained vector ``output.bias`` is added to y (JetMoE).
    expert_kind : {"mlp", "gated", "linear"}
        ``"gated"`` with ``"silu"`` is SwiGLU, with ``"gelu"`` GeGLU.  ``"linear"`` experts have no activation
        and no dropout.  Within ``expert_groups`` also ``"identity"``, which is x, ``"zero"``, which is 0, and
        ``"constant"``, a trained vector (arXiv:2410.07348).
    activation : {"gelu", "gelu_tanh", "silu", "relu", "relu2", "quick_gelu"}
        act.  ``"relu2"`` is max(v, 0)^2, ``"quick_gelu"`` v sigmoid(1.702 v).
    glu_limit, glu_alpha, glu_offset : float
        Of ``"gated"`` experts, at least 0.  With a limit L the gate is at most L before the activation, the
        up projection within -L and L; 0 means no limit.  ``glu_alpha``, with ``"silu"`` alone, makes the
        activation v sigmoid(alpha v); 0 means 1.  ``glu_offset`` is added to the up projection afterwards.
        gpt-oss has 7, 1.702 and 1, DeepSeek-V4 a limit of 10.
    expert_groups : sequence of ExpertGroup, optional
        Experts of several kinds and widths, in the order of their numbers: at most 16 groups, whose
        ``n_experts`` add up to E.  Each says its own kind, width, activation, bias, dropout and glu numbers,
        in place of the layer's.
    n_shared_experts, shared_intermediate_size : int
        Experts that every token uses, of the same kind (of the first group's), and their width (0: I).
    shared_gate : {"plain", "sigmoid", "residual"}
        ``y += shared(x)``; ``y += sigmoid(x w^T) shared(x)`` (Qwen2); or ``y = c_0 y + c_1 shared(x)`` with
        ``c = softmax(x W^T + b)`` and one shared expert (arXiv:2201.05596).
    inference_only : bool
        No memory for gradients, and no backward.
    dropout : float
        Share of the experts' inner activations that is dropped in training, in [0, 1).
    noise, noise_std : {"none", "gaussian", "learned"}, float
        Added to the logits in training: noise_std N(0, 1), or N(0, 1) (softplus(x W_n^T) + 0.01) with the
        parameter ``router.noise.weight`` (arXiv:1701.06538).
    jitter, jitter_experts : float, bool
        In training the gate reads x times numbers from 1 - jitter to 1 + jitter; the experts too (Mixtral).
    router_dropout, router_dropout_on : float, {"input", "logits"}
        Share of the gate's input, or of the logits, that is 0 in training, in [0, 1).
    router_batch_norm, batch_norm_momentum, batch_norm_epsilon : bool, float, float
        Whether the gate reads a batch-normalised x.  A forward in training then changes ``buffers``, so it
        wants the layer for itself.  0 means 0.1, and 1e-5.
    router_norm, router_norm_scale, router_norm_epsilon : {"none", "rms", "rms_weight"}, float, float
        An RMS norm of what the gate alone reads: x / sqrt(mean(x^2) + epsilon) * scale, and with
        ``"rms_weight"`` times a trained ``router.norm.weight``.  0 means 1 / sqrt(H), which is Gemma 4's, and
        1e-6.
    random_second : bool
        With K = 2, whether in training a second choice of weight w is kept with probability min(1, 2 w)
        (arXiv:2006.16668).
    dynamic_k, dynamic_value, min_k : {"none", "top_p", "threshold", "complexity"}, float, int
        Fewer than K experts for some tokens, at least min_k (0: 1): the fewest whose scores add up to
        dynamic_value, those that reach it, or floor(mean norm of x / dynamic_value) for all tokens (0: 10).
    warmup_steps, warmup_experts : int
        Over so many steps of training the experts that may be chosen grow from warmup_experts (0: K) to E.
    capacity_formula : str
        Room C of an expert for tokens, f being capacity_factor: ``"none"``, no limit; ``"constant"``,
        ``capacity``; or as others compute it: ``"megatron"`` ceil(T K / E f), ``"deepspeed"``
        max(ceil(T K / E f), min_capacity), ``"megablocks"`` int(f K T / E), ``"tutel"`` K int(f ceil(T / E)),
        ``"fastmoe"`` ceil(f T) K // E, ``"lucidrains"`` max(min(T, int(T f / E)), min_capacity), ``"nllb"``
        2 ceil(T / E), ``"flaxformer"`` max(round(f T / E), min_capacity), ``"classic"`` int(f T / E),
        ``"classic_total"`` int(f T).
    capacity, min_capacity : int
        Of these formulas; the capacity of ``"constant"`` alone; 0 is the formula's own least.
    capacity_factor, eval_capacity_factor : float
        f in training and in evaluation; 0 is the formula's own, or 1.
    capacity_per_sequence : bool
        Whether each sequence has room of its own; see ``sequence_length`` of :meth:`forward`.
    drop : {"position", "choice_position", "probability", "batch_prioritized", "random"}
        Who goes first where room is short: earlier tokens; first choices, then second ones; larger weights;
        tokens by their largest weight (arXiv:2106.05974); anyone.
    overflow : {"drop", "next_best"}
        A choice without room is dropped, or goes to the token's next best expert that has room.
    renormalize : {"before", "after"}
        Whether weights are divided before choices are dropped, or after.
    adaptive_capacity : bool
        Whether an expert that more than adaptive_high C tokens chose has room for adaptive_high_factor C, and
        one that fewer than adaptive_low C chose for adaptive_low_factor C.
    adaptive_high, adaptive_high_factor, adaptive_low, adaptive_low_factor : float
        0 means 1.5, 1.2, 0.5 and 0.8.
    hash_table : ndarray of int32, [V, K], optional
        Experts of each token id, for ``"hash"``; copied.  Without it distinct experts at random by seed.
    vocabulary_size : int
        V; the table's rows where there is a table.
    balance_coef, z_coef : float
        Weights of the two losses in ``report.aux_loss``, at least 0.
    losses : mapping of str to float, optional
        Coefficients, at least 0, of further losses in ``report.aux_loss``, such as ``{"switch": 0.01}``;
        :data:`libmoe.words.Loss` lists the names, include/moe.h the equations.
    seed : int
        Of the initial parameters and of all that is random: the same seed gives the same bits.
    unallocated : {"expert_gradients", "expert_weights"}, or both in a tuple
        What there is no memory for.  ``"expert_gradients"``: the gradients of the experts' weights and
        biases; :meth:`backward` is given an optimiser, which it steps expert by expert.
        ``"expert_weights"``: the routed experts' matrices and their gradients, until :meth:`bind` or
        :meth:`offload`.
    weight_dtype : {"f32", "bf16", "f16"}
        Of the experts' weight matrices.  ``"bf16"``: they, and the arrays of tokens they are multiplied
        with, are bfloat16, and their products are added up in float32: half the memory, and faster where
        the processor multiplies bfloat16.  Router, biases and all gradients stay float32, and the optimisers
        keep float32 copies.  ``"f16"``: they alone are float16, and every bit is that of a float32 layer
        with the same values, in half the memory.
    io_dtype : {"f32", "bf16"}
        Of x, y and their gradients.
    context : Context, optional
        Whose threads compute; by default the shared one.  The layer keeps it alive.

    Raises
    ------
    TypeError, InvalidArgumentError
        A size, word or number is out of range, or options do not go together; the text names them.
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
        router: words.Router = "token_choice",
        router_weights: words.RouterWeights = "scores",
        mask_threshold: float = 0.0,
        router_normalize: bool | words.Normalize = "sum",
        normalize_p: float = 0.0,
        normalize_epsilon: float = 0.0,
        epsilon_form: words.Epsilon = "added",
        score: words.Score = "softmax",
        selection_bias: bool = False,
        expert_scale: bool = False,
        n_groups: int = 0,
        top_groups: int = 0,
        group_top_m: int = 0,
        group_mask: words.GroupMask = "minus_infinity",
        routed_scale: float = 0.0,
        weight_on_input: bool = False,
        router_bias: bool | None = None,
        expert_bias: bool | None = None,
        output_bias: bool = False,
        expert_kind: words.ExpertKind = "mlp",
        activation: words.Activation = "gelu",
        glu_limit: float = 0.0,
        glu_alpha: float = 0.0,
        glu_offset: float = 0.0,
        expert_groups: Sequence[config.ExpertGroup] | None = None,
        n_shared_experts: int = 0,
        shared_intermediate_size: int = 0,
        shared_gate: words.SharedGate = "plain",
        inference_only: bool = False,
        dropout: float = 0.0,
        noise: words.Noise = "none",
        noise_std: float = 0.0,
        jitter: float = 0.0,
        jitter_experts: bool = False,
        router_dropout: float = 0.0,
        router_dropout_on: words.RouterDropout = "input",
        router_batch_norm: bool = False,
        batch_norm_momentum: float = 0.0,
        batch_norm_epsilon: float = 0.0,
        router_norm: words.RouterNorm = "none",
        router_norm_scale: float = 0.0,
        router_norm_epsilon: float = 0.0,
        random_second: bool = False,
        dynamic_k: words.DynamicK = "none",
        dynamic_value: float = 0.0,
        min_k: int = 0,
        warmup_steps: int = 0,
        warmup_experts: int = 0,
        capacity_formula: words.Capacity = "none",
        capacity: int = 0,
        min_capacity: int = 0,
        capacity_factor: float = 0.0,
        eval_capacity_factor: float = 0.0,
        capacity_per_sequence: bool = False,
        drop: words.Drop = "position",
        overflow: words.Overflow = "drop",
        renormalize: words.Renormalize = "before",
        adaptive_capacity: bool = False,
        adaptive_high: float = 0.0,
        adaptive_high_factor: float = 0.0,
        adaptive_low: float = 0.0,
        adaptive_low_factor: float = 0.0,
        hash_table: NDArray[np.int32] | None = None,
        vocabulary_size: int = 0,
        balance_coef: float = 0.01,
        z_coef: float = 0.001,
        losses: Mapping[words.Loss, float] | None = None,
        seed: int = 0,
        unallocated: words.Unallocated | Sequence[words.Unallocated] = (),
        weight_dtype: words.WeightDType = "f32",
        io_dtype: words.IoDType = "f32",
        context: Context | None = None,
    ) -> None:
        options = dict(locals())  # all arguments by name, as long as nothing else is there
        if isinstance(hash_table, np.ndarray):  # of the caller's, who may change it
            options["hash_table"] = hash_table.copy()
        c_config = config.to_c(options)
        parent = handle_of(context)
        create, free = lib.moe_layer_create, lib.moe_layer_free
        super().__init__(
            Handle(create, free, parent, ctypes.byref(c_config), keep={"context": parent}), c_config
        )
        self._remember(Layer, options, context)
        self._io_dtype = io_dtype
        self._losses = list(losses or ())

    def __call__(self, x: Array) -> Array:
        """Return y = layer(x), for evaluation: a new array with x's type and shape, [..., H].

        It raises what :meth:`forward` does.
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
        blank = Blank(
            self.n_experts,
            losses=np.empty(len(self._losses), np.float32),
            expert_indices=np.empty((n_tokens, listed), np.int32),
            expert_weights=np.empty((n_tokens, listed), np.float32),
            **sequence_arrays(n_tokens, sequence_length, self.n_experts),
        )
        y, filled = self._forward(x, options, out, tape, blank.c_report), blank.filled()
        filled["losses"] = dict(zip(self._losses, filled["losses"].tolist()))
        return Output(y, Report(**filled))

    def _forward(
        self,
        x: Array,
        options: abi.moe_forward_options | None,
        out: Array | None,
        tape: Tape | None,
        report: abi.moe_report | None,
    ) -> Array:
        n_tokens = check.tokens("x", x, self.hidden_size, self._io_dtype)
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
        known = {name: given[name] for name in fields.types(abi.moe_forward_options) if name in given}
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
        known = inspect.signature(Layer.forward).parameters.keys() - {"self", "x", "tape", "out"}
        for name in options.keys() - known:
            raise ArgumentTypeError(unknown("Layer.plan", name, known))
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
        optimizer : AdamW or SGD, optional
            Made from ``layer.parameters`` of a layer without ``"expert_gradients"``, see its
            ``unallocated``: the call is :meth:`zero_grad`, backward and a step in one, with the same bits,
            and has the gradient of one expert at a time.  Afterwards the tape is of no more use.
        clip_factor : float
            Of the optimizer, above 0: what every gradient is multiplied by; 0 means 1.

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
            The tape is empty or another layer's, the layer is inference_only, or something is closed; the
            layer has no memory for some gradient and there is no optimizer, or has it for all and there is
            one.
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
            clip_factor=clip_factor,
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
        return dx
