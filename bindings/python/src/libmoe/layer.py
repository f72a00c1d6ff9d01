"""The Mixture-of-Experts layer: forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from . import config, words
from ._calls import Calls
from ._keywords import keywords
from ._ranks import handle
from .communicator import Communicator
from .context import Context, handle_of


@keywords
class Layer(Calls):
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
    router : {"token_choice", "expert_choice", "hierarchical", "hash", "sinkhorn", "external", "relu"}
        How experts and tokens find each other.  Each token takes its K best experts; each expert its best
        tokens, as many as it has room for (arXiv:2202.09368); a gate chooses ``top_groups`` of ``n_groups``
        groups, then each group's gate its experts; a table by token id (arXiv:2106.04426); in training the K
        best after Sinkhorn's iteration towards equal loads, as Megatron-Core; forward is given indices and
        weights; each token takes the experts with positive logits, K at most (arXiv:2412.14711).
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
    shared_bias : bool, optional
        Whether the shared experts have biases, where it is not as the others have it (ERNIE-4.5).
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
    communicator : Communicator, optional
        Of the ranks over which the experts are spread: every rank makes the same layer, and then the same
        calls of it, with tokens of its own.  Results have the bits of one process with all tokens; parameters
        called ``experts`` are those of this rank's experts.
    experts_per_rank : sequence of int, optional
        How many experts each rank owns, E in all; by default as even as they can be.
    choice_scope : {"global", "local"}
        Over which tokens experts choose, room is counted and loads are evened out: those of all ranks, where
        that can be, or each rank's own.
    strategy : {"exclusive", "replicated", "sliced"}
        How the chosen experts are divided among the ranks.  ``"exclusive"``: each has one owner, to which
        rows travel.  ``"replicated"``: every rank has all of them, no row travels, and gradients go from rank
        to rank, so that the parameters stay the same everywhere.  ``"sliced"``: every rank has a slice of the
        inner features of all experts, and every row travels to all ranks; bits depend on their number.
    hot_experts : int or sequence of int
        At most so many experts are hot in a call, those for which that sends fewer bytes, or these ones: the
        owner sends their weights to all ranks, and rows of them do not travel.

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
        shared_bias: bool | None = None,
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
        communicator: Communicator | None = None,
        experts_per_rank: Sequence[int] | None = None,
        choice_scope: words.ChoiceScope = "global",
        strategy: words.Strategy = "exclusive",
        hot_experts: int | Sequence[int] = 0,
    ) -> None:
        options = dict(locals())  # all arguments by name, as long as nothing else is there
        if isinstance(hash_table, np.ndarray):  # of the caller's, who may change it
            options["hash_table"] = hash_table.copy()
        c_config = config.to_c(options)
        given = (handle_of(context), ctypes.byref(c_config))
        placed = (communicator, experts_per_rank, choice_scope, strategy, hot_experts)
        made = handle("layer", "create", given, *placed)
        super().__init__(made, c_config)
        self._remember(Layer, options, context)
        self._io_dtype = io_dtype
        self._losses = list(losses or ())
