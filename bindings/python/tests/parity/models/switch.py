"""Switch: one expert a token, room for a few tokens of each sequence in every expert."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.switch_transformers.configuration_switch_transformers import (
    SwitchTransformersConfig,
)
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
)

from .base import Case, Model, Part, Tensors
from .cases import ordinary


def make_switch(expert_capacity: int = 64, **changes: Any) -> nn.Module:
    """ReLU experts without biases."""
    sizes = {"d_model": 9, "d_ff": 14, "num_experts": 5}
    config = SwitchTransformersConfig(**sizes, expert_capacity=expert_capacity, **changes)
    block: nn.Module = SwitchTransformersSparseMLP(config)
    return block


def switch_names(block: nn.Module, part: Part) -> Tensors:
    """Every expert is a module of its own."""
    experts = list(block.experts.values())
    return {
        "router.weight": part(block.router.classifier.weight),
        "experts.up.weight": torch.stack([part(expert.wi.weight) for expert in experts]),
        "experts.down.weight": torch.stack([part(expert.wo.weight) for expert in experts]),
    }


def switch_routing(block: nn.Module, output: Any) -> tuple[Tensor, Tensor]:
    """The router returns 0 and 1 by expert, all 0 where the token is dropped."""
    chosen, probability, _ = (part.flatten(0, 1) for part in output)
    kept = chosen.sum(dim=1, keepdim=True)
    return probability * kept, torch.where(kept == 1, chosen.argmax(dim=1, keepdim=True), -1)


def room(capacity: int) -> dict[str, Any]:
    """In both configurations."""
    return {"config": {"expert_capacity": capacity}, "arguments": {"capacity": capacity}}


SWITCH = Model(
    make_switch,
    {"hidden_size": 9, "intermediate_size": 14, "n_experts": 5, "top_k": 1},
    switch_names,
    router="router",
    router_weight="router.classifier.weight",
    routing=switch_routing,
    sequences=4,
    cases={"drops": Case(ordinary, **room(2)), "one_place": Case(ordinary, **room(1))},
)
