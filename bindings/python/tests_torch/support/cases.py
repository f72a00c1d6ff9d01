"""Experts in every layout and of every kind."""

from __future__ import annotations

from typing import Any

import torch

T, H, I, E, K = 37, 24, 40, 5, 3  # noqa: E741
Case = dict[str, Any]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)


def split(value: torch.Tensor) -> list[torch.Tensor]:
    """A tensor for each expert."""
    return [each.clone() for each in value]


def fused(**more: Any) -> Case:
    return {"gate_up": normal(E, 2 * I, H), "down": normal(E, H, I), **more}


def cases() -> dict[str, Case]:
    torch.manual_seed(1)
    biases = {"gate_up_bias": 0.3 * normal(E, 2 * I), "down_bias": 0.3 * normal(E, H)}
    transposed = {"gate_up": normal(E, H, 2 * I), "down": normal(E, I, H), "transposed": True}
    apart = {"gate_up": (normal(E, I, H), normal(E, I, H)), "down": normal(E, H, I)}
    mlp = {"gate_up": normal(E, I, H), "down": normal(E, H, I), "expert_kind": "mlp"}
    glu = {"glu_limit": 0.7, "glu_alpha": 1.702, "glu_offset": 1.0}
    found = {
        "fused": fused(),
        "gpt-oss": {**transposed, **biases, **glu, "interleaved": True},
        "aria": transposed,
        "interleaved rows": fused(interleaved=True, **biases),
        "clamped": fused(glu_limit=0.5),
        "gate and up": apart,
        "gate and up with biases": {
            **apart,
            "gate_up_bias": (normal(E, I), normal(E, I)),
            "down_bias": normal(E, H),
        },
        "lists": {
            "gate_up": (split(normal(E, I, H)), split(normal(E, I, H))),
            "down": split(normal(E, H, I)),
        },
        "a fused list": {
            "gate_up": split(normal(E, 2 * I, H)),
            "down": normal(E, H, I),
            "down_bias": split(normal(E, H)),
        },
        "nemotron": {**mlp, "activation": "relu2"},
        "with an up bias alone": {**mlp, "gate_up_bias": normal(E, I), "activation": "relu"},
        "linear": {
            "gate_up": None,
            "down": normal(E, H, H),
            "expert_kind": "linear",
            "down_bias": normal(E, H),
        },
        "weight on input": fused(weight_on_input=True, **biases),
        "other strides": {
            "gate_up": normal(H, E, 2 * I + 4).permute(1, 2, 0)[:, 2:-2],
            "down": normal(E, H, 2 * I)[:, :, ::2],
        },
        "columns first": {
            "gate_up": normal(E, H, 2 * I).transpose(1, 2),
            "down": normal(I, H, E).permute(2, 1, 0),
        },
    }
    for activation in ("gelu", "gelu_tanh", "relu", "quick_gelu"):
        found[activation] = fused(activation=activation)
    return found


def tokens(n_tokens: int = T, top_k: int = K) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, ids with some that are none, and weights."""
    ids = (
        torch.stack([torch.randperm(E + 1)[:top_k] for _ in range(n_tokens)])
        if n_tokens
        else torch.zeros(0, top_k)
    )
    ids = ids.long()
    ids[::7, :1] = -1
    return torch.randn(n_tokens, H), ids, torch.randn(n_tokens, top_k)
