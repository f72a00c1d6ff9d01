"""Weights of experts, packed once for many calls."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._by_call import packed
from .._native import abi
from .._repr import described
from ..errors import BadStateError
from ._by_call import Experts
from ._threads import context

_numbers = itertools.count(1)
_live: weakref.WeakValueDictionary[int, Prepared] = weakref.WeakValueDictionary()

Key = tuple[Any, ...]


class Prepared:
    """Packed weights, which :func:`libmoe.torch.experts` reads in place of the tensors they were made of.

    Made by :func:`libmoe.torch.prepare`.  It does not follow the tensors: a call with tensors that have
    changed since is refused.
    """

    def __init__(self, experts: Experts, hidden_size: int, tensors: Sequence[Tensor], form: str) -> None:
        none = torch.empty(0, hidden_size, dtype=torch.float32, device="cpu")
        given = experts.described(none, tensors)
        self._handle = packed(context()._handle, given.config, abi.PREPARED[form])
        self.form = form
        self.experts, self.hidden_size = experts, hidden_size
        self._keys = [key_of(tensor) for tensor in tensors]
        # Few bits are weights of their own, which nothing changes any more: they may be trained over.
        self.is_frozen = form not in ("f32", "bf16")
        self._rounded = form != ("bf16" if tensors[0].dtype is torch.bfloat16 else "f32")
        self._stale = ""
        self.is_sole = False  # whether the tensors themselves are gone
        self.number = next(_numbers)
        _live[self.number] = self

    def __repr__(self) -> str:
        """Say what is packed."""
        return described(self, f"{self.experts.n_experts} experts, {self.form!r}")

    def __reduce__(self) -> Any:
        """Leave the packed weights behind: a copy of what holds them has the tensors, or is refused."""
        if self.is_sole:
            raise BadStateError(
                "prepared: the weights themselves were released (release=True), and packed ones can be "
                "neither copied nor saved; load the model again, and copy or save it before it is prepared"
            )
        return _none, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Refuse a copy of it alone; with the module that holds it it is left behind, as in pickle."""
        if not memo:  # nothing around it is copied
            raise BadStateError(
                "prepared: packed weights cannot be copied; use them as they are, or prepare again"
            )
        return self.__reduce__() and None

    def __copy__(self) -> Prepared:
        """Return itself: nothing in it changes but that it may become stale, for all who have it."""
        return self

    def spoil(self, why: str) -> None:
        """Refuse all calls from now on."""
        self._stale = why

    def require_usable(self, tensors: Sequence[Tensor], *, has_matrices: bool, saves: bool) -> None:
        """Refuse matrices that were not packed or have changed since, and a backward that there is not."""
        if saves and self.is_frozen:
            if has_matrices and any(t.requires_grad for t, _ in zip(tensors, self._keys)):
                raise BadStateError(
                    f"prepared: weights packed as {self.form!r} are frozen, but the tensors they were made "
                    "of want a gradient; call requires_grad_(False) on these, or compute without prepared"
                )
        elif saves and (self._rounded or not has_matrices):
            what = f"packed as {self.form!r}" if self._rounded else "released"
            raise BadStateError(
                f"prepared: weights that were {what} are for inference; call it under torch.no_grad() or "
                "torch.inference_mode()"
            )
        why = self._stale
        if not why and has_matrices:
            now = [key_of(tensor) for tensor, _ in zip(tensors, self._keys)]
            if now != self._keys:
                same = [key[:-1] for key in now] == [key[:-1] for key in self._keys]
                why = (
                    "the weights have changed since"
                    if same
                    else "the weights given are not those it was made of"
                )
        if why:
            raise BadStateError(f"prepared: {why}; prepare the experts again, or compute without")


def key_of(tensor: Tensor) -> Key:
    """Return what changes when a tensor's memory or, as far as torch counts it, its values change."""
    version = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, version


def prepared_of(number: int) -> Prepared | None:
    """Return the packed weights of this number; 0 is none."""
    if number == 0:
        return None
    found = _live.get(number)
    if found is None:
        raise BadStateError("prepared: these packed weights are gone; prepare the experts again")
    return found


def _none() -> None:
    return None
