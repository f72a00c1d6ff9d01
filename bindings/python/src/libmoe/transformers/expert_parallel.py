"""Expert parallelism: ``DistributedConfig(ep_implementation="libmoe")``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers.distributed.expert_parallel import AllToAllEP, EPImplementation

from ..expert_ranks import ExpertRanks
from ..torch.communicator import communicator
from .forward import computed, unsuitable, warn_once

_RANKS = "_libmoe_ranks"  # attribute of a mesh


class LibmoeEP(EPImplementation):
    """Experts of a module over the ranks of a mesh: each token is computed once, by its experts' ranks.

    The ranks of a tensor-parallel group, which hold one batch, each bring a stretch of its tokens.  What
    libmoe does not compute goes to transformers' ``all_to_all``.
    """

    def __init__(self, experts: nn.Module, ep_mesh: DeviceMesh, tp_mesh: DeviceMesh) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        self._experts = experts
        own: Any = experts.num_experts
        self._ranks = _ranks(ep_mesh, own * ep_mesh.size())
        self._theirs = AllToAllEP(experts, ep_mesh, tp_mesh)

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the experts' output for the tokens of this rank.

        Parameters
        ----------
        hidden_states : Tensor, [T, H]
        top_k_index : Tensor of int64, [T, K]
            Numbers among the experts of all ranks.
        top_k_weights : Tensor, [T, K]
        """
        reason = unsuitable(self._experts, hidden_states)
        if reason:
            warn_once(f"{type(self._experts).__name__} falls back to all_to_all: {reason}")
            theirs: Tensor = self._theirs(hidden_states, top_k_index, top_k_weights)
            return theirs
        if self.tp_mesh.size() == 1:
            return computed(self._experts, hidden_states, top_k_index, top_k_weights, self._ranks)
        x, ids, weights = (
            self._laid(each, Replicate()).redistribute(placements=[Shard(0)]).to_local()
            for each in (hidden_states, top_k_index, top_k_weights)
        )
        y, shape = computed(self._experts, x, ids, weights, self._ranks), hidden_states.shape
        found: Tensor = self._laid(y, Shard(0), shape=shape, stride=(shape[1], 1)).full_tensor()
        return found

    def _laid(self, tensor: Tensor, placement: Any, **whole: Any) -> Any:
        """Return a tensor as part of one over the ranks that hold the same batch."""
        return DTensor.from_local(tensor.contiguous(), self.tp_mesh, [placement], run_check=False, **whole)


def _ranks(mesh: DeviceMesh, n_experts: int) -> ExpertRanks:
    """Return the ranks of a mesh, whose layers share them."""
    known: dict[int, ExpertRanks] = vars(mesh).setdefault(_RANKS, {})
    if n_experts not in known:
        with torch.device("cpu"):  # models are made without memory
            known[n_experts] = ExpertRanks(communicator(mesh.get_group()), n_experts)
    return known[n_experts]
