"""The schemes: what differs from one training to the next.

Each is the classic layer with few things changed.  Classic: softmax, the best TOP_K of N_EXPERTS experts,
their probabilities divided by their sum, balance loss 0.01, z-loss 0.001.  Where the width of experts is
changed, then so that a token uses ACTIVE inner features, as many as the dense layer has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import libmoe
from train_text.model import HIDDEN, INTERMEDIATE, N_EXPERTS, TOP_K
from train_text.text import Bytes

ACTIVE = TOP_K * INTERMEDIATE  # inner features that a token uses


@dataclass(frozen=True)
class Scheme:
    """One way of routing."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)  # to the arguments of the classic layer
    given: Callable[[Bytes], dict[str, Any]] = lambda contexts: {}  # what forward is told of [T,CONTEXT]
    bias_rate: float = 0.0  # of the selection bias's updates, after every step
    wanted: float = 0.0  # experts of a token on average, which the first loss's coefficient sees to
    head_start: float = 0.0  # added to the logits of the first TOP_K experts at the beginning

    def layer(self, seed: int, context: libmoe.Context) -> libmoe.Layer:
        """Return a new layer of this scheme."""
        layer = libmoe.Layer(HIDDEN, **self._arguments(), seed=seed, context=context)
        if self.head_start:
            layer.parameters["router.bias"].data[:TOP_K] += self.head_start
        return layer

    def widths(self) -> NDArray[np.int64]:
        """Inner features of each routed expert [E]."""
        arguments = self._arguments()
        one = {"n_experts": arguments["n_experts"], "intermediate_size": arguments["intermediate_size"]}
        groups = arguments.get("expert_groups", [one])
        counts = [group["n_experts"] for group in groups]
        return np.repeat([group.get("intermediate_size", 0) for group in groups], counts)

    def shared_width(self) -> int:
        """Inner features of the experts that every token uses."""
        arguments = self._arguments()
        return int(arguments.get("n_shared_experts", 0) * arguments["intermediate_size"])

    def _arguments(self) -> dict[str, Any]:
        classic = {"intermediate_size": INTERMEDIATE, "n_experts": N_EXPERTS, "top_k": TOP_K}
        return {**classic, **self.changes}


def latest_byte(contexts: Bytes) -> dict[str, Any]:
    """Route by the byte before the one to be predicted."""
    return {"token_ids": contexts[:, -1].astype(np.int64)}


@cache
def random_experts() -> NDArray[np.int32]:
    """TOP_K different experts at random for every pair of bytes [65536,TOP_K], always the same."""
    order = np.random.default_rng(0).random((1 << 16, N_EXPERTS)).argsort(axis=1)
    return order[:, :TOP_K].astype(np.int32)


def latest_two_bytes(contexts: Bytes) -> dict[str, Any]:
    """Give each pair of bytes its random experts, with equal weights."""
    experts = random_experts()[contexts[:, -2].astype(np.int64) * 256 + contexts[:, -1]]
    return {"expert_indices": experts, "expert_weights": np.full(experts.shape, 1 / TOP_K, np.float32)}


DENSE = Scheme(
    "dense layer of the active width",
    {"intermediate_size": ACTIVE, "n_experts": 1, "top_k": 1, "balance_coef": 0.0, "z_coef": 0.0},
)
CLASSIC = Scheme("classic: softmax, top-2, balance loss")

# One expert a token, as wide as two. A weight divided by itself would be 1 and teach the router nothing.
_TOP_1: dict[str, Any] = {"top_k": 1, "router_normalize": "none", "intermediate_size": ACTIVE}
# One routed expert beside one that every token uses.
_BESIDE_SHARED: dict[str, Any] = {"top_k": 1, "router_normalize": "none", "n_shared_experts": 1}
# A quarter more room than perfect balance needs: int(f T / E), where f counts every one of the K choices.
_CAPACITY: dict[str, Any] = {"capacity_formula": "classic", "capacity_factor": 1.25 * TOP_K}
_NO_LOSS: dict[str, Any] = {"balance_coef": 0.0}
_BIASED: dict[str, Any] = {**_NO_LOSS, "score": "sigmoid", "selection_bias": True}

