"""What a model computes: forward, backward, their memory, and reading into a cache."""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import numpy as np

from ._keywords import keywords
from ._model_call import Call, Integers, Mask, Positions, Reports, planned
from ._model_config import ModelConfig
from ._native import abi, check, fields
from ._native.check import FloatArray
from ._native.library import lib
from ._pretrained import Pretrained
from .errors import BadStateError, InvalidArgumentError
from .generation import Cache
from .model_output import ModelOutput, ModelPlan, ModelTape
from .optim import Optimizer


@keywords
class Passes(Pretrained):
    """What :class:`Model` computes."""

    _config: abi.moe_model_config
    _moe: dict[str, Any] | None  # what all MoE layers are made of
    _layer_kinds: ModelConfig
    _own_tape: ModelTape | None = None

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

    def _is_moe(self, n: int) -> bool:
        return self._layer_kinds.is_moe[n]

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
                f"tokens: expected shape [{', '.join(wanted)}], got {tokens.shape}; "
                f"use tokens.reshape{check.of_rank(tokens.shape, len(wanted))}"
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
            With an optimizer: what every gradient is multiplied by, above 0; 0, the default, is 1.

        Returns
        -------
        ndarray of float32, [B, S, H], or None
            The gradient with respect to an encoder's input.

        Raises
        ------
        BadStateError
            The output has no tape, or it has been filled again; or the model is inference_only, or closed; or
            it has no memory for some gradient, and there is no optimizer.

        After an exception of a signal handler, such as KeyboardInterrupt, the gradients are partly added:
        call :meth:`zero_grad`. With an optimizer it may also be that the step has been made: signals
        are looked after until the last layer's backward begins, and again after the first layer's. A
        gradient that is not finite is no error with an optimizer either: it spoils its parameter.
        """
        check.instance("output", output, ModelOutput, "what model.forward(..., tape=True) returned")
        tape, call = output.tape, output._call
        if tape is None:
            raise BadStateError("output: has no tape; run model.forward(..., tape=True)")
        if tape._call is not call:
            raise BadStateError(
                "output: its tape was filled by another forward since, or backward has stepped the "
                "parameters; give each output a tape of its own, and run model.forward again after a step"
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
        if optimizer is None:
            if check.number("clip_factor", clip_factor):
                raise InvalidArgumentError(f"clip_factor = {clip_factor}, but optimizer is None")
            lib.moe_model_backward(*arguments)
        else:
            check.instance("optimizer", optimizer, Optimizer, "one such as libmoe.AdamW")
            factor = optimizer._for_backward_of(self.parameters.values(), clip_factor)
            lib.moe_model_backward_step(*arguments, optimizer._handle, factor)
            tape._call = None  # parameters have moved
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
