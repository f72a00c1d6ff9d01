"""What a call of a module's experts comes to, kept for its next calls, which nearly always find it so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..torch._by_call import Described, Experts, Place, place
from ..torch._laid_out import LaidOut
from ..torch._ops import run
from ..torch.prepared import Prepared
from .known import Kept, kept

# Attributes of a module.
PACKED = "_libmoe_prepared"
READY = "_libmoe_ready"

WEIGHTS = (torch.float32, torch.bfloat16)


class Ready:
    """A module's experts as they were found; nothing of it keeps the module's tensors."""

    def __init__(self, state: Kept, names: list[str], given: LaidOut, packed: Prepared | None) -> None:
        self._state, self._names, self._packed = state, names, packed
        self._places: list[Place] = [place(tensor) for tensor in given.tensors]
        self._given = given._replace(tensors=[])
        known = state.known
        glu = (known.limit, known.alpha, known.offset)
        self._experts = Experts(given.form, given.n_experts, given.intermediate_size, glu)
        self._described: dict[torch.dtype, Described] = {}  # by the tokens' type

    def __reduce__(self) -> Any:
        """Leave it behind: a copy of the module finds its own."""
        return _none, ()

    def fits(self, x: Tensor, ids: Tensor, weights: Tensor) -> bool:
        """Whether tokens and routing are as nearly always."""
        return weights.dtype in WEIGHTS and self._given.fits(x, ids, weights)

    def tensors(self, module: nn.Module) -> list[Tensor] | None:
        """Return the module's weights if it is what it was, and they are where they were."""
        own = vars(module)
        packed = self._packed
        if own.get(PACKED) is not packed:
            return None
        found = list(map(own["_parameters"].get, self._names))
        if packed is not None and module.training and not (packed.is_frozen and _are_frozen(found)):
            return None
        try:
            places = list(map(place, found))
        except (AttributeError, RuntimeError):  # one is gone, or is none with memory for the time being
            return None
        return found if places == self._places and self._state.is_current(module) else None

    def compute(self, x: Tensor, ids: Tensor, weights: Tensor, tensors: list[Tensor]) -> Tensor:
        """Return y."""
        described = self._described.get(x.dtype)
        if described is None:
            described = self._described[x.dtype] = self._experts.described(x, tensors)
        number = 0 if self._packed is None else self._packed.number
        rows = x.contiguous(), ids.contiguous(), weights.contiguous()
        return run(*rows, tensors, self._experts, number, described)


def made_ready(module: nn.Module, given: LaidOut, packed: Prepared | None) -> Ready | None:
    """Return what is kept of a call; nothing of weights that are no parameters of the module's own."""
    parameters = vars(module)["_parameters"]
    names = {id(parameter): name for name, parameter in parameters.items()}
    if all(id(tensor) in names for tensor in given.tensors):
        return Ready(kept(module), [names[id(tensor)] for tensor in given.tensors], given, packed)
    return None


def _are_frozen(tensors: list[Tensor | None]) -> bool:
    return not any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _none() -> None:
    return None
