"""Whole models: a stack of transformer layers, dense or MoE, as an encoder or a language model."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from . import words
from ._batches import Batches
from ._ffn import dense_options, layer_of
from ._freezing import Freezing
from ._keywords import keywords
from ._model_config import ModelConfig, from_c, to_c
from ._native import abi, check
from ._native.library import Borrowed, Handle, lib
from ._ranks import handle
from ._tensors import Coefficients, _memory
from .calibration import Calibration
from .communicator import Communicator
from .context import Context, handle_of
from .errors import ArgumentTypeError
from .layer import Layer


@keywords
class Model(Batches, Freezing):
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
    communicator, experts_per_rank, choice_scope, strategy, hot_experts
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
        strategy: words.Strategy = "exclusive",
        hot_experts: int | Sequence[int] = 0,
    ) -> None:
        made_with = dict(locals())  # all arguments by name, as long as nothing else is there

        made = to_c(made_with)
        given = (handle_of(context), ctypes.byref(made.c_config))
        placed = (communicator, experts_per_rank, choice_scope, strategy, hot_experts)
        own = handle("model", "create", given, *placed)
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

    @property
    def communicator(self) -> Communicator | None:
        """That of the ranks over which the experts are spread; None where all are here."""
        found: Communicator | None = self._handle.keep.get("communicator")
        return found

    def _spreads(self, name: str) -> bool:
        _, *ffn = name.split(".ffn.experts.")
        return bool(self._has_spread_experts and ffn) and self._is_moe(int(name.split(".")[1]))

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
        if isinstance(prepared, Mapping):
            raise ArgumentTypeError(
                "prepared: patterns of names are for Model.from_pretrained, which packs while it reads; "
                "give one form for all weights, such as 'int4_a8'"
            )
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
            own["is_spread"] = self._handle.keep.get("is_spread", True)
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
