"""Models of every kind, small, with values that tell them apart."""

from __future__ import annotations

from typing import Any

import numpy as np

import libmoe

MOE: dict[str, Any] = dict(n_experts=4, top_k=2, intermediate_size=10, expert_kind="gated", activation="silu")
LANGUAGE: dict[str, Any] = dict(hidden_size=12, n_layers=3, n_heads=3, vocabulary_size=17, seed=5)
ENCODER: dict[str, Any] = dict(
    hidden_size=12, n_layers=2, n_heads=2, norm="layer", causal=False, rope_theta=0.0
)


EXPERTS = {**LANGUAGE, "moe": MOE}
DENSE: dict[str, Any] = dict(dense_kind="mlp", dense_activation="gelu", dense_intermediate_size=20)
CASES: dict[str, dict[str, Any]] = {
    "language": {**EXPERTS},
    "untied, grouped heads, biases": {
        **EXPERTS,
        "n_heads": 6,
        "n_kv_heads": 2,
        "head_size": 4,
        "tied_output": False,
        "qkv_bias": True,
        "output_bias": True,
    },
    "normed heads": {**EXPERTS, "head_size": 8, "qk_norm": True},
    "heads normed together": {**EXPERTS, "n_kv_heads": 1, "head_size": 8, "qk_norm": "whole"},
    "heads normed after rotation": {**EXPERTS, "head_size": 8, "qk_norm": "rotated"},
    "two layers of three rotate": {
        **EXPERTS,
        "head_size": 6,
        "qk_norm": "plain",
        "temperature_scale": 0.7,
        "temperature_floor": 2.5,
        "layers": [{}, {"rotary": -1}, {"dense": True, "dense_intermediate_size": 14}],
    },
    "scaled": {
        **EXPERTS,
        "attention_scale": 0.3,
        "embedding_scale": 3.0,
        "residual_scale": 0.6,
        "logit_scale": 0.25,
    },
    "capped and biased": {
        **EXPERTS,
        "logit_softcap": 1.5,
        "logit_scale": 2.0,
        "logit_bias": True,
        "tied_output": False,
    },
    "gated attention": {
        **EXPERTS,
        "n_heads": 4,
        "n_kv_heads": 2,
        "attention_gate": True,
        "qkv_bias": True,
        "qk_norm": True,
    },
    "layers of many widths": {
        **LANGUAGE,
        **DENSE,
        "n_layers": 5,
        "moe": MOE,
        "layers": [
            {"dense": True},
            {"dense": True, "dense_intermediate_size": 33, "rotary": -1},
            {"rotary": -1},
            {"dense": True, "dense_intermediate_size": 3},
            {},
        ],
    },
    "rotary tables": {
        **EXPERTS,
        "head_size": 8,
        "n_kv_heads": 1,
        "rotary_tables": [
            {"theta": 50.0, "rotary_size": 4},
            {"frequencies": [0.9, -0.5, 0.2, 0.01], "scale": 1.25},
        ],
        "layers": [{"rotary": 1}, {"rotary": -1}, {}],
    },
    "long rotary": {
        **EXPERTS,
        "head_size": 6,
        "qk_norm": "whole",
        "rotary_tables": [
            {
                "frequencies": [1.0, 0.3, 0.1],
                "long_frequencies": [0.5, 0.1, 0.02],
                "long_scale": 1.1,
                "original_length": 7,
            }
        ],
    },
    "windows and chunks": {
        **EXPERTS,
        "n_layers": 4,
        "n_kv_heads": 1,
        "layers": [{"window": 3}, {}, {"chunk": 4, "rotary": -1}, {"window": 5, "chunk": 3}],
    },
    "sinks": {
        **EXPERTS,
        "n_heads": 4,
        "n_kv_heads": 2,
        "sinks": True,
        "layers": [{"window": 4}, {}, {}],
    },
    "wide values": {
        **EXPERTS,
        "n_heads": 4,
        "n_kv_heads": 2,
        "value_head_size": 7,
        "attention_gate": True,
        "qk_norm": "whole",
    },
    "learned positions": {
        **EXPERTS,
        "head_size": 5,
        "max_positions": 9,
        "rope_theta": 0.0,
        "norm": "layer",
    },
    "every second": {**LANGUAGE, **DENSE, "moe": MOE, "moe_every": 2},
    "pooled": {**LANGUAGE, "moe": {**MOE, "balance_coef": 0.0}, "head_size": 4, "pooled_balance_coef": 0.3},
    "by sequence": {**LANGUAGE, "moe": {**MOE, "losses": {"switch_sequence": 0.5}}, "head_size": 4},
    "encoder": {**ENCODER, **DENSE},
    "encoder after": {**ENCODER, **DENSE, "norm_place": "post", "final_norm": False},
    "encoder of experts": {**ENCODER, "moe": MOE, "norm_place": "post", "qkv_bias": True},
    "attention alone": {**ENCODER, "norm_place": "none", "final_norm": False},
}
for _case in CASES.values():
    _case.setdefault("head_size", 4)  # what H / n_heads is may be odd, and cannot turn


