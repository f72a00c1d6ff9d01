"""The experts implementation: what transformers calls in place of a class's own forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import grouped_mm_experts_forward

from ..errors import BadStateError
from ..expert_ranks import ExpertRanks
from ..torch._form import Form
from ..torch._laid_out import LaidOut, require_shape
from ..torch._ops import is_watched
from ..torch.experts import compute
from ..torch.prepared import Prepared
from .known import known
from .ready import PACKED, READY, WEIGHTS, made_ready


def experts_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Return the experts' output, of hidden_states' shape and type.

    Parameters
    ----------
    self : Module
        Of a class with ``@use_experts_implementation``.
    hidden_states : Tensor, [T, H]
    top_k_index : Tensor of int64, [T, K]
        Numbers that are no expert's are skipped.
    top_k_weights : Tensor, [T, K]
    """
    if not torch.compiler.is_compiling():
        ready = vars(self).get(READY)
        if ready is not None and ready.fits(hidden_states, top_k_index, top_k_weights):
            tensors = ready.tensors(self)
            if tensors is not None:
                y: Tensor = ready.compute(hidden_states, top_k_index, top_k_weights, tensors)
                return y
    reason = unsuitable(self, hidden_states)
    if reason:
        name, forward = _theirs(self, hidden_states)
        warn_once(f"{type(self).__name__} falls back to {name}: {reason}")
        fallen: Tensor = forward(self, hidden_states, top_k_index, top_k_weights)
        return fallen
    return computed(self, hidden_states, top_k_index, top_k_weights)


def computed(
    module: nn.Module,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    ranks: ExpertRanks | None = None,
) -> Tensor:
    """Return the output of experts that libmoe has; over ranks the module has those of this one."""
    found, first = _known(module), first_weight(module)
    packed = packed_of(module, first)
    given = laid_out(module, found[1], packed)
    weights = top_k_weights if top_k_weights.dtype in WEIGHTS else top_k_weights.float()
    given.require_tokens(hidden_states, top_k_index, weights)
    if ranks is None and not is_watched(hidden_states, top_k_index, weights, *given.tensors):
        vars(module)[READY] = made_ready(module, given, packed)
    return compute(given, hidden_states, top_k_index, weights, found[2:5], packed, ranks)


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]  # not traced, but asked once
def _known(module: nn.Module) -> tuple[Any, ...]:
    return tuple(known(module))


def packed_of(module: nn.Module, first: Tensor) -> Prepared | None:
    """Return a module's packed weights; training lets go of them, but of frozen ones.

    ``first`` is one of its matrices.
    """
    packed: Prepared | None = vars(module).get(PACKED)
    if packed is None or not module.training or (packed.is_frozen and not first.requires_grad):
        return packed
    if first.is_meta:
        raise BadStateError(
            f"{type(module).__name__}: is in training, but its weights were released by "
            "prepare(release=True), which leaves what inference reads; call model.eval() to go on with that "
            "under torch.no_grad(), or load the model again to train it"
        )
    setattr(module, PACKED, None)
    return None


def first_weight(module: Any) -> Tensor:
    """Return the matrix that gate and up, or up alone, are."""
    weight: Tensor = module.gate_up_proj if module.has_gate else module.up_proj
    return weight


def laid_out(module: Any, activation: str, packed: Prepared | None) -> LaidOut:
    """Return a module's weights as libmoe takes them; those that were released are left out."""
    first, down = first_weight(module), module.down_proj
    n_experts, one, two = first.shape
    outputs, hidden = (two, one) if module.is_transposed else (one, two)
    inner = outputs // 2 if module.has_gate else outputs
    require_shape("down", down, (n_experts, *((inner, hidden) if module.is_transposed else (hidden, inner))))
    slots, tensors = ["gate_up" if module.has_gate else "up", "down"], [first, down]
    if packed is not None and first.is_meta:
        slots, tensors = [], []
    elif first.is_meta:
        raise BadStateError(f"{type(module).__name__}: its weights have no memory; load the model again")
    if module.has_bias:
        slots += ["gate_up_bias" if module.has_gate else "up_bias", "down_bias"]
        tensors += [module.gate_up_proj_bias if module.has_gate else module.up_proj_bias]
        tensors += [module.down_proj_bias]
        require_shape(slots[-2], tensors[-2], (n_experts, outputs))
        require_shape(slots[-1], tensors[-1], (n_experts, hidden))
    form = _form(module.has_gate, module.is_concatenated, module.is_transposed, activation, tuple(slots))
    return LaidOut(form, tensors, n_experts, inner, hidden)


def _form(gated: bool, concatenated: bool, transposed: bool, activation: str, slots: tuple[str, ...]) -> Form:
    fused = "apart" if not gated else "concatenated" if concatenated else "interleaved"
    spread = (False,) * len(slots)
    return Form("gated" if gated else "mlp", activation, fused, transposed, False, slots, spread)


def unsuitable(module: nn.Module, hidden_states: Tensor) -> str:
    """Return why a call cannot be libmoe's, or nothing."""
    reason, first = _known(module)[0], first_weight(module)
    if reason:
        return str(reason)
    if not hidden_states.is_cpu:
        return f"it is on {hidden_states.device}, and libmoe computes on the CPU"
    for tensor in (hidden_states, first):
        if tensor.dtype not in WEIGHTS:
            return f"libmoe computes in float32 and bfloat16, not in {tensor.dtype}"
    return ""


def _theirs(module: Any, hidden_states: Tensor) -> tuple[str, Callable[..., Tensor]]:
    """Return what computes in libmoe's place: the class's own loop, where grouped_mm has not the type."""
    if hidden_states.dtype in (*WEIGHTS, torch.float16):
        return "grouped_mm", grouped_mm_experts_forward
    return "eager", type(module).forward.__wrapped__


_warned: set[str] = set()


def warn_once(text: str) -> None:
    """Warn of what is said for the first time."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(f"libmoe: {text}", RuntimeWarning, stacklevel=3)
