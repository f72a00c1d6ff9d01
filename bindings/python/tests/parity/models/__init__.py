"""The MoE blocks that libmoe is held to, by the names of libmoe's presets."""

from __future__ import annotations

from .base import Model
from .biased import DEEPSEEK_V3, ERNIE4_5, GLM4_MOE, LONGCAT_FLASH, MINIMAX_M2
from .gemma import GEMMA4
from .llama_cpp import LLAMA_CPP
from .logits import GPT_OSS, GRANITE_MOE, JETMOE, LLAMA4, PHIMOE
from .softmax import DBRX, DEEPSEEK_V2, JAMBA, MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE
from .switch import SWITCH

MODELS: dict[str, Model] = {
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "olmoe": OLMOE,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "glm4_moe": GLM4_MOE,
    "gpt_oss": GPT_OSS,
    "granite_moe": GRANITE_MOE,
    "jetmoe": JETMOE,
    "phimoe": PHIMOE,
    "dbrx": DBRX,
    "llama4": LLAMA4,
    "minimax_m2": MINIMAX_M2,
    "ernie4_5": ERNIE4_5,
    "longcat_flash": LONGCAT_FLASH,
    "switch": SWITCH,
    "jamba": JAMBA,
    "llama_cpp": LLAMA_CPP,
    "gemma4": GEMMA4,
}