def made(arguments: dict[str, Any], context: libmoe.Context) -> libmoe.Model:
    """A model with random parameters, none of which is what it begins with."""
    model = libmoe.Model(**arguments, context=context)
    random = np.random.default_rng(2)
    for name, parameter in model.parameters.items():
        values = parameter.data
        deviation = values.shape[-1] ** -0.5 if values.ndim > 1 else 0.3
        drawn = random.normal(float("norm" in name and name.endswith("weight")), deviation, values.shape)
        values[...] = drawn if values.dtype == np.float32 else libmoe.to_bfloat16(drawn.astype(np.float32))
    return model


def call_of(arguments: dict[str, Any], b: int = 3, s: int = 9) -> dict[str, Any]:
    """Tokens, or an encoder's hidden states; of a language model with targets, some of which are left out."""
    random = np.random.default_rng(7)
    v = arguments.get("vocabulary_size")
    if not v:
        return {"tokens": random.standard_normal((b, s, arguments["hidden_size"])).astype(np.float32)}
    targets = random.integers(0, v, (b, s)).astype(np.int32)
    targets[0, :2] = -100
    return {"tokens": random.integers(0, v, (b, s)).astype(np.int32), "targets": targets}


def masked(call: dict[str, Any]) -> dict[str, Any]:
    """The call with masks of every kind, of three sequences."""
    b, s = call["tokens"].shape[:2]
    random = np.random.default_rng(1)
    valid = np.arange(s) < np.array([[s], [s - 3], [2]])
    seen = (random.random((s, s)) < 0.8) | np.eye(s, dtype=bool)
    added = random.standard_normal((s, s)).astype(np.float32)
    if "targets" in call:
        call["targets"][~valid] = -100
    return {**call, "mask": seen, "added_mask": added, "valid_mask": valid}


def backward(model: libmoe.Model, output: libmoe.ModelOutput, d_objective: float = 1.5) -> tuple[Any, Any]:
    """Run backward with a random gradient of the hidden states; return that of the input, and this one."""
    assert output.hidden is not None
    d_hidden = np.random.default_rng(9).standard_normal(output.hidden.shape).astype(np.float32)
    return model.backward(output, d_objective, d_hidden), d_hidden


def bits(
    arguments: dict[str, Any], call: dict[str, Any], *, tape: bool = True, **how: Any
) -> dict[str, bytes]:
    """All that a training step computes, or, without a tape, a forward."""
    limit = how.pop("memory_limit", None)
    with libmoe.Context(**how) as context:
        model = made(arguments, context)
        wanted: Any = {"hidden": True, "logits": bool(model.vocabulary_size)}
        output = model.forward(**call, **wanted, tape=tape or None, training=tape, step=3, memory_limit=limit)
        assert output.hidden is not None
        found = {"hidden": output.hidden.tobytes(), "objective": np.float64(output.objective).tobytes()}
        if output.logits is not None:
            found["logits"] = output.logits.tobytes()
        if tape:
            dinput = model.backward(output, 1.0, np.ones_like(output.hidden))
            found |= {name: parameter.grad.tobytes() for name, parameter in model.parameters.items()}
            found |= {} if dinput is None else {"dinput": dinput.tobytes()}
        return found


def assert_same_bits_anyhow(arguments: dict[str, Any], *, tape: bool = True) -> set[tuple[str, ...]]:
    """For any threads, instruction sets and limits; return what the layers keep under these."""
    call = call_of(arguments, 5, 131)
    expected = bits(arguments, call, tape=tape, n_threads=1)
    assert bits(arguments, call, tape=tape, n_threads=3) == expected
    assert bits(arguments, call, tape=tape, n_threads=2, instructions="avx2") == expected
    with libmoe.Context(n_threads=2) as context:
        model = libmoe.Model(**arguments, context=context)
        free = model.plan(5, 131, training=tape).total_bytes
        kept: set[tuple[str, ...]] = set()
        seen = set()
        for limit in range(free, 0, -free // 40):
            try:
                plan = model.plan(5, 131, training=tape, memory_limit=limit)
            except libmoe.InvalidArgumentError:
                break
            assert plan.total_bytes <= limit
            kept.add(tuple(plan.keep))
            if plan.total_bytes not in seen:
                assert bits(arguments, call, tape=tape, n_threads=2, memory_limit=limit) == expected
            seen.add(plan.total_bytes)
    assert len(seen) > 1
    return kept


def assert_slope(model: libmoe.Model, call: dict[str, Any], name: str) -> None:
    """A parameter's gradient along a random direction is the slope of the objective there."""
    parameter = model.parameters[name]
    direction = np.random.default_rng(len(name)).standard_normal(parameter.data.shape)
    direction /= np.linalg.norm(direction)
    before, size = parameter.data.copy(), 1e-2
    sides = []
    for sign in (1, -1):
        parameter.data[...] = before + sign * size * direction
        sides.append(model.forward(**call).objective)
    parameter.data[...] = before
    slope = (sides[0] - sides[1]) / (2 * size)
    np.testing.assert_allclose(slope, (parameter.grad * direction).sum(), rtol=0.03, atol=3e-4, err_msg=name)
