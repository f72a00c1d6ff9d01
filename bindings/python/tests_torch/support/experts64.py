"""Experts in plain torch, of any floating type: every expert computes every token, and weights choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cases import Case

WEIGHTS = ("gate_up", "down", "gate_up_bias", "down_bias")
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda v: F.relu(v).square(),
    "quick_gelu": lambda v: v * torch.sigmoid(1.702 * v),
}


def together(value: Any) -> Any:
    """Lists of one tensor an expert as one tensor."""
    return torch.stack(list(value)) if isinstance(value, list) else value


def experts64(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Any,
    down: Any,
    *,
    gate_up_bias: Any = None,
    down_bias: Any = None,
    expert_kind: str = "gated",
    activation: str = "silu",
    transposed: bool = False,
    interleaved: bool = False,
    glu_limit: float = 0.0,
    glu_alpha: float = 0.0,
    glu_offset: float = 0.0,
    weight_on_input: bool = False,
) -> Tensor:
    down, down_bias = together(down), together(down_bias)
    n_experts = down.shape[0]
    chosen = F.one_hot(torch.where((ids < 0) | (ids >= n_experts), n_experts, ids).long(), n_experts + 1)
    share = (weights.unsqueeze(-1) * chosen[..., :-1]).sum(-2)  # [T,E]
    counts = chosen[..., :-1].sum(-2)

    def product(v: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """[E,T,in] -> [E,T,out]."""
        out = v @ (matrix if transposed else matrix.transpose(1, 2))
        return out if bias is None else out + bias.unsqueeze(1)

    def one(scale: Tensor | None) -> Tensor:
        v = x.unsqueeze(0).expand(n_experts, *x.shape)
        v = v if scale is None else v * scale
        act = ACTIVATIONS[activation]
        if expert_kind == "linear":
            return product(v, down, down_bias)
        if expert_kind == "mlp":
            return product(act(product(v, together(gate_up), together(gate_up_bias))), down, down_bias)
        if isinstance(gate_up, tuple):
            biases = gate_up_bias or (None, None)
            gate, up = (product(v, together(m), together(b)) for m, b in zip(gate_up, biases))
        else:
            both = product(v, together(gate_up), together(gate_up_bias))
            gate, up = (both[..., ::2], both[..., 1::2]) if interleaved else both.chunk(2, -1)
        if glu_limit:
            gate, up = gate.clamp(max=glu_limit), up.clamp(-glu_limit, glu_limit)
        gated = gate * torch.sigmoid(glu_alpha * gate) if glu_alpha else act(gate)
        return product(gated * (up + glu_offset), down, down_bias)

    if not weight_on_input:
        return (one(None) * share.T.unsqueeze(-1)).sum(0)
    y = torch.zeros_like(x)
    for k in range(ids.shape[1]):
        mine = chosen[:, k, :-1].T.unsqueeze(-1)  # [E,T,1]
        y = y + (one(weights[:, k, None]) * mine).sum(0)
    return y + 0 * counts.sum()


def leaves(*values: Any) -> list[Tensor]:
    """All tensors within."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Sequence):
            found += leaves(*value)
    return found


def mapped(function: Any, value: Any) -> Any:
    """The same nest of tuples and lists with each tensor changed."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(function, each) for each in value)
    return value


def wanted(case: Case) -> Case:
    """The same with weights of their own that want gradients."""
    return {k: mapped(leaf, v) if k in WEIGHTS else v for k, v in case.items()}


def leaf(tensor: Tensor) -> Tensor:
    return (
        tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        if tensor.is_contiguous()
        else tensor.detach().requires_grad_()
    )


def exact(case: Case) -> Case:
    """The same in float64."""
    return {
        k: mapped(lambda t: t.detach().double().requires_grad_(t.requires_grad), v) for k, v in case.items()
    }
