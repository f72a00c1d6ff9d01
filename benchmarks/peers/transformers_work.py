"""What transformers' models are asked to do, and the sizes of the models.

A worker is `transformers_model.py FOLDER MODEL JOB DTYPE WAY THREADS`; see protocol.py for how it answers.
"""

from __future__ import annotations

from typing import Any

from protocol import ModelJob
from shapes import Dtype

# Sizes of the published models with two of their layers, and as many experts as let all ways be in memory at
# once: 16 GB.  Words are as few in proportion (2 of 48 layers: 2 / 48 of the words), so that the output
# has the share of the time that it has in the whole model.
# batched_mm copies the chosen experts' weights for every token, so that it is measured with one token.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B, E / 2": dict(
        family="qwen3_moe",
        num_hidden_layers=2,
        hidden_size=2048,
        moe_intermediate_size=768,
        num_experts=64,
        num_experts_per_tok=8,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        vocab_size=6_336,
    ),
    "OLMoE-1B-7B": dict(
        family="olmoe",
        num_hidden_layers=2,
        hidden_size=2048,
        intermediate_size=1024,
        num_experts=64,
        num_experts_per_tok=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=6_288,
    ),
    "Mixtral, I / 8": dict(
        family="mixtral",
        num_hidden_layers=2,
        hidden_size=4096,
        intermediate_size=1792,
        num_local_experts=8,
        num_experts_per_tok=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=2_000,
    ),
}
TOKENS = {"experts": 512, "experts of 1 token": 1, "prefill": 512, "decode": 1, "train": 1024, "lora": 1024}
LAST = 8  # tokens of a prompt whose logits are computed: to generate, transformers takes the last one's
LIMITS: dict[Dtype, float] = {
    "f32": 1e-3,
    "bf16": 5e-2,
}  # of the median over tokens of |theirs - ours| / |ours|


class TransformersWork(ModelJob):
    """A job of TOKENS."""

    outputs = ("y",)

    @property
    def amount(self) -> float:
        """Tokens."""
        return TOKENS[self.job]

    @property
    def traffic(self) -> float:
        """Bytes of the weights that the experts of one token have; 0 where other things take time as well."""
        if self.job != "experts of 1 token":
            return 0
        sizes = MODELS[self.model]
        inner = sizes.get("moe_intermediate_size", sizes.get("intermediate_size"))
        weights = 3 * sizes["num_experts_per_tok"] * inner * sizes["hidden_size"]
        return float(weights * (2 if self.dtype == "bf16" else 4))

    @property
    def outputs_of(self) -> int:
        """How many tokens the output is of."""
        return LAST if self.job == "prefill" else TOKENS[self.job]

    @property
    def limit(self) -> float:
        """How far an answer may be from another's."""
        return LIMITS[self.dtype]

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.job in ("train", "lora")

    @property
    def ways(self) -> list[str]:
        """Implementations of the experts that are compared, libmoe last."""
        alone = ["batched_mm"] if self.amount == 1 else []
        return ["eager", "grouped_mm", *alone, "libmoe"]
