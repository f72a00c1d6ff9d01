"""What whole models from folders are asked to do, and the sizes of the models.

A worker is `libmoe_generate.py WORK...` or `transformers_generate.py WAY WORK...`; see protocol.py for how it
answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Dtype

# Sizes of the published models; layers and words are cut to what the command line says.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": dict(
        family="qwen3_moe",
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        norm_topk_prob=True,
    ),
    "OLMoE-1B-7B": dict(
        family="olmoe",
        hidden_size=2048,
        intermediate_size=1024,
        num_experts=64,
        num_experts_per_tok=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=8192,
    ),
    "DeepSeek-V2-Lite": dict(
        family="deepseek_v2",
        hidden_size=2048,
        intermediate_size=10944,
        moe_intermediate_size=1408,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        first_k_dense_replace=1,
        num_attention_heads=16,
        num_key_value_heads=16,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        topk_method="greedy",
        max_position_embeddings=8192,
    ),
    "gpt-oss-20b": dict(
        family="gpt_oss",
        hidden_size=2880,
        intermediate_size=2880,
        num_local_experts=32,
        num_experts_per_tok=4,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        sliding_window=128,
    ),
}
PROMPT = 512  # tokens before those that are decoded
# Sequences, tokens of each before the run, tokens of each that the run reads.
JOBS: dict[str, tuple[int, int, int]] = {
    "decode": (1, PROMPT, 1),
    "decode 8": (8, PROMPT, 1),
    "prefill 512": (1, 0, 512),
    "prefill 4096": (1, 0, 4096),
    "load": (1, 0, 1),  # the run is loading; the answer is one token's
}
DTYPES: dict[str, tuple[Dtype, ...]] = {
    "decode": ("bf16",),
    "decode 8": ("bf16",),
    "prefill 512": ("bf16", "f32"),
    "prefill 4096": ("bf16", "f32"),
    "load": ("bf16",),
}
LIMITS: dict[Dtype, float] = {
    "f32": 1e-3,
    "bf16": 1e-1,
}  # of the median over rows of |theirs - ours| / |ours|


@dataclass(frozen=True)
class GenerateWork:
    """A job of a model, in one number type. Its folder has the model's, under its name."""

    folder: Path
    model: str
    job: str  # a name of JOBS
    dtype: Dtype
    threads: int
    unit = "tokens/s"
    outputs = ("logits",)

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.model}, {self.job} {self.dtype}"

    @property
    def amount(self) -> float:
        """Tokens of a run."""
        sequences, _, count = JOBS[self.job]
        return sequences * count

    @property
    def limit(self) -> float:
        """How far an answer may be from another's."""
        return LIMITS[self.dtype]

    @property
    def files(self) -> Path:
        """The model's folder."""
        return self.folder / self.model

    @property
    def ways(self) -> list[str]:
        """How transformers computes the experts; batched_mm copies weights for every token."""
        return ["grouped_mm", "batched_mm"] if JOBS[self.job][2] == 1 else ["grouped_mm"]

    def tokens(self, vocabulary: int) -> tuple[Any, Any]:
        """Return random tokens: those before the run, and those of the run."""
        sequences, before, count = JOBS[self.job]
        tokens = np.random.default_rng(2).integers(0, vocabulary, (sequences, before + count), np.int32)
        return np.ascontiguousarray(tokens[:, :before]), np.ascontiguousarray(tokens[:, before:])

    def arguments(self) -> list[str]:
        """Return the command line of a worker."""
        return [str(self.folder), self.model, self.job, self.dtype, str(self.threads)]

    @classmethod
    def of(cls, arguments: list[str]) -> GenerateWork:
        """Return the work that a worker's command line names."""
        folder, model, job, dtype, threads = arguments
        return cls(Path(folder), model, job, "bf16" if dtype == "bf16" else "f32", int(threads))
