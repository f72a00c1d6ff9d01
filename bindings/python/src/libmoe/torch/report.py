"""What forward tells about a call, with the parts through which autograd flows as tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from .._native.reports import Report as Numbers
from .._repr import described


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """Losses and loads of one call, as :class:`libmoe.Report` has them; arrays are tensors.

    T tokens, E experts, C choices a token, B sequences.

    Attributes
    ----------
    aux_loss, mean_probability [E], sequence_probability [B, E] : Tensor
        Differentiable: add ``aux_loss`` to the objective, and make losses of your own of the others.
    balance_loss, z_loss, entropy, max_over_mean, variation, dead_share : float
    n_dropped, n_valid : int
    tokens_per_expert, dropped_per_expert [E], expert_indices, expert_weights [T, C] : Tensor
    sequence_counts [B, E], sequence_valid [B] : Tensor
    losses : dict of str to float
    """

    aux_loss: torch.Tensor
    mean_probability: torch.Tensor
    sequence_probability: torch.Tensor
    balance_loss: float
    z_loss: float
    entropy: float
    max_over_mean: float
    variation: float
    dead_share: float
    n_dropped: int
    n_valid: int
    tokens_per_expert: torch.Tensor
    dropped_per_expert: torch.Tensor
    expert_indices: torch.Tensor
    expert_weights: torch.Tensor
    sequence_counts: torch.Tensor
    sequence_valid: torch.Tensor
    losses: dict[str, float]

    def __repr__(self) -> str:
        """Name the numbers; of tensors the type and shape."""
        shown = {name: _shown(value) for name, value in vars(self).items()}
        return described(self, ", ".join(f"{name}={value}" for name, value in shown.items()))


def report_of(numbers: Numbers, aux_loss: torch.Tensor, mean: torch.Tensor, sequence: torch.Tensor) -> Report:
    """Return the library's report with these tensors in it."""
    found = {field.name: _told(getattr(numbers, field.name)) for field in dataclasses.fields(numbers)}
    found |= {"aux_loss": aux_loss, "mean_probability": mean, "sequence_probability": sequence}
    return Report(**found)


def _told(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _shown(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if value.ndim == 0:
        return repr(value.item())
    return f"{str(value.dtype).partition('.')[2]} {list(value.shape)}"
