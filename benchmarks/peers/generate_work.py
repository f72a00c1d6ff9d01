"""What whole models from folders are asked to do, and the sizes of the models.

A worker is `libmoe_generate.py WORK...`, `transformers_generate.py WAY WORK...` or `llama_generate.py LIBRARY
WORK...`; see protocol.py for how it answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from protocol import ModelJob
from shapes import Dtype

# Sizes of the published models; layers and words are cut.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": dict(
        family="qwen3_moe",
        num_hidden_layers=48,
        vocab_size=151_936,
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
        num_hidden_layers=16,
        vocab_size=50_304,
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
        num_hidden_layers=27,
        vocab_size=102_400,
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
        num_hidden_layers=24,
        vocab_size=201_088,
        hidden_size=2880,
        intermediate_size=2880,
        num_local_experts=32,
        num_experts_per_tok=4,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        sliding_window=128,
        # As published, but for truncate: llama.cpp knows the ramp with whole bounds only.
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=150_000.0,
            factor=32.0,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=True,
            original_max_position_embeddings=4096,
        ),
    ),
}
# Those whose training fits 16 GB, all ways together, with two layers: some with fewer or smaller experts.
TRAINED: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B, E / 2": {**PUBLISHED["Qwen3-30B-A3B"], "num_experts": 64},
    "OLMoE-1B-7B, E / 2": {**PUBLISHED["OLMoE-1B-7B"], "num_experts": 32},
    "DeepSeek-V2-Lite": PUBLISHED["DeepSeek-V2-Lite"],
    "gpt-oss-20b, I / 4": {**PUBLISHED["gpt-oss-20b"], "intermediate_size": 720},
}
MODELS = {**PUBLISHED, **TRAINED}
PROMPT = 512  # tokens before those that are decoded
# Sequences, tokens of each before the run, tokens of each that the run reads.
JOBS: dict[str, tuple[int, int, int]] = {
    "decode": (1, PROMPT, 1),
    "decode 8": (8, PROMPT, 1),
    "prefill 512": (1, 0, 512),
    "prefill 4096": (1, 0, 4096),
    "load": (1, 0, 1),  # the run is loading; the answer is one token's
    "train": (1, 0, 1024),  # forward, backward and a step of SGD; the answer is all tokens'
}
RATE = 1e-6  # of SGD
DTYPES: dict[str, tuple[Dtype, ...]] = {
    "decode": ("bf16",),
    "decode 8": ("bf16",),
    "prefill 512": ("bf16", "f32"),
    "prefill 4096": ("bf16", "f32"),
    "load": ("bf16",),
    "train": ("bf16", "f32"),
}
LIMITS: dict[Dtype, float] = {
    "f32": 1e-3,
    "bf16": 1e-1,
}  # of the median over rows of |theirs - ours| / |ours|


class GenerateWork(ModelJob):
    """A job of JOBS. Its folder has the model's, under its name."""

    @property
    def outputs(self) -> list[str]:
        """What the answer consists of: of training also the gradient of each token's embedding."""
        return ["logits", "gradient"] if self.job == "train" else ["logits"]

    @property
    def rows(self) -> int:
        """Of how many tokens the answer is: in training of those that have targets."""
        sequences, _, count = JOBS[self.job]
        return count - 1 if self.job == "train" else sequences

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
    def gguf(self) -> Path:
        """The same model as llama.cpp reads it."""
        return self.folder / f"{self.model}-{self.dtype}.gguf"

    @property
    def ways(self) -> list[str]:
        """How transformers computes the experts; batched_mm copies weights for every token."""
        if self.job == "train":
            return ["grouped_mm", "eager"]
        return ["grouped_mm", "batched_mm"] if JOBS[self.job][2] == 1 else ["grouped_mm"]

    def tokens(self, vocabulary: int) -> tuple[Any, Any]:
        """Return random tokens: those before the run, and those of the run."""
        sequences, before, count = JOBS[self.job]
        tokens = np.random.default_rng(2).integers(0, vocabulary, (sequences, before + count), np.int32)
        return np.ascontiguousarray(tokens[:, :before]), np.ascontiguousarray(tokens[:, before:])
