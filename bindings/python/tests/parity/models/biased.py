"""Models that add a bias to the scores for the choice alone."""
# Types are checked where PyTorch need not be installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.ernie4_5_moe.configuration_ernie4_5_moe import Ernie4_5_MoeConfig
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeSparseMoeBlock
from transformers.models.glm4_moe.configuration_glm4_moe import Glm4MoeConfig
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from transformers.models.longcat_flash.configuration_longcat_flash import LongcatFlashConfig
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE
from transformers.models.minimax_m2.configuration_minimax_m2 import MiniMaxM2Config
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2SparseMoeBlock

from .base import Case, Model, Part, Tensors, gated
from .cases import negative_bias, ordinary
from .eager import eager
from .softmax import deepseek_names, plain_names

NEGATIVE_BIAS = {"negative_bias": Case(negative_bias)}
# Below exp(-80) the sigmoid is near float32's smallest number, and MiniMax-M2 divides 0 by 0.
SIGMOID: dict[str, Any] = {"by_logits": False, "huge": 30.0}


def make_deepseek_v3(**changes: Any) -> nn.Module:
    """Two of four groups of experts, by the sum of their best two."""
    sizes = {"hidden_size": 9, "moe_intermediate_size": 8, "n_routed_experts": 8, "n_shared_experts": 1}
    groups = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
    return eager(DeepseekV3MoE, DeepseekV3Config(**sizes, **groups, **changes))


DEEPSEEK_V3 = Model(
    make_deepseek_v3,
    {
        "hidden_size": 9,
        "intermediate_size": 8,
        "shared_intermediate_size": 8,
        "n_experts": 8,
        "top_k": 3,
        "n_groups": 4,
        "top_groups": 2,
    },
    deepseek_names,
    selection_bias="gate.e_score_correction_bias",
    **SIGMOID,
    cases={
        **NEGATIVE_BIAS,
        "unnormalized": Case(
            ordinary,
            config={"norm_topk_prob": False},
            arguments={"router_normalize": "none", "normalize_epsilon": 0.0},
        ),
    },
)


def make_glm4_moe(**changes: Any) -> nn.Module:
    """As DeepSeek-V3, with all experts in one group."""
    sizes = {"hidden_size": 8, "moe_intermediate_size": 9, "n_routed_experts": 6, "n_shared_experts": 1}
    return eager(
        Glm4MoeMoE,
        Glm4MoeConfig(**sizes, num_experts_per_tok=2, routed_scaling_factor=2.5, **changes),
    )


GLM4_MOE = Model(
    make_glm4_moe,
    {"hidden_size": 8, "intermediate_size": 9, "shared_intermediate_size": 9, "n_experts": 6, "top_k": 2},
    deepseek_names,
    selection_bias="gate.e_score_correction_bias",
    **SIGMOID,
    cases={
        **NEGATIVE_BIAS,
        "groups": Case(
            negative_bias,
            config={"n_group": 3, "topk_group": 2},
            arguments={"n_groups": 3, "top_groups": 2, "group_top_m": 2},
        ),
    },
)


def make_minimax_m2(**changes: Any) -> nn.Module:
    """Weights are divided by their sum, and nothing keeps that from being 0."""
    sizes = {"hidden_size": 9, "intermediate_size": 10, "num_local_experts": 6, "num_experts_per_tok": 3}
    return eager(MiniMaxM2SparseMoeBlock, MiniMaxM2Config(**sizes, **changes))


MINIMAX_M2 = Model(
    make_minimax_m2,
    {"hidden_size": 9, "intermediate_size": 10, "n_experts": 6, "top_k": 3},
    plain_names,
    selection_bias="e_score_correction_bias",
    **SIGMOID,
    cases=NEGATIVE_BIAS,
)


def make_ernie4_5(**changes: Any) -> nn.Module:
    """Weights are divided by their sum, or by moe_norm_min if that is more."""
    sizes = {"hidden_size": 9, "moe_intermediate_size": 7, "moe_num_experts": 6, "moe_k": 2}
    return eager(Ernie4_5_MoeSparseMoeBlock, Ernie4_5_MoeConfig(**sizes, moe_num_shared_experts=2, **changes))


ERNIE4_5 = Model(
    make_ernie4_5,
    {"hidden_size": 9, "intermediate_size": 7, "shared_intermediate_size": 14, "n_experts": 6, "top_k": 2},
    deepseek_names,
    selection_bias="gate.moe_statics.e_score_correction_bias",
    by_logits=False,
    cases={
        **NEGATIVE_BIAS,
        "norm_min": Case(ordinary, config={"moe_norm_min": 0.6}, arguments={"normalize_epsilon": 0.6}),
    },
)


def make_longcat_flash(**changes: Any) -> nn.Module:
    """Five experts, and three that return x."""
    sizes = {"hidden_size": 9, "expert_ffn_hidden_size": 8, "n_routed_experts": 5, "zero_expert_num": 3}
    return eager(LongcatFlashMoE, LongcatFlashConfig(**sizes, moe_topk=3, **changes))


def longcat_names(block: nn.Module, part: Part) -> Tensors:
    """The block has gate and up for the experts that need none, too."""
    experts = {name: p[:5] for name, p in gated(block.experts, part).items()}
    return {
        "router.weight": part(block.router.classifier.weight),
        **{name.replace("experts.", "experts.0."): p for name, p in experts.items()},
    }


LONGCAT_FLASH = Model(
    make_longcat_flash,
    {
        "hidden_size": 9,
        "n_experts": 8,
        "top_k": 3,
        "expert_groups": [
            {"n_experts": 5, "intermediate_size": 8, "expert_kind": "gated", "activation": "silu"},
            {"n_experts": 3, "expert_kind": "identity"},
        ],
    },
    longcat_names,
    router="router",
    router_weight="router.classifier.weight",
    selection_bias="router.e_score_correction_bias",
    by_logits=False,
    cases={
        **NEGATIVE_BIAS,
        # The classifier gets a bias, and the block computes without it.
        "router_bias": Case(ordinary, config={"router_bias": True}),
    },
)
