"""llama.cpp's gating: no module to run, so its definition (build_moe_ffn) written out.

It divides the chosen scores by their sum, or by the smallest normal float16 if that is more.
"""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Case, Draft, Model
from .cases import negative_bias, ordinary
from .softmax import plain_names

LEAST_SUM = 2.0**-14  # 6.103515625e-5


class Gating(nn.Module):
    """Scores, choice and weights; the sigmoid comes with a bias for the choice."""

    def __init__(self, sigmoid: bool, scale: float) -> None:
        super().__init__()
        self.sigmoid, self.scale = sigmoid, scale
        self.weight = nn.Parameter(torch.empty(6, 9))
        self.exp_probs_b = nn.Buffer(torch.zeros(6)) if sigmoid else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T,H] -> logits [T,E], weights [T,K], indices [T,K]."""
        logits = functional.linear(x, self.weight)
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(dim=-1)
        selection = scores if self.exp_probs_b is None else scores + self.exp_probs_b
        indices = torch.topk(selection, 3).indices
        chosen = scores.gather(1, indices)
        return logits, chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=LEAST_SUM) * self.scale, indices


class Experts(nn.Module):
    """All six, gate above up."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(6, 20, 9))
        self.down_proj = nn.Parameter(torch.empty(6, 9, 10))

    def forward(self, x: Tensor) -> Tensor:
        """[T,H] -> [T,E,H], every expert of every token."""
        gate, up = torch.einsum("th,eih->tei", x, self.gate_up_proj).chunk(2, dim=-1)
        return torch.einsum("tei,ehi->teh", functional.silu(gate) * up, self.down_proj)


class Block(nn.Module):
    """Gating and experts."""

    def __init__(self, sigmoid: bool, scale: float) -> None:
        super().__init__()
        self.gate, self.experts = Gating(sigmoid, scale), Experts()

    def forward(self, x: Tensor) -> Tensor:
        """[B,S,H] -> [T,H]."""
        x = x.flatten(0, 1)
        _, weights, indices = self.gate(x)
        outputs = self.experts(x)[torch.arange(len(x))[:, None], indices]
        return (weights[..., None] * outputs).sum(dim=1)


def make_llama_cpp(sigmoid: bool = False, scale: float = 1.0) -> nn.Module:
    """Softmax without a bias where nothing else is said: llama, qwen3moe and dbrx."""
    return Block(sigmoid, scale)


def small_sums(draft: Draft) -> None:
    """Logits around the sigmoid's least sum and far below it."""
    draft.x[:, 0] = 1
    draft.router[:, 0] = -11
    draft.router[:, 1:] *= 2


SIGMOID: dict[str, Any] = {
    "config": {"sigmoid": True, "scale": 2.5},
    "arguments": {"score": "sigmoid", "selection_bias": True, "routed_scale": 2.5},
}

LLAMA_CPP = Model(
    make_llama_cpp,
    {"hidden_size": 9, "intermediate_size": 10, "n_experts": 6, "top_k": 3},
    plain_names,
    selection_bias="gate.exp_probs_b",
    cases={
        "negative_bias": Case(negative_bias, **SIGMOID),
        "sigmoid": Case(ordinary, **SIGMOID),
        "small_sums": Case(small_sums, **SIGMOID),
    },
)
