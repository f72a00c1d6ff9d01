"""What the peers that run whole models and attention share: the sizes, and reading the work.

A peer is a program that answers and then runs when asked, as protocol.py says:

    PEER train FOLDER DTYPE THREADS          a step: forward, backward, AdamW
    PEER generate FOLDER DTYPE THREADS       greedy tokens of one sequence, after a prompt
    PEER FOLDER S MASK DTYPE THREADS         attention over S tokens, both ways; MASK causal or full

DTYPE is f32, or bf16: mixed precision.  FOLDER holds model.npz, the parameters under libmoe's names, and
tokens.npy [B,S+1]; for attention attention.npy, which is query, key, value and the output's gradient, each
[1,S,heads,D].  The answers: of training the logits of all tokens and, of f32, the token embedding's
gradient; of generation the logits of each of CHECKED tokens, read one by one after the prompt; of attention
the output, and the gradients of query, key and value behind each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Array
from shapes import Dtype

LAYERS, HIDDEN, HEADS = 6, 256, 8
EXPERTS, TOP_K, INNER = 8, 2, 512
VOCABULARY = 256
THETA, EPSILON = 1e4, 1e-5  # of rotary positions, of RMS norms
BATCH, CONTEXT = 16, 256
PROMPT, GENERATED, CHECKED = 64, 128, 32  # tokens of one sequence
ATTENTION_HEADS, ATTENTION_SIZE = 8, 64

LIMITS = {"f32": 1e-4, "bf16": 3e-2}  # of the difference, which model.py defines


@dataclass(frozen=True)
class ModelWork:
    """A part of a model's life, and with what it runs."""

    part: str
    folder: Path
    dtype: Dtype
    threads: int
    unit = "billion tokens/s"

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.part} {self.dtype}"

    @property
    def amount(self) -> int:
        """Tokens of a run."""
        return BATCH * CONTEXT if self.part == "train" else GENERATED

    @property
    def outputs(self) -> list[str]:
        """What the answer consists of."""
        both = self.part == "train" and self.dtype == "f32"
        return ["logits", "gradient"] if both else ["logits"]

    @property
    def limit(self) -> float:
        """How far a peer's answer may be from ours."""
        return LIMITS[self.dtype]

    def arguments(self) -> list[str]:
        """Return the command line of a peer."""
        return [self.part, str(self.folder), self.dtype, str(self.threads)]

    @classmethod
    def of(cls, arguments: list[str]) -> ModelWork:
        """Return the work that a peer's command line names."""
        part, folder, dtype, threads = arguments
        return cls(part, Path(folder), "bf16" if dtype == "bf16" else "f32", int(threads))

    def parameters(self) -> dict[str, Array]:
        """Return the initial parameters."""
        with np.load(self.folder / "model.npz") as file:
            return dict(file)

    def tokens(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Return [B,S+1]: inputs are all but the last of each row, targets all but the first."""
        tokens: np.ndarray[Any, np.dtype[np.int32]] = np.load(self.folder / "tokens.npy")
        return tokens


@dataclass(frozen=True)
class AttentionWork:
    """Attention of one sequence, forward and backward; of bf16 what is multiplied, in PyTorch all arrays."""

    folder: Path
    tokens: int  # S
    causal: bool
    dtype: str
    threads: int
    unit = "GFLOP/s"
    outputs = ("y", "dx")

    @property
    def limit(self) -> float:
        """How far the sides may be from each other."""
        return LIMITS[self.dtype]

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"attention {self.dtype} S {self.tokens} {'causal' if self.causal else 'full'}"

    @property
    def amount(self) -> float:
        """Operations: 2 products of S x S x D in forward, 5 in backward; half of them where it is causal."""
        product = 2.0 * ATTENTION_HEADS * self.tokens * self.tokens * ATTENTION_SIZE
        return 7 * product / (2 if self.causal else 1)

    def arguments(self) -> list[str]:
        """Return the command line of a peer."""
        return [
            str(self.folder),
            str(self.tokens),
            "causal" if self.causal else "full",
            self.dtype,
            str(self.threads),
        ]

    @classmethod
    def of(cls, arguments: list[str]) -> AttentionWork:
        """Return the work that a peer's command line names."""
        folder, tokens, mask, dtype, threads = arguments
        return cls(Path(folder), int(tokens), mask == "causal", dtype, int(threads))

    def load(self) -> Array:
        """Return query, key, value and the output's gradient, [4,1,S,heads,D]."""
        arrays: Array = np.load(self.folder / "attention.npy")
        return arrays
