"""What a layer is: the fields of moe_layer_config that the parameters do not show by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Parameters = dict[str, Array]


@dataclass(frozen=True)
class Group:
    """Experts of one kind. The parameters tell MLP, gated and linear ones apart."""

    n_experts: int
    expert_kind: str = ""  # "identity", "zero" and "constant" count
    activation: str = "gelu"
    glu_limit: float = 0.0  # 0 is none
    glu_alpha: float = 0.0  # 0 is 1
    glu_offset: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Named as in moe_layer_config, with the names of the enums' values as in libmoe.Layer."""

    top_k: int
    router_weights: str = "scores"
    router_normalize: bool | str = True  # "sum", or False, "none", "norm1", "norm2", "normp"
    score: str = "softmax"
    n_experts: int = 0  # 0: as many as router.weight has rows
    n_groups: int = 0
    top_groups: int = 0
    group_top_m: int = 0
    group_mask: str = "minus_infinity"
    normalize_epsilon: float = 0.0
    epsilon_form: str = "added"
    normalize_p: float = 0.0
    routed_scale: float = 1.0
    activation: str = "gelu"
    balance_coef: float = 0.01
    z_coef: float = 0.001
    weight_dtype: str = "f32"
    glu_limit: float = 0.0
    glu_alpha: float = 0.0
    glu_offset: float = 0.0
    seed: int = 0
    router: str = "token_choice"
    expert_groups: tuple[Group, ...] = ()
    shared_gate: str = "plain"
    weight_on_input: bool = False
    mask_threshold: float = 0.0
    random_second: bool = False
    noise: str = "none"
    noise_std: float = 0.0
    jitter: float = 0.0
    jitter_experts: bool = False
    router_dropout: float = 0.0
    router_dropout_on: str = "input"
    router_batch_norm: bool = False
    batch_norm_momentum: float = 0.0
    batch_norm_epsilon: float = 0.0
    router_norm: str = "none"
    router_norm_scale: float = 0.0
    router_norm_epsilon: float = 0.0
    dynamic_k: str = "none"
    dynamic_value: float = 0.0
    min_k: int = 0
    warmup_steps: int = 0
    warmup_experts: int = 0
    capacity: int = 0
    min_capacity: int = 0
    capacity_formula: str = "none"
    capacity_factor: float = 0.0
    eval_capacity_factor: float = 0.0
    capacity_per_sequence: bool = False
    drop: str = "position"
    overflow: str = "drop"
    renormalize: str = "before"
    adaptive_capacity: bool = False
    adaptive_high: float = 0.0
    adaptive_high_factor: float = 0.0
    adaptive_low: float = 0.0
    adaptive_low_factor: float = 0.0
    hash_table: Integers | None = None
    losses: Mapping[str, float] = field(default_factory=dict)  # coefficients

    @classmethod
    def of(cls, layer_arguments: Mapping[str, Any]) -> Settings:
        """Take what belongs here out of the arguments of libmoe.Layer."""
        own = taken(cls, layer_arguments)
        groups = own.get("expert_groups", ())
        return cls(**{**own, "expert_groups": tuple(Group(**taken(Group, group)) for group in groups)})

    def groups(self, n_experts: int) -> list[tuple[str, Group]]:
        """The groups of experts and how the names of their parameters begin."""
        if self.expert_groups:
            return [(f"experts.{g}.", group) for g, group in enumerate(self.expert_groups)]
        limits = {name: getattr(self, name) for name in ("glu_limit", "glu_alpha", "glu_offset")}
        return [("experts.", Group(n_experts, activation=self.activation, **limits))]


def taken(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that are fields of a dataclass."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in arguments.items() if name in names}


def stored(settings: Settings, v: Array) -> Array:
    """V as an array of tokens holds it: beside bfloat16 weights with eight digits, even ones in a tie."""
    if settings.weight_dtype == "f32":
        return v
    mantissa, exponent = np.frexp(v)  # 1/2 <= |mantissa| < 1
    rounded: Array = np.ldexp(np.rint(mantissa * 2**8), exponent - 8)
    return rounded
