"""Gemma 4: a gate that reads its own RMS norm, and a trained factor for each expert."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.gemma4 import modeling_gemma4 as gemma
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

from .base import Case, Draft, Model, Part, Tensors, gated
from .cases import idle_expert
from .eager import eager


class Gemma4Experts(nn.Module):
    """The decoder layer's router and experts, both of which get x here."""

    __module__ = gemma.__name__  # whose torch is widened

    def __init__(self, config: Gemma4TextConfig) -> None:
        super().__init__()
        self.router = gemma.Gemma4TextRouter(config)
        self.experts = gemma.Gemma4TextExperts(config)

    def forward(self, x: Tensor) -> Tensor:
        """[B,S,H] -> [T,H]."""
        x = x.flatten(0, 1)
        _, weights, indices = self.router(x)
        result: Tensor = self.experts(x, indices, weights)
        return result


def make_gemma4(**changes: Any) -> nn.Module:
    """GELU by tanh; weights are divided by their sum."""
    sizes = {"hidden_size": 9, "moe_intermediate_size": 11, "num_experts": 6, "top_k_experts": 3}
    return eager(Gemma4Experts, Gemma4TextConfig(**sizes, enable_moe_block=True, **changes))


def gemma4_names(block: nn.Module, part: Part) -> Tensors:
    """The norm's weight is called scale."""
    return {
        "router.weight": part(block.router.proj.weight),
        "router.norm.weight": part(block.router.scale),
        "router.expert_scale": part(block.router.per_expert_scale),
        **gated(block.experts, part),
    }


def gemma4_idle(draft: Draft) -> None:
    """The constant feature keeps its sign in the norm."""
    idle_expert(draft)
    scale = draft.part("router.scale")
    assert scale is not None
    scale[0] = 2.0


GEMMA4 = Model(
    make_gemma4,
    {"hidden_size": 9, "intermediate_size": 11, "n_experts": 6, "top_k": 3},
    gemma4_names,
    router="router",
    router_weight="router.proj.weight",
    by_logits=False,  # which are not x W^T
    huge=20.0,
    cases={"idle_expert": Case(gemma4_idle)},
)
