"""Experts without a router, over torch's tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import words
from .._keywords import keywords
from .._native import check
from ..errors import ArgumentTypeError
from ..expert_ranks import ExpertRanks
from ..experts import FORMS
from ._by_call import Experts
from ._first_order import refuse_transforms
from ._laid_out import LaidOut, Pair, Weight, laid_out
from ._ops import run
from .prepared import Prepared


@keywords
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Pair | None,
    down: Weight | None,
    *,
    gate_up_bias: Pair | None = None,
    down_bias: Weight | None = None,
    expert_kind: words.ExpertKind = "gated",
    activation: words.Activation = "silu",
    transposed: bool = False,
    interleaved: bool = False,
    glu_limit: float = 0.0,
    glu_alpha: float = 0.0,
    glu_offset: float = 0.0,
    weight_on_input: bool = False,
    prepared: Prepared | None = None,
    ranks: ExpertRanks | None = None,
) -> Tensor:
    """Return y[t] = sum over k of weights[t, k] * expert(ids[t, k])(x[t]), of x's shape.

    The weights are read where they are, in any strides.  Autograd flows to x, to ``weights`` and to every
    weight and bias that wants it; what is frozen costs nothing.  Works in ``torch.compile``.

    Parameters
    ----------
    x : Tensor of float32 or bfloat16, [..., H]
        Under ``torch.autocast`` it is converted to bfloat16 where that is asked for.
    ids : Tensor of int64 or int32, [..., K]
        0 to E - 1; any other number is none.
    weights : Tensor, [..., K]
        The routing weights, float32, bfloat16 or float16: as they are, also under ``torch.autocast``.
    gate_up : Tensor
        ``[E, 2 I, H]``, gate rows and then up rows; or a tuple (gate, up) of ``[E, I, H]`` each; of
        ``"mlp"`` experts ``[E, I, H]``, of ``"linear"`` ones None.  In place of any tensor a list has one for
        each expert, without the first dimension.  All matrices have one type: float32, bfloat16 or float16.
    down : Tensor, [E, H, I]
        Of ``"linear"`` experts their matrix, [E, H, H].
    gate_up_bias, down_bias : Tensor, [E, 2 I] and [E, H], optional
        Given in the form that gate_up has.
    expert_kind : {"gated", "mlp", "linear"}
        See :class:`libmoe.Layer`, and so ``activation``, ``glu_limit``, ``glu_alpha``, ``glu_offset`` and
        ``weight_on_input``.
    transposed : bool
        Whether the matrices are [E, H, 2 I] and [E, I, H].
    interleaved : bool
        Whether gate and up take turns in gate_up.
    prepared : Prepared, optional
        Of the same weights, from :func:`prepare`.  Of few bits (int8, int4, ...) they are frozen weights,
        over which x, the routing weights and biases have gradients, those of experts with the packed values;
        where autograd records, tokens stay floats, with ``_a8`` and ``_a16`` too.
    ranks : libmoe.ExpertRanks, optional
        Over which the experts are spread: all ranks call, each with its own experts' weights and with tokens
        of its own, also with none; ``ids`` are numbers among the experts of all.  All of them go back, where
        one does.  Outside of ``torch.compile``'s graphs.

    Raises
    ------
    TypeError, ValueError
        A tensor has the wrong type, shape or device; the text names it.
    BadStateError
        ``prepared``, and the weights have changed since.

    Examples
    --------
    >>> import torch, libmoe.torch
    >>> x, gate_up, down = torch.randn(5, 16), torch.randn(4, 48, 16), torch.randn(4, 16, 24)
    >>> weights, ids = torch.randn(5, 4).softmax(-1).topk(2)
    >>> libmoe.torch.experts(x, ids, weights, gate_up, down).shape
    torch.Size([5, 16])
    """
    refuse_transforms()
    if prepared is not None and not isinstance(prepared, Prepared):
        raise ArgumentTypeError(
            f"prepared: expected what libmoe.torch.prepare returns, got {type(prepared).__name__}"
        )
    given = laid_out(
        gate_up,
        down,
        gate_up_bias,
        down_bias,
        expert_kind=expert_kind,
        activation=activation,
        transposed=transposed,
        interleaved=interleaved,
        weight_on_input=weight_on_input,
        prepared=prepared,
    )
    given.require_tokens(x, ids, weights)
    if ranks is not None and not isinstance(ranks, ExpertRanks):
        raise ArgumentTypeError(f"ranks: expected a libmoe.ExpertRanks, got {type(ranks).__name__}")
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16:
        x = x.to(torch.bfloat16)
    return compute(given, x, ids, weights, (glu_limit, glu_alpha, glu_offset), prepared, ranks)


@keywords
def prepare(
    gate_up: Pair,
    down: Weight | None,
    *,
    form: words.Prepared = "f32",
    expert_kind: words.ExpertKind = "gated",
    transposed: bool = False,
    interleaved: bool = False,
) -> Prepared:
    """Pack the experts' weights once, for :func:`experts`: decoding gains most.

    The packed copy takes 4, 2 or fewer bytes a weight and does not follow the tensors: a call after they have
    changed is refused.  It may be given without the tensors (None in their place), which may then be freed.

    Parameters
    ----------
    gate_up, down, expert_kind, transposed, interleaved
        As of :func:`experts`.
    form : {"f32", "bf16", "int8", "int8_a8", "int4", "int4_a8", "int4_g64", ...}
        ``"f32"``: the same bits.  ``"bf16"``: the only form of bfloat16 weights; of others half the memory to
        read, rounded, and for inference alone.  ``"int8"`` and so on: few bits, see
        :meth:`libmoe.Layer.prepare`; adapters can be trained over them.
    """
    check.choice("form", form, FORMS)
    given = laid_out(
        gate_up,
        down,
        None,
        None,
        expert_kind=expert_kind,
        activation="silu",
        transposed=transposed,
        interleaved=interleaved,
        weight_on_input=False,
        prepared=None,
    )
    experts = Experts(given.form, given.n_experts, given.intermediate_size, (0.0, 0.0, 0.0))
    return Prepared(experts, given.hidden_size, given.tensors, form)


def compute(
    given: LaidOut,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    glu: tuple[float, float, float],
    prepared: Prepared | None,
    ranks: ExpertRanks | None = None,
) -> Tensor:
    """Return y of x's shape; all of it has been looked at."""
    y = run(
        _rows(x),
        _rows(ids),
        _rows(weights),
        given.tensors,
        Experts(given.form, given.n_experts, given.intermediate_size, glu),
        0 if prepared is None else prepared.number,
        ranks=ranks,
    )
    return y if x.ndim == 2 else y.reshape(x.shape)


def _rows(tensor: Tensor) -> Tensor:
    """Return [..., N] as [T, N] without gaps."""
    return (tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1])).contiguous()
