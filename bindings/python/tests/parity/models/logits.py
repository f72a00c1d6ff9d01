"""Models that take the largest logits, and weigh these alone."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.granitemoe.configuration_granitemoe import GraniteMoeConfig
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeMoE
from transformers.models.jetmoe.configuration_jetmoe import JetMoeConfig
from transformers.models.jetmoe.modeling_jetmoe import JetMoeMoE
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.phimoe.configuration_phimoe import PhimoeConfig
from transformers.models.phimoe.modeling_phimoe import PhimoeSparseMoeBlock

from .base import Case, Model, Part, Tensors, gated, shared
from .cases import large_weights, ordinary
from .eager import eager


def make_gpt_oss(**changes: Any) -> nn.Module:
    """Biases everywhere, clamps in the experts."""
    sizes = {"hidden_size": 9, "intermediate_size": 10, "num_local_experts": 6, "num_experts_per_tok": 3}
    return eager(GptOssMLP, GptOssConfig(**sizes, **changes))


def gpt_oss_names(block: nn.Module, part: Part) -> Tensors:
    """Gate and up take turns in the columns of matrices that are multiplied from the right."""
    both, both_bias = part(block.experts.gate_up_proj), part(block.experts.gate_up_proj_bias)
    return {
        "router.weight": part(block.router.weight),
        "router.bias": part(block.router.bias),
        "experts.gate.weight": both[..., ::2].mT,
        "experts.gate.bias": both_bias[..., ::2],
        "experts.up.weight": both[..., 1::2].mT,
        "experts.up.bias": both_bias[..., 1::2],
        "experts.down.weight": part(block.experts.down_proj).mT,
        "experts.down.bias": part(block.experts.down_proj_bias),
    }


GPT_OSS = Model(
    make_gpt_oss,
    {"hidden_size": 9, "intermediate_size": 10, "n_experts": 6, "top_k": 3},
    gpt_oss_names,
    router="router",
    router_weight="router.weight",
    router_bias="router.bias",
    cases={"clamps": Case(large_weights)},
)


def make_granite_moe(**changes: Any) -> nn.Module:
    """A softmax over the chosen logits."""
    sizes = {"hidden_size": 8, "intermediate_size": 9, "num_local_experts": 8, "num_experts_per_tok": 4}
    return eager(GraniteMoeMoE, GraniteMoeConfig(**sizes, **changes))


def granite_names(block: nn.Module, part: Part) -> Tensors:
    """Router and experts."""
    return {"router.weight": part(block.router.weight), **gated(block.experts, part)}


GRANITE_MOE = Model(
    make_granite_moe,
    {"hidden_size": 8, "intermediate_size": 9, "n_experts": 8, "top_k": 4},
    granite_names,
    router="router",
    router_weight="router.weight",
)


def make_jetmoe(**changes: Any) -> nn.Module:
    """The same with a bias on y."""
    sizes = {"hidden_size": 11, "intermediate_size": 9, "num_local_experts": 6, "num_experts_per_tok": 2}
    return eager(JetMoeMoE, JetMoeConfig(**sizes, **changes))


def jetmoe_names(block: nn.Module, part: Part) -> Tensors:
    """Gate lies above up."""
    gate, up = part(block.input_linear.weight).chunk(2, dim=1)
    return {
        "router.weight": part(block.router.layer.weight),
        "experts.gate.weight": gate,
        "experts.up.weight": up,
        "experts.down.weight": part(block.output_linear.weight),
        "output.bias": part(block.bias),
    }


def jetmoe_routing(block: nn.Module, output: Any) -> tuple[Tensor, Tensor]:
    """The router returns pairs sorted by expert; its logits, put through its own two lines, are plainer."""
    chosen, indices = output[-1].topk(block.router.top_k, dim=1)
    return chosen.softmax(dim=1), indices


JETMOE = Model(
    make_jetmoe,
    {"hidden_size": 11, "intermediate_size": 9, "n_experts": 6, "top_k": 2},
    jetmoe_names,
    router="router",
    router_weight="router.layer.weight",
    routing=jetmoe_routing,
)


def make_llama4(**changes: Any) -> nn.Module:
    """The sigmoid of the chosen logit, on the expert's input; a shared expert as wide as the others."""
    sizes = {"hidden_size": 9, "intermediate_size": 10, "num_local_experts": 6}
    return eager(Llama4TextMoe, Llama4TextConfig(**{**sizes, "num_experts_per_tok": 1, **changes}))


def llama4_names(block: nn.Module, part: Part) -> Tensors:
    """Gate lies beside up in matrices that are multiplied from the right."""
    gate, up = part(block.experts.gate_up_proj).chunk(2, dim=2)
    return {
        "router.weight": part(block.router.weight),
        "experts.gate.weight": gate.mT,
        "experts.up.weight": up.mT,
        "experts.down.weight": part(block.experts.down_proj).mT,
        **shared(block.shared_expert, part),
    }


def llama4_routing(block: nn.Module, output: Any) -> tuple[Tensor, Tensor]:
    """The router returns all experts' weights, 0 for those not chosen, and the logits."""
    scores, logits = output
    indices = torch.topk(logits, block.top_k, dim=1).indices
    return scores.gather(1, indices), indices


LLAMA4 = Model(
    make_llama4,
    {"hidden_size": 9, "intermediate_size": 10, "n_experts": 6, "top_k": 1},
    llama4_names,
    router="router",
    router_weight="router.weight",
    routing=llama4_routing,
    cases={"top2": Case(ordinary, config={"num_experts_per_tok": 2}, arguments={"top_k": 2})},
)


def make_phimoe(**changes: Any) -> nn.Module:
    """Two choices, each with its share among those near it.

    In evaluation router_jitter_noise says how near, and the two weights are not divided by their sum.
    """
    sizes = {"hidden_size": 9, "intermediate_size": 8, "num_local_experts": 6, "num_experts_per_tok": 2}
    return eager(PhimoeSparseMoeBlock, PhimoeConfig(**sizes, **changes))


PHIMOE = Model(
    make_phimoe,
    {"hidden_size": 9, "intermediate_size": 8, "n_experts": 6, "top_k": 2},
    granite_names,
    router="router",
    router_weight="router.weight",
    cases={
        # With the model's 0.01 hardly any expert is near another.
        "near": Case(ordinary, config={"router_jitter_noise": 0.3}, arguments={"mask_threshold": 0.3}),
        "far": Case(ordinary, config={"router_jitter_noise": 0.9}, arguments={"mask_threshold": 0.9}),
    },
)
