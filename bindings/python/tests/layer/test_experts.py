"""Experts of several kinds in one layer, experts that all tokens share, and what is added at the end."""

from __future__ import annotations

import numpy as np
import pytest

import libmoe
from against_oracle import MATMULS, Arguments, check, inputs

H, T = 9, 40
GATED: Arguments = {"intermediate_size": 11, "expert_kind": "gated", "activation": "silu"}
LIMITED: Arguments = {**GATED, "glu_limit": 0.4, "glu_alpha": 1.702, "glu_offset": 1.0}


def group(n_experts: int, **options: object) -> Arguments:
    return {"n_experts": n_experts, **options}


MIXES: dict[str, list[Arguments]] = {
    "widths": [group(3, intermediate_size=5), group(2, intermediate_size=33), group(1, intermediate_size=1)],
    "kinds": [
        group(2, **GATED),
        group(1, intermediate_size=7, activation="relu2", expert_bias=False),
        group(2, expert_kind="linear"),
        group(1, **LIMITED, expert_bias=True),
    ],
    "LongCat-Flash": [group(4, **GATED), group(2, expert_kind="identity")],
    "MoE++": [
        group(3, **GATED),
        group(1, expert_kind="zero"),
        group(1, expert_kind="identity"),
        group(2, expert_kind="constant"),
    ],
    "the plain ones first": [
        group(1, expert_kind="constant"),
        group(2, expert_kind="zero"),
        group(3, intermediate_size=6),
    ],
    "no matrices at all": [group(2, expert_kind="identity"), group(3, expert_kind="constant")],
    "one group": [group(5, **GATED)],
}


def mixed(mix: str, **more: object) -> Arguments:
    groups = MIXES[mix]
    n_experts = sum(int(g["n_experts"]) for g in groups)
    sizes = {"hidden_size": H, "intermediate_size": 0, "n_experts": n_experts, "top_k": 2}
    return {**sizes, "expert_groups": groups, **more}


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("weight_on_input", [False, True])
@pytest.mark.parametrize("mix", MIXES)
def test_mixes(mix: str, weight_on_input: bool, matmul: str) -> None:
    check(mixed(mix, weight_on_input=weight_on_input), matmul, T)


@pytest.mark.parametrize("n_tokens", [0, 1, 300])
@pytest.mark.parametrize("mix", ["kinds", "MoE++"])
def test_numbers_of_tokens(mix: str, n_tokens: int) -> None:
    check(mixed(mix), "native", n_tokens)


def test_names_and_shapes_of_groups() -> None:
    layer = libmoe.Layer(**mixed("MoE++"))
    shapes = {name: parameter.data.shape for name, parameter in layer.parameters.items()}
    assert shapes == {
        "router.weight": (7, H),
        "router.bias": (7,),
        "experts.0.gate.weight": (3, 11, H),
        "experts.0.up.weight": (3, 11, H),
        "experts.0.down.weight": (3, H, 11),
        "experts.3.constant": (2, H),
    }
    np.testing.assert_array_equal(layer.parameters["experts.3.constant"].data, 0)


def test_one_group_is_the_layer_without_groups() -> None:
    grouped = libmoe.Layer(**mixed("one group"))
    plain = libmoe.Layer(H, n_experts=5, top_k=2, **GATED)
    plain.load_state_dict({name.replace(".0.", "."): v for name, v in grouped.state_dict().items()})
    x, _ = inputs(T, H)
    np.testing.assert_array_equal(grouped(x), plain(x))


KINDS: dict[str, Arguments] = {
    "mlp": {"intermediate_size": 11},
    "gated": GATED,
    "clamped": {**LIMITED, "expert_bias": True},
    "linear": {"intermediate_size": 0, "expert_kind": "linear"},
}
SHARED: dict[str, Arguments] = {
    "plain": {"n_shared_experts": 1},
    "three": {"n_shared_experts": 3},
    "DeepSeek": {"n_shared_experts": 2, "routed_scale": 2.5},
    "sigmoid": {"n_shared_experts": 2, "shared_gate": "sigmoid"},
    "residual": {"n_shared_experts": 1, "shared_gate": "residual"},
    "residual, scaled": {"n_shared_experts": 1, "shared_gate": "residual", "routed_scale": 1.5},
}


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", SHARED)
def test_shared_experts(shared: str, kind: str, matmul: str) -> None:
    check({"hidden_size": H, "n_experts": 5, "top_k": 2, **KINDS[kind], **SHARED[shared]}, matmul, T)


@pytest.mark.parametrize("n_tokens", [0, 1, 300])
@pytest.mark.parametrize("shared", SHARED)
def test_shared_experts_of_their_own_width(shared: str, n_tokens: int) -> None:
    arguments = {"hidden_size": H, "n_experts": 5, "top_k": 2, **GATED, **SHARED[shared]}
    check({**arguments, "shared_intermediate_size": 19}, "native", n_tokens)


def test_shared_experts_beside_groups_are_of_the_first_kind() -> None:
    arguments = mixed("MoE++", n_shared_experts=2, shared_gate="sigmoid", shared_intermediate_size=6)
    layer = libmoe.Layer(**arguments)
    assert layer.parameters["shared.gate.weight"].data.shape == (2, 6, H)
    assert layer.parameters["shared.router.weight"].data.shape == (2, H)
    check(arguments)


def test_tokens_that_are_dropped_still_have_shared_experts() -> None:
    arguments: Arguments = {"hidden_size": H, "n_experts": 5, "top_k": 2, **GATED, "output_bias": True}
    arguments |= {"n_shared_experts": 1, "capacity_formula": "constant", "capacity": 1}
    truth = check(arguments)
    assert (truth.routing.indices < 0).all(axis=1).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["scores", "topk_sigmoid"])
def test_weight_on_input(weights: str, kind: str) -> None:
    arguments: Arguments = {"hidden_size": H, "n_experts": 5, "top_k": 2, "router_normalize": False}
    check({**arguments, **KINDS[kind], "router_weights": weights, "weight_on_input": True})


@pytest.mark.parametrize("more", ["output_bias", "weight_on_input"])
@pytest.mark.parametrize("shared", [{}, *SHARED.values()], ids=["none", *SHARED])
def test_beside_shared_experts(shared: Arguments, more: str) -> None:
    arguments: Arguments = {"hidden_size": H, "n_experts": 5, "top_k": 2, **GATED, **shared, more: True}
    if more == "weight_on_input" and shared.get("shared_gate") == "residual":
        with pytest.raises(libmoe.InvalidArgumentError, match=r"shared_gate.*weight_on_input"):
            check(arguments)
    else:
        check(arguments)


def test_an_expert_may_be_named_twice() -> None:
    given = np.tile(np.array([[1, 1], [2, 1]], np.int32), (T // 2, 1))
    for mix in ("kinds", "MoE++"):
        check(mixed(mix), expert_indices=given)
