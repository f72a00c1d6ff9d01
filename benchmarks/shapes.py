"""What is measured: the layers' sizes, the optimiser's, and the work a call on them is."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import libmoe

Dtype = Literal["f32", "bf16"]
PARAMETERS = 50_000_000  # of the optimiser's step
# A parameter, by the type of m and v: p, gradient, m and v are read, p, m and v written.
ADAMW_BYTES: dict[Dtype, float] = {"f32": 28.0, "bf16": 20.0}


@dataclass(frozen=True)
class Shape:
    """T tokens through a layer of E experts, K for each token, from H features over I inner ones and back."""

    name: str
    tokens: int  # T
    hidden: int  # H
    inner: int  # I
    experts: int  # E
    top_k: int  # K
    kind: str  # "gelu": two matrices with biases; "swiglu": three matrices without

    @property
    def matrices(self) -> int:
        """Weight matrices of one expert, each H x I."""
        return 3 if self.kind == "swiglu" else 2

    def operations(self, backward: bool = False) -> float:
        """Floating-point operations in the experts' matrix products; backward has twice those of forward.

        The router's product, activations and sums are not counted.
        """
        forward = 2.0 * self.tokens * self.top_k * self.matrices * self.hidden * self.inner
        return 3 * forward if backward else forward

    def traffic(self, experts: float, weight_bytes: float) -> float:
        """Bytes that forward must move at least: the weights of the experts in use, x and y.

        Parameters
        ----------
        experts : float
            How many are in use.
        weight_bytes : float
            Of one weight: 4, 2, or those that it is packed in.
        """
        weights = experts * self.matrices * self.hidden * self.inner
        return weight_bytes * weights + 2 * 4.0 * self.tokens * self.hidden

    def layer(
        self,
        context: libmoe.Context,
        *,
        backward: bool = False,
        dtype: Dtype = "f32",
        communicator: libmoe.Communicator | None = None,
    ) -> libmoe.Layer:
        """Return libmoe's layer of this shape, with its initial weights and without auxiliary losses.

        `dtype` is the weights'; x and y are float32.  With a communicator it is one rank's part.
        """
        return libmoe.Layer(
            self.hidden,
            self.inner,
            self.experts,
            self.top_k,
            expert_kind="gated" if self.kind == "swiglu" else "mlp",
            activation="silu" if self.kind == "swiglu" else "gelu",
            router_bias=True,
            inference_only=not backward,
            balance_coef=0.0,
            z_coef=0.0,
            weight_dtype=dtype,
            context=context,
            communicator=communicator,
        )


S = Shape("S", tokens=1024, hidden=512, inner=2048, experts=8, top_k=2, kind="gelu")
Q = Shape("Q", tokens=1024, hidden=2048, inner=768, experts=64, top_k=8, kind="swiglu")


@functools.cache
def packed_bits(form: str) -> float:
    """Return how many bits the packed copy has for each weight, scales included."""
    weights = libmoe.ExpertWeights(gate=_zeros(), up=_zeros(), down=_zeros())
    packing: Any = form
    with libmoe.Context(1) as context, libmoe.experts_prepare(weights, packing, context=context) as prepared:
        return 8.0 * float(prepared.nbytes) / (3 * 1024 * 1024)


def _zeros() -> Any:
    return np.zeros((1, 1024, 1024), np.float32)
