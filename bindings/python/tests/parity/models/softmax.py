"""Models that take the largest probabilities of a softmax over all experts."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.dbrx.configuration_dbrx import DbrxConfig
from transformers.models.dbrx.modeling_dbrx import DbrxFFN
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.jamba.configuration_jamba import JambaConfig
from transformers.models.jamba.modeling_jamba import JambaSparseMoeBlock
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from .base import Case, Model, Part, Tensors, gated, shared
from .cases import ordinary
from .eager import eager


def plain_names(block: nn.Module, part: Part) -> Tensors:
    """Router and experts."""
    return {"router.weight": part(block.gate.weight), **gated(block.experts, part)}


def make_mixtral(**changes: Any) -> nn.Module:
    """Weights are divided by their sum."""
    return eager(
        MixtralSparseMoeBlock,
        MixtralConfig(
            hidden_size=9, intermediate_size=11, num_local_experts=6, num_experts_per_tok=2, **changes
        ),
    )


MIXTRAL = Model(
    make_mixtral,
    {"hidden_size": 9, "intermediate_size": 11, "n_experts": 6, "top_k": 2},
    plain_names,
)


def make_qwen2_moe(**changes: Any) -> nn.Module:
    """Weights as they are; a shared expert behind a sigmoid."""
    sizes = {"hidden_size": 8, "moe_intermediate_size": 10, "shared_expert_intermediate_size": 13}
    return eager(
        Qwen2MoeSparseMoeBlock, Qwen2MoeConfig(**sizes, num_experts=5, num_experts_per_tok=3, **changes)
    )


def qwen2_names(block: nn.Module, part: Part) -> Tensors:
    """With the shared expert and its gate."""
    return {
        **plain_names(block, part),
        **shared(block.shared_expert, part),
        "shared.router.weight": part(block.shared_expert_gate.weight),
    }


# Divided by their sum where the configuration says so.
NORMALIZED = Case(ordinary, config={"norm_topk_prob": True}, arguments={"router_normalize": "sum"})

QWEN2_MOE = Model(
    make_qwen2_moe,
    {"hidden_size": 8, "intermediate_size": 10, "n_experts": 5, "top_k": 3, "shared_intermediate_size": 13},
    qwen2_names,
    cases={"normalized": NORMALIZED},
)


def make_qwen3_moe(norm_topk_prob: bool = True, **changes: Any) -> nn.Module:
    """The class leaves weights as they are, but released checkpoints divide them by their sum."""
    sizes = {"hidden_size": 11, "moe_intermediate_size": 8, "num_experts": 8, "num_experts_per_tok": 3}
    return eager(Qwen3MoeSparseMoeBlock, Qwen3MoeConfig(**sizes, norm_topk_prob=norm_topk_prob, **changes))


QWEN3_MOE = Model(
    make_qwen3_moe,
    {"hidden_size": 11, "intermediate_size": 8, "n_experts": 8, "top_k": 3},
    plain_names,
    cases={
        "unnormalized": Case(
            ordinary, config={"norm_topk_prob": False}, arguments={"router_normalize": "none"}
        )
    },
)


def make_olmoe(**changes: Any) -> nn.Module:
    """Weights as they are."""
    sizes = {"hidden_size": 10, "intermediate_size": 9, "num_experts": 7, "num_experts_per_tok": 4}
    return eager(OlmoeSparseMoeBlock, OlmoeConfig(**sizes, **changes))


OLMOE = Model(
    make_olmoe,
    {"hidden_size": 10, "intermediate_size": 9, "n_experts": 7, "top_k": 4},
    plain_names,
    cases={"normalized": NORMALIZED},
)


def make_jamba(**changes: Any) -> nn.Module:
    """Weights as they are; the configuration has no say in it."""
    sizes = {"hidden_size": 9, "intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
    return eager(JambaSparseMoeBlock, JambaConfig(**sizes, **changes))


def jamba_names(block: nn.Module, part: Part) -> Tensors:
    """Its gate is called router."""
    return {"router.weight": part(block.router.weight), **gated(block.experts, part)}


JAMBA = Model(
    make_jamba,
    {"hidden_size": 9, "intermediate_size": 12, "n_experts": 4, "top_k": 2},
    jamba_names,
    router="router",
    router_weight="router.weight",
)


def make_dbrx(**changes: Any) -> nn.Module:
    """Weights are divided by a p-norm, or not."""
    ffn = {"hidden_size": 9, "ffn_hidden_size": 10, "moe_num_experts": 6, "moe_top_k": 3, **changes}
    return eager(DbrxFFN, DbrxConfig(d_model=9, ffn_config=ffn))


def dbrx_names(block: nn.Module, part: Part) -> Tensors:
    """All experts' rows are in one matrix, and w2 is multiplied from the right."""
    mlp = block.experts.mlp
    w1, v1, w2 = (part(p).view(6, 10, 9) for p in (mlp.w1, mlp.v1, mlp.w2))
    return {
        "router.weight": part(block.router.layer.weight),
        "experts.gate.weight": w1,
        "experts.up.weight": v1,
        "experts.down.weight": w2.mT,
    }


def dbrx_routing(block: nn.Module, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The block's own function; its router returns the logits alone."""
    weights, indices = block.route_tokens_to_experts(logits)
    return weights, indices


def dbrx_norm(p: float | None, arguments: dict[str, Any]) -> Case:
    """Another norm than the model's."""
    return Case(ordinary, config={"moe_normalize_expert_weights": p}, arguments=arguments)


DBRX = Model(
    make_dbrx,
    {"hidden_size": 9, "intermediate_size": 10, "n_experts": 6, "top_k": 3},
    dbrx_names,
    router="router",
    router_weight="router.layer.weight",
    routing=dbrx_routing,
    cases={
        "norm2": dbrx_norm(2.0, {"router_normalize": "norm2"}),
        "norm3": dbrx_norm(3.0, {"router_normalize": "normp", "normalize_p": 3.0}),
        "unnormalized": dbrx_norm(None, {"router_normalize": "none"}),
    },
)


def make_deepseek_v2(topk_method: str = "group_limited_greedy", **changes: Any) -> nn.Module:
    """Two of four groups of experts, by their best; the others' probabilities become 0.

    The module ignores norm_topk_prob.
    """
    sizes = {"hidden_size": 10, "moe_intermediate_size": 8, "n_routed_experts": 8, "n_shared_experts": 2}
    groups = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "routed_scaling_factor": 1.5}
    attention = {"num_attention_heads": 1}  # some number of heads that divides hidden_size
    return eager(
        DeepseekV2Moe, DeepseekV2Config(**sizes, **groups, **attention, topk_method=topk_method, **changes)
    )


def deepseek_names(block: nn.Module, part: Part) -> Tensors:
    """The shared experts are one of their widths together."""
    return {**plain_names(block, part), **shared(block.shared_experts, part)}


DEEPSEEK_V2 = Model(
    make_deepseek_v2,
    {
        "hidden_size": 10,
        "intermediate_size": 8,
        "shared_intermediate_size": 16,
        "n_experts": 8,
        "top_k": 3,
        "n_groups": 4,
        "top_groups": 2,
        "routed_scale": 1.5,
    },
    deepseek_names,
    by_logits=False,
    cases={
        # As DeepSeek-V2-Lite.
        "greedy": Case(
            ordinary,
            config={"topk_method": "greedy"},
            arguments={"n_groups": 0, "top_groups": 0, "group_mask": "minus_infinity"},
        )
    },
)
