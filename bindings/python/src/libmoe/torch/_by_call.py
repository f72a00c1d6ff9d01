"""The library's experts by call, on tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import _by_call
from .._by_call import Options, Part, Parts, Sizes, pieces
from .._native import abi
from .._native.library import lib
from ._form import MATRICES, Form, form_of
from ._memory import lend
from ._threads import context

if TYPE_CHECKING:
    from ..expert_ranks import ExpertRanks
    from .prepared import Prepared

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
INDICES = {torch.int32: "i32", torch.int64: "i64"}

_NUMBERS = {dtype: abi.DTYPE[word] for dtype, word in (DTYPES | INDICES).items()}
_FEW = 256  # choices in a call whose saved bytes are not worth counting


class Experts(NamedTuple):
    """What a call's experts are, apart from their weights."""

    form: Form
    n_experts: int
    intermediate_size: int
    glu: tuple[float, float, float]  # limit, alpha, offset

    @classmethod
    def of(cls, word: str, sizes: Sequence[int], glu: Sequence[float]) -> Experts:
        """Return what :meth:`told` told."""
        return cls(form_of(word), sizes[0], sizes[1], (glu[0], glu[1], glu[2]))

    def told(self) -> tuple[str, list[int], list[float]]:
        """Return them as the operators are given them."""
        return self.form.word(), [self.n_experts, self.intermediate_size], list(self.glu)

    def slots(self, tensors: Sequence[Any]) -> Iterator[tuple[str, bool, Sequence[Any]]]:
        """Yield each slot's name, whether its experts are apart, and its tensors."""
        return _slots(self.form, self.n_experts, tensors)

    def described(self, x: Tensor, tensors: Sequence[Tensor]) -> Described:
        """Return them with their weights as the library reads them; looked up where they were before."""
        return _described(self, x.shape[-1], x.dtype, tuple(map(place, tensors)))

    def gradient_parts(self, tensors: Sequence[Tensor | None]) -> Parts:
        """Return where it writes their gradients, elsewhere each time; slots of None are left out."""
        return _parts(self.form, self.n_experts, [None if t is None else place(t) for t in tensors])


class Spread(NamedTuple):
    """Over which ranks a call is, and how many bytes it saves on this one, as all of them have agreed."""

    ranks: ExpertRanks
    saved_bytes: int


Place = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""Where a tensor is: address, shape, strides, type."""


def place(tensor: Tensor) -> Place:
    """Return where a tensor is."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