_RELU: dict[str, Any] = {
    **_NO_LOSS,
    "z_coef": 0.0,
    "top_k": 8,
    "router": "relu",
    "score": "identity",
    "router_normalize": "none",
    "losses": {"l1_balanced": 1e-8},
}

SCHEMES = [
    DENSE,
    CLASSIC,
    Scheme("no balance loss", _NO_LOSS),
    Scheme("selection bias instead of a loss (DeepSeek-V3)", _BIASED, bias_rate=0.01),
    Scheme("top-1, Switch loss", {**_NO_LOSS, **_TOP_1, "losses": {"switch": 0.01}}),
    Scheme("expert choice", {**_NO_LOSS, "router": "expert_choice", "router_normalize": "none"}),
    Scheme("hierarchical: 2 of 4 groups", {"router": "hierarchical", "n_groups": 4, "top_groups": 2}),
    Scheme(
        "hash of the latest byte",
        {**_NO_LOSS, "z_coef": 0.0, "router": "hash", "router_weights": "equal", "vocabulary_size": 256},
        given=latest_byte,
    ),
    Scheme("Sinkhorn", {**_NO_LOSS, "router": "sinkhorn"}),
    Scheme("ReLU, adaptive L1 loss, at most 8 (ReMoE)", _RELU, wanted=TOP_K),
    Scheme(
        "noisy top-k, importance and load losses (Shazeer)",
        {**_NO_LOSS, "noise": "learned", "router_weights": "topk_softmax", "losses": {"shazeer": 0.01}},
    ),
    Scheme("Gaussian noise, 1/E", {"noise": "gaussian", "noise_std": 1 / N_EXPERTS}),
    Scheme("capacity 1.25, drops", _CAPACITY),
    Scheme(
        "capacity 1.25, random second choice (GShard)",
        {
            **_NO_LOSS,
            **_CAPACITY,
            "drop": "choice_position",
            "random_second": True,
            "losses": {"gshard": 0.01},
        },
    ),
    Scheme("capacity 1.25, overflow to the next best", {**_CAPACITY, "overflow": "next_best"}),
    Scheme("dynamic k: top-p 0.5, at most 4", {"top_k": 4, "dynamic_k": "top_p", "dynamic_value": 0.5}),
    Scheme("expert warm-up over 200 steps", {"warmup_steps": 200}),
    Scheme("router dropout 0.1", {"router_dropout": 0.1}),
    Scheme("batch-normalised router", {"router_batch_norm": True}),
    Scheme("router jitter 0.1", {"jitter": 0.1}),
    Scheme("shared expert and top-1", _BESIDE_SHARED),
    Scheme("dense residual and top-1 (DeepSpeed)", {**_BESIDE_SHARED, "shared_gate": "residual"}),
    Scheme(
        "12 experts, 4 identities (LongCat)",
        {
            "intermediate_size": 0,
            "expert_groups": [
                {"n_experts": N_EXPERTS - 4, "intermediate_size": INTERMEDIATE},
                {"n_experts": 4, "expert_kind": "identity"},
            ],
        },
    ),
    Scheme(
        "13 experts, identity, zero, constant (MoE++)",
        {
            "intermediate_size": 0,
            "expert_groups": [
                {"n_experts": N_EXPERTS - 3, "intermediate_size": INTERMEDIATE},
                {"n_experts": 1, "expert_kind": "identity"},
                {"n_experts": 1, "expert_kind": "zero"},
                {"n_experts": 1, "expert_kind": "constant"},
            ],
        },
    ),
    Scheme(
        "external: random by two bytes",
        {**_NO_LOSS, "z_coef": 0.0, "router": "external"},
        given=latest_two_bytes,
    ),
]

# Collapse: TOP_K experts have a head start that nothing takes from them, and three cures.
_AHEAD = 4.0
COLLAPSE = [
    Scheme("head start, no balance loss", _NO_LOSS, head_start=_AHEAD),
    Scheme("head start, balance loss", head_start=_AHEAD),
    Scheme("head start, selection bias", _BIASED, bias_rate=0.01, head_start=_AHEAD),
    Scheme("head start, Sinkhorn", {**_NO_LOSS, "router": "sinkhorn"}, head_start=_AHEAD),
]
