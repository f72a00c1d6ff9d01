"""Whole models: a stack of transformer layers, dense or MoE, as an encoder or a language model."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from . import words
from ._batches import Batches
from ._ffn import dense_options, layer_of
from ._freezing import Freezing
from ._keywords import keywords
from ._model_call import Call, Integers, Mask, Positions, Reports, planned
from ._model_config import ModelConfig, from_c, to_c
from ._native import abi, check, fields
from ._native.check import FloatArray
from ._native.library import Borrowed, Handle, lib
from ._pretrained import Pretrained
from ._ranks import handle
from ._tensors import Coefficients, _memory
from .calibration import Calibration
from .communicator import Communicator
from .context import Context, handle_of
from .errors import BadStateError, InvalidArgumentError
from .generation import Cache
from .layer import Layer
from .model_output import ModelOutput, ModelPlan, ModelTape
from .optim import Optimizer


@keywords
class Model(Pretrained, Batches, Freezing):
    """A stack of N transformer layers on B sequences of S tokens of H features.

    ::

        norm_place "pre":   h = x + attention(norm(x))   y = h + ffn(norm(h))     (arXiv:2002.04745)
        norm_place "post":  h = norm(x + attention(x))   y = norm(h + ffn(h))     (arXiv:1706.03762)
        norm_place "none":  y = attention(x)

    Parameters
    ----------
    hidden_size, n_layers, n_heads : int
        H, N and the attention's heads.
    vocabulary_size : int
        V: tokens in, logits out.  0: an encoder, hidden states in and out.
    moe : mapping, optional
        The ffn of MoE layers: what :class:`Layer` takes, without hidden_size, seed, io_dtype,
        inference_only and context.  Without it every layer is dense.
    moe_every : int
        Layer n = 0, 1, ... is MoE where (n + 1) % moe_every == 0.
    layers : list of dict, optional
        Layers that differ, one dict each: ``dense`` (False: MoE where there is ``moe``), ``rotary`` (which of
        rotary_tables, -1: none), ``window`` (keys that a query sees, 0: all), ``chunk`` (of keys that see
        each other, 0: none), ``dense_intermediate_size`` (0: the model's); what is left out is 0.
    dense_kind, dense_activation, dense_intermediate_size, dense_bias, dense_dropout
        The ffn of the layers that are not MoE: {"mlp", "gated"}, what is between, its width, whether it has
        biases (by default those of ``"mlp"`` have), and dropout of its inner activations.
    n_kv_heads, head_size : int
        Heads of keys and values, a divisor of n_heads (0: n_heads), and their width (0: H / n_heads).
    max_positions : int
        Rows of a learned embedding of positions; 0: none.
    rope_theta : float
        Of rotary positions in every attention, at least 1; 0: none.  Beside rotary_tables leave it out.
    rotary_tables : list of dict, optional
        Rotary positions as data: ``rotary_size`` (numbers of a head that turn, 0: all), ``theta`` or
        ``frequencies`` (radians per position, one for each pair), ``scale`` (of cos and sin, 0: 1), and
        ``long_frequencies``, ``long_scale`` from position ``original_length`` on (arXiv:2402.13753).
    norm, norm_place, norm_epsilon, final_norm
        {"layer", "rms"}, {"pre", "post", "none"}, above 0 (0: 1e-5), and whether there is a norm after the
        last layer.
    causal : bool
        Whether tokens see themselves and earlier ones only.
    qkv_bias, output_bias : bool
        Biases of attention's projections.
    qk_norm : {"none", "head", "whole", "rotated", "plain"}
        RMS norms of queries and keys: over each head (True is that too), over all heads together, over each
        head after rotation, and that without weights in layers that rotate.
    attention_scale : float
        Of q . k; 0: 1 / sqrt(head_size).
    attention_gate : bool
        Whether attention's output is multiplied by sigmoid(gate), projected beside queries, keys and values.
    sinks : bool
        Whether each head has one more logit in its softmax, without a value (arXiv:2309.17453).
    temperature_scale, temperature_floor : float
        Queries of layers without rotation are multiplied by
        1 + scale log(1 + floor((position + 1) / temperature_floor)); 0: not.
    value_head_size : int
        Width of the values' heads; 0: head_size.
    latent_rank, query_rank : int
        Above 0: multi-head latent attention (arXiv:2405.04434), of latents of so many numbers, and queries of
        so many.  The last ``rotary_size`` numbers of each head turn, the same in all of ``rotary_tables``.
    latent_norm_epsilon : float
        Of the norms of these; 0: norm_epsilon.  DeepSeek's models have 1e-6.
    embedding_scale, residual_scale, logit_scale : float
        What embedded tokens, what attention and ffn add to the residual, and logits are multiplied by; 0: 1.
    logit_softcap : float
        c: logits become c tanh(logit / c); 0: they stay.
    tied_output, logit_bias : bool
        Whether the output product uses the token embedding, and whether an untied one has a bias.
    weight_dtype : str
        Of projections, ffn's and an untied output, as of :class:`Layer`; sums, residuals and gradients are
        float32.
    embedding_dtype : {"f32", "bf16"}
        Of the token embedding, and of the output where it is tied.
    dropout, attention_dropout : float
        In training: on embeddings and what attention and ffn add, and on attention's weights.
    pooled_balance_coef : float
        Times :func:`pooled_balance_loss` over the MoE layers, as transformers adds it.
    init_deviation : float
        Of the initial embeddings and projections; 0: 0.02, and Xavier's uniform distribution.
    inference_only : bool
        No memory for gradients, and no backward.
    seed : int
        Of the initial parameters and of all that is random.
    context : Context, optional
        Whose threads compute; by default the shared one.
    communicator, experts_per_rank, choice_scope
        As of :class:`Layer`: the ranks over which the experts of all MoE layers are spread.  Every rank makes
        the same model, and then the same calls of it, with sequences of its own, also none; results have the
        bits of one process with all sequences.  All but the experts is whole on every rank.

    Raises
    ------
    TypeError, InvalidArgumentError
        A size, word or number is out of range, or options do not go together; the text names them.
    OutOfMemoryError
        There is no memory for the parameters.

    Examples
    --------
    >>> import libmoe, numpy
    >>> model = libmoe.Model(64, 2, 4, vocabulary_size=256, rope_theta=1e4,
    ...                      moe=dict(n_experts=8, top_k=2, intermediate_size=128))
    >>> tokens = numpy.zeros((4, 33), numpy.int32)
    >>> output = model.forward(tokens[:, :-1].copy(), tokens[:, 1:].copy(), training=True, tape=True)
    >>> model.backward(output)
    """

    _prefix = "moe_model"

    def __init__(
        self,
        hidden_size: int,
        n_layers: int,
        n_heads: int,
        *,
        vocabulary_size: int = 0,
        moe: Mapping[str, Any] | None = None,
        moe_every: int = 1,
        layers: Sequence[Mapping[str, Any]] | None = None,
        dense_kind: words.DenseKind = "gated",
        dense_activation: words.Activation = "silu",
        dense_intermediate_size: int = 0,
        dense_bias: bool | None = None,
        dense_dropout: float = 0.0,
        n_kv_heads: int = 0,
        head_size: int = 0,
        max_positions: int = 0,
        rope_theta: float = 1e4,
        rotary_tables: Sequence[Mapping[str, Any]] | None = None,
        norm: words.Norm = "rms",
        norm_place: words.NormPlace = "pre",
        norm_epsilon: float = 0.0,
        final_norm: bool = True,
        causal: bool = True,
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm: words.QkNorm | bool = "none",
        attention_scale: float = 0.0,
        attention_gate: bool = False,
        sinks: bool = False,
        temperature_scale: float = 0.0,
        temperature_floor: float = 0.0,
        value_head_size: int = 0,
        latent_rank: int = 0,
        query_rank: int = 0,
        latent_norm_epsilon: float = 0.0,
        embedding_scale: float = 0.0,
        residual_scale: float = 0.0,
        logit_scale: float = 0.0,
        logit_softcap: float = 0.0,
        tied_output: bool = True,
        logit_bias: bool = False,
        weight_dtype: words.WeightDType = "f32",
        embedding_dtype: words.EmbeddingDType = "f32",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        pooled_balance_coef: float = 0.0,
        init_deviation: float = 0.0,
        inference_only: bool = False,
        seed: int = 0,
        context: Context | None = None,
        communicator: Communicator | None = None,
        experts_per_rank: Sequence[int] | None = None,
        choice_scope: words.ChoiceScope = "global",
    ) -> None:
        made_with = dict(locals())  # all arguments by name, as long as nothing else is there

        made = to_c(made_with)
        parent = handle_of(context)
        own = handle("model", parent, made.c_config, communicator, experts_per_rank, choice_scope)
        self._take(own, made, made_with, context)

    @classmethod
    def _from_handle(cls, handle: Handle, context: Context | None) -> Model:
        """Return a model that the library has made, by its handle, whose ``keep`` has the context's."""
        c_config = abi.moe_model_config()
        lib.moe_model_configuration(handle, ctypes.byref(c_config))
        model = cls.__new__(cls)
        made, arguments = from_c(c_config, Model)
        model._take(handle, made, arguments, context)
        return model

    def _take(
        self, handle: Handle, made: ModelConfig, made_with: dict[str, Any], context: Context | None
    ) -> None:
        super().__init__(handle, trainable=not made.c_config.inference_only)
        self._config, self._moe, self._layer_kinds = made.c_config, made.moe, made
        self._remember(Model, made_with, context)
        self._own_tape: ModelTape | None = None

    @property
    def hidden_size(self) -> int:
        """H, the features of a token."""
        return int(self._config.hidden_size)

    @property
    def n_layers(self) -> int:
        """N."""
        return int(self._config.n_layers)

    @property
    def vocabulary_size(self) -> int:
        """V; 0 of an encoder."""
        return int(self._config.vocabulary_size)

    @property
    def communicator(self) -> Communicator | None:
        """That of the ranks over which the experts are spread; None where all are here."""
        found: Communicator | None = self._handle.keep.get("communicator")
        return found

    def _spreads(self, name: str) -> bool:
        _, *ffn = name.split(".ffn.experts.")
        return bool(self.communicator and ffn) and self._is_moe(int(name.split(".")[1]))

    def _is_moe(self, n: int) -> bool:
        return self._layer_kinds.is_moe[n]

    @property
    def layers(self) -> list[Layer]:
        """The ffn of each layer, which belongs to the model: for its parameters, ``prepare`` and the like.

        A dense one is a layer of one expert whose router is ``"external"``.
        """
        if self._config.norm_place == abi.NORM_PLACE["none"]:
            return []
        return [self._layer(n) for n in range(self.n_layers)]

    def prepare(self, prepared: words.Prepared = "f32", *, calibration: Calibration | None = None) -> None:
        """Pack the weights of all layers once, for faster generation, or let go of the packed copies.

        Those of experts, of attention's projections and of the logits; in few bits the embedding too, in
        which tokens are then looked up.  The copies do not follow the weights: after a change prepare again.
        After an error nothing is packed.

        Parameters
        ----------
        prepared : {"none", "f32", "bf16", "int8", "int8_a8", "int4", "int4_a8", "int4_g64", ...}
            ``"f32"``: the same bits.  ``"bf16"``: the only form for weights that are bfloat16; for others
            half the memory to read, other bits, and no tape.  ``"int8"`` and so on: see
            :meth:`Layer.prepare`; what is packed is frozen, and the rest trained over it.  ``"none"``: no
            copies.
        calibration : Calibration, optional
            By what the matrices read of a text, few bits are chosen: see :func:`libmoe.calibrate`.

        Raises
        ------
        InvalidArgumentError
            ``"f32"`` for weights that are bfloat16; ``"q4_k"`` and ``"q6_k"`` of matrices whose inputs are no
            multiple of 256; the calibration is of a model with other parameters, or bits are not few.
        OutOfMemoryError
            There is no memory for a copy.
        NotFiniteError
            Few bits of a weight that is not finite, or too large for its scale.
        BadStateError
            The model is closed.  :meth:`forward` and :meth:`read` raise it too, when weights that they use
            have changed since.
        """
        number = check.choice("prepared", prepared, abi.PREPARED)
        if calibration is None:
            lib.moe_model_prepare(self._handle, number)
        else:
            check.instance("calibration", calibration, Calibration, "libmoe.calibrate(model, text)")
            lib.moe_model_prepare_calibrated(self._handle, number, calibration._handle)
        _memory(self._handle).binds += 1  # what is frozen has changed

    def _layer(self, n: int) -> Layer:
        pointer = ctypes.POINTER(abi.moe_layer)()
        lib.moe_model_layer(self._handle, n, ctypes.byref(pointer))
        own = {"context": self._handle.keep["context"]}
        if self._is_moe(n):
            own["communicator"] = self.communicator
        keep = self._handle.keep.setdefault(("ffn", n), own)
        options = self._moe if self._is_moe(n) else None
        if options is None:
            options = dense_options(self._config, self._layer_kinds.dense_sizes[n])
        return layer_of(Borrowed(pointer, self._handle, keep), options, self._context)

    def _coefficients(self) -> Coefficients:
        kept = {n: self._handle.keep.get(("ffn", n), {}) for n in range(self.n_layers)}
        return {n: dict(keep["coefficients"]) for n, keep in kept.items() if "coefficients" in keep}

    def _set_coefficients(self, coefficients: Coefficients) -> None:
        for n, of_layer in coefficients.items():
            self._layer(n)._set_coefficients({0: of_layer})

    # ----------------------------------------------------------------------------------------------------
    # Forward and backward
    # ----------------------------------------------------------------------------------------------------

    def tape(self) -> ModelTape:
        """Return an empty tape for :meth:`forward` to fill; one serves step after step."""
        return ModelTape(self._handle)

    def forward(
        self,
        tokens: Integers | FloatArray,
        targets: Integers | None = None,
        *,
        training: bool = False,
        step: int = 0,
        tape: ModelTape | Literal[True] | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        valid_mask: Mask | None = None,
        mask: Mask | None = None,
        added_mask: FloatArray | None = None,
        positions: Positions | None = None,
        memory_limit: int | str | None = None,
        logits: bool = False,
        hidden: bool = False,
        loss_mask: Mask | None = None,
        chunk_tokens: int = 0,
    ) -> ModelOutput:
        """Run the model, and compute the loss where there are targets.

        Parameters
        ----------
        tokens : ndarray of int32, [B, S]; of an encoder ndarray of float32, [B, S, H]
        targets : ndarray of int32, [B, S], optional
            The loss is the mean cross-entropy of those that are not ``ignore_index``.
        training : bool
            Whether dropout and exploration act.
        step : int
            Which training step this is, 0 to 2^56 - 1: random numbers differ from step to step.
        tape : ModelTape or True, optional
            Filled for :meth:`backward`.  True is the model's own, which the next such forward fills again.
            The arrays must not change until backward.
        label_smoothing : float
            Share of each target that is spread over the vocabulary, in [0, 1) (arXiv:1512.00567).
        valid_mask : ndarray of bool, [B, S], optional
            False for padding, which no query sees and no expert computes, wherever it stands; leave it out of
            targets yourself.
        mask, added_mask : ndarray of bool, of float32, [S, S], optional
            Which key (column) a query (row) may see, and what is added to its score.
        positions : ndarray of int64, [B, S], optional
            Of the tokens; by default counted over those that are no padding, so that a padded sequence has
            what it has alone.
        memory_limit : int or str, optional
            Bytes of scratch and tape together, for this call and its backward, also as ``"512 MiB"`` or
            ``"1GB"``, in place of the context's.
            See :meth:`plan`; it changes no bit of the result.
        logits, hidden : bool
            Whether they are wanted; an encoder's hidden states always are.
        loss_mask : ndarray of bool, [B, S], optional
            The tokens that count in the layers' auxiliary losses and reports, as in :meth:`Layer.forward`.
        chunk_tokens : int
            Tokens that an ffn computes at once at most, as in :meth:`Layer.forward`; 0 means as planned.

        Raises
        ------
        TypeError, ValueError
            An array has the wrong type, shape or layout, a token is beyond the vocabulary, or a limit too
            small; the text names it.
        NotFiniteError
            A number that should be finite is not; the text says where.
        OutOfMemoryError
            There is no memory for the call.
        """
        given = dict(locals())  # all arguments by name, as long as nothing else is there
        call = self._call(tokens, given)
        self._look_at_length(call.shape[1] if positions is None else 0)
        if tape is not None and tape is not True:
            check.instance("tape", tape, ModelTape, "model.tape(), or True")
        if tape is True:
            self._own_tape = self._own_tape or self.tape()
            tape = self._own_tape
        n_sequences, length = call.shape
        # hidden states are all that an encoder gives
        states = (
            np.empty((n_sequences, length, self.hidden_size), np.float32)
            if hidden or not self.vocabulary_size
            else None
        )
        scores = np.empty((n_sequences, length, self.vocabulary_size), np.float32) if logits else None
        reports = Reports([self._experts(n) for n in range(self.n_layers)], n_sequences * length)
        if tape is not None:
            tape._call = None  # a forward that fails leaves the tape empty
        lib.moe_model_forward(
            self._handle,
            call.c_input,
            None if states is None else states.ctypes.data,
            None if scores is None else scores.ctypes.data,
            None if tape is None else tape._handle,
            reports.c_report,
        )
        if tape is not None:
            tape._call = call
        report = reports.c_report
        return ModelOutput(
            loss=report.loss,
            objective=report.objective,
            aux_loss=report.aux_loss,
            pooled_balance_loss=report.pooled_balance_loss,
            n_targets=report.n_targets,
            logits=scores,
            hidden=states,
            layers=reports.filled(),
            tape=tape,
            _call=call,
        )

    def _call(self, tokens: Any, given: dict[str, Any]) -> Call:
        inputs = ("tokens", "hidden")
        names = (name for name in fields.types(abi.moe_model_input) if name in given and name not in inputs)
        options = {name: given[name] for name in names}
        wanted = ("B", "S") if self.vocabulary_size else ("B", "S", "H")
        if self.vocabulary_size:
            check.array("tokens", tokens, dtype="i32")
        else:
            check.tokens("tokens", tokens, self.hidden_size, "f32")
        if tokens.ndim != len(wanted):
            raise InvalidArgumentError(
                f"tokens: expected shape [{', '.join(wanted)}], got {tokens.shape}; use tokens.reshape"
            )
        options["tokens" if self.vocabulary_size else "hidden"] = tokens
        return Call(tokens.shape, options)

    def _experts(self, n: int) -> tuple[int, int, list[str]] | None:
        """Return experts, choices and losses of layer n; None where it is dense."""
        if self._moe is None or not self._is_moe(n):
            return None
        n_experts, top_k = self._moe["n_experts"], self._moe["top_k"]
        choices = n_experts if self._moe["router"] == "expert_choice" else top_k
        return n_experts, choices, list(self._moe["losses"] or ())

    def backward(
        self,
        output: ModelOutput,
        d_objective: float = 1.0,
        dhidden: FloatArray | None = None,
        *,
        optimizer: Optimizer | None = None,
        clip_factor: float = 0.0,
    ) -> FloatArray | None:
        """Add the gradients of d_objective * objective + <dhidden, hidden> to those of the parameters.

        Parameters
        ----------
        output : ModelOutput
            Of a forward with a tape; the parameters must be as they were then.
        d_objective : float
        dhidden : ndarray of float32, [B, S, H], optional
        optimizer : Optimizer, optional
            Made from all parameters that are not frozen: the call is :meth:`zero_grad`, backward and a step
            in one, with the same bits.  A model that was made with ``unallocated="expert_gradients"`` (of
            `moe`, or of :meth:`from_pretrained`) then has the gradient of one expert at a time, which takes
            less memory than all of them.  Afterwards the output's tape is of no more use.
        clip_factor : float
            Of the optimizer, above 0: what every gradient is multiplied by; 0 means 1.

        Returns
        -------
        ndarray of float32, [B, S, H], or None
            The gradient with respect to an encoder's input.

        Raises
        ------
        BadStateError
            The output has no tape, or it has been filled again; or the model is inference_only, or closed; or
            it has no memory for some gradient, and there is no optimizer.
        """
        check.instance("output", output, ModelOutput, "what model.forward(..., tape=True) returned")
        tape, call = output.tape, output._call
        if tape is None:
            raise BadStateError("output: has no tape; run model.forward(..., tape=True)")
        if tape._call is not call:
            raise BadStateError(
                "output: its tape was filled by another forward since; give each a tape of its own"
            )
        shape = (*call.shape, self.hidden_size)
        dinput = None if self.vocabulary_size else np.empty(shape, np.float32)
        arguments = (
            self._handle,
            tape._handle,
            call.c_input,
            check.number("d_objective", d_objective),
            check.address("dhidden", dhidden, shape),
            None if dinput is None else dinput.ctypes.data,
        )
        factor = check.number("clip_factor", clip_factor)
        if optimizer is None:
            if factor:
                raise InvalidArgumentError(f"clip_factor = {factor}, but optimizer is None")
            lib.moe_model_backward(*arguments)
        else:
            check.instance("optimizer", optimizer, Optimizer, "one such as libmoe.AdamW")
            lib.moe_model_backward_step(*arguments, optimizer._handle, factor)
        return dinput

    def plan(
        self,
        n_sequences: int,
        sequence_length: int,
        *,
        training: bool = True,
        memory_limit: int | str | None = None,
        chunk_tokens: int = 0,
    ) -> ModelPlan:
        """Return the memory of a forward, and of a backward after it in training; nothing is allocated.

        A limit is kept by keeping less for backward in as few layers as possible: first of the ffn, from
        the first layer on, then of attention; then by chunks of tokens within the ffn.  No choice changes a
        bit of the result.

        Raises
        ------
        InvalidArgumentError
            The limit is too small; the text says what would do.
        """
        shape = (
            check.integer("n_sequences", n_sequences, ctypes.c_int64),
            check.integer("sequence_length", sequence_length, ctypes.c_int64),
        )
        limits = {"training": training, "memory_limit": memory_limit, "chunk_tokens": chunk_tokens}
        call = Call(shape, limits)
        some = np.zeros(1, np.int32)  # whether there are targets counts, not which
        if self.vocabulary_size:
            call.c_input.targets = some.ctypes.data
        return planned(self._handle, self.n_layers, call, training)

    # ----------------------------------------------------------------------------------------------------
    # Generation
    # ----------------------------------------------------------------------------------------------------

    def cache(self, n_sequences: int, max_length: int) -> Cache:
        """Return an empty cache for :meth:`read`, with room for max_length tokens of each sequence."""
        return Cache(self._handle, n_sequences, max_length)

    def read(
        self,
        cache: Cache,
        tokens: Integers,
        *,
        valid_mask: Mask | None = None,
        positions: Positions | None = None,
    ) -> FloatArray:
        """Read more tokens of each sequence of a causal model; evaluation.

        Parameters
        ----------
        cache : Cache
            Of this model.
        tokens : ndarray of int32, [B, n]
        valid_mask : ndarray of bool, [B, n], optional
            False for padding: in front of a prompt, behind one, or in every step of one that has ended.
        positions : ndarray of int64, [B, n], optional
            Of the tokens; by default counted over all that were read and are no padding.

        Returns
        -------
        ndarray of float32, [B, V]
            Logits of the last token that is no padding, as if each sequence had been read alone (0 where all
            are padding): those of :meth:`forward` over the whole sequence, bit for bit with
            matmul ``"native"`` (experts with a capacity, and those that choose their tokens, apart).

        Raises
        ------
        InvalidArgumentError
            The cache is full, or a token is beyond the vocabulary.
        BadStateError
            The cache is another model's.
        """
        check.instance("cache", cache, Cache, "model.cache(n_sequences, max_length)")
        shape = check.array("tokens", tokens, dtype="i32").shape
        count = shape[-1] if shape else 0
        check.array("tokens", tokens, (cache.n_sequences, count), dtype="i32")
        given = {"valid_mask": valid_mask, "positions": positions}
        self._look_at_length(cache.length + count if positions is None else 0)
        options = fields.filled(abi.moe_read_options, {"B": shape[:1], "n": shape[1:]}, **given)
        logits = np.empty((cache.n_sequences, self.vocabulary_size), np.float32)
        lib.moe_model_read_with(
            self._handle,
            cache._handle,
            tokens.ctypes.data,
            count,
            ctypes.byref(options),
            logits.ctypes.data,
        )
        cache._length += count
        return logits