class Described:
    """Experts with their weights, and how many bytes calls of few tokens save at the most."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.most: dict[tuple[int, int, bool], int] = {}  # of tokens, choices for each, over frozen weights?


@functools.lru_cache(maxsize=1024)
def _described(
    experts: Experts, hidden_size: int, io_dtype: torch.dtype, places: tuple[Place, ...]
) -> Described:
    form = experts.form
    activation = None if form.kind == "linear" else form.activation
    sizes = Sizes(experts.n_experts, hidden_size, experts.intermediate_size)
    options = Options(activation, *experts.glu, form.weight_on_input, DTYPES[io_dtype])
    return Described(_by_call.config(form.kind, sizes, options, _parts(form, experts.n_experts, places)))


def _slots(form: Form, n_experts: int, given: Sequence[Any]) -> Iterator[tuple[str, bool, Sequence[Any]]]:
    begin = 0
    for slot, spread, count in zip(form.slots, form.spread, form.counts(n_experts)):
        yield slot, spread, given[begin : begin + count]
        begin += count


def _parts(form: Form, n_experts: int, places: Sequence[Place | None]) -> Parts:
    found = []
    for slot, spread, given in _slots(form, n_experts, places):
        if given[0] is None:
            continue
        _, shape, strides, dtype = given[0]
        if spread:
            shape, strides = (n_experts, *shape), (0, *strides)
        out, into = (2, 1) if slot in MATRICES and form.transposed else (1, 2)
        inputs = strides[into] if slot in MATRICES else 0
        for piece in pieces(slot, shape[out], strides[out], interleaved=form.fused == "interleaved"):
            addresses = [place[0] + piece.offset * dtype.itemsize for place in given]
            found.append(
                Part(piece.part, DTYPES[dtype], addresses, spread, (strides[0], piece.output, inputs))
            )
    return Parts(found)


def _call(
    x: Tensor, ids: Tensor, weights: Tensor, prepared: Prepared | None, ranks: ExpertRanks | None = None
) -> Any:
    return _by_call.call(
        x.shape[0],
        ids.shape[1],
        ids.data_ptr(),
        weights.data_ptr(),
        _NUMBERS[ids.dtype],
        _NUMBERS[weights.dtype],
        None if prepared is None else prepared._handle,
        None if ranks is None else ranks._handle,
    )


def agreed_bytes(
    experts: Experts,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    prepared: Prepared | None,
    ranks: ExpertRanks,
    *,
    saves: bool,
) -> int:
    """Return how many bytes a call over ranks saves on this one: 0 where no rank saves, for all ask."""
    given, call = experts.described(x, tensors), _call(x, ids, weights, prepared, ranks)
    return int(_by_call.planned(context()._handle, given.config, call, None, saves=saves).tape_bytes)


def _saved_bytes(handle: Any, given: Described, call: Any, prepared: Prepared | None) -> int:
    """Return how many bytes a call saves; of a short one, the most that it may."""
    n_tokens, top_k = call.n_tokens, call.top_k
    if n_tokens * top_k > _FEW:
        return int(_by_call.planned(handle, given.config, call, None, saves=True).tape_bytes)
    size = n_tokens, top_k, prepared is not None and prepared.is_frozen
    if size not in given.most:
        packed = None if prepared is None else prepared._handle
        any_choices = _by_call.call(n_tokens, top_k, None, None, call.index_dtype, call.routing_dtype, packed)
        plan = _by_call.planned(handle, given.config, any_choices, None, saves=True)
        given.most[size] = int(plan.tape_bytes)
    return given.most[size]


def forward(
    experts: Experts,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    prepared: Prepared | None,
    *,
    saves: bool,
    described: Described | None = None,
    spread: Spread | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return y [T, H], and the bytes that backward wants; None where nothing is saved.

    ``described`` is what the experts and their tensors are, where that is known.
    """
    ranks, planned = spread or (None, None)
    handle, call = context()._handle, _call(x, ids, weights, prepared, ranks)
    given = described or experts.described(x, tensors)
    y = torch.empty_like(x)
    at, saved, size, begin = y.data_ptr(), None, 0, None
    if saves:
        size = _saved_bytes(handle, given, call, prepared) if planned is None else planned
        saved = torch.empty(size, dtype=torch.uint8)
        begin = saved.data_ptr()
    lib.moe_experts_forward(handle, given.config, call, x.data_ptr(), at, begin, size, None)
    return y, saved


def backward(
    experts: Experts,
    dy: Tensor,
    saved: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    tensors: Sequence[Tensor],
    prepared: Prepared | None,
    need: Sequence[bool],
    ranks: ExpertRanks | None = None,
) -> list[Tensor]:
    """Return the gradients of x, weights and the tensors, those that are needed, in this order."""
    if prepared is not None and not prepared.is_frozen:
        prepared = None  # backward reads the tensors
    given, call = experts.described(x, tensors), _call(x, ids, weights, prepared, ranks)
    dx = torch.empty_like(x) if need[0] else None
    d_weights = torch.empty_like(weights) if need[1] else None
    gradients: list[Tensor | None] = []
    for _, _, own in experts.slots(tensors):
        # The library writes a part of all experts, or none: of some alone the others' are thrown away.
        wanted = any(need[2 + len(gradients) :][: len(own)])
        gradients += [lend(t) if wanted else None for t in own]
    written = _by_call.gradients(
        None if dx is None else dx.data_ptr(),
        None if d_weights is None else d_weights.data_ptr(),
        experts.gradient_parts(gradients) if any(need[2:]) else None,
        overwrite=True,
    )
    size = saved.numel()
    begin = saved.data_ptr() if size else None
    lib.moe_experts_backward(
        context()._handle, given.config, call, begin, size, x.data_ptr(), dy.data_ptr(), written
    )
    made = [dx, d_weights, *gradients]
    return [gradient for gradient, needed in zip(made, need) if needed and gradient is not None]
