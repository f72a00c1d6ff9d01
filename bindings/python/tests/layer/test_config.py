"""A layer's options, on the way to the C struct and back."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import numpy as np
import pytest

import libmoe
from libmoe import config, words
from libmoe._native import abi

WHERE = {
    "context",
    "communicator",
    "experts_per_rank",
    "choice_scope",
    "strategy",
    "hot_experts",
}  # a layer is, and not what
DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(libmoe.Layer).parameters.items()
    if name not in WHERE
}
SIZES = {"hidden_size": 3, "intermediate_size": 4, "n_experts": 5, "top_k": 2}


def test_every_field_is_an_argument_and_every_argument_a_field() -> None:
    fields = {field[0] for field in abi.moe_layer_config._fields_}
    fields -= {"struct_size", "reserved", "reserved2", "n_expert_groups", "n_losses"}
    assert set(DEFAULTS) == fields


def test_the_old_name_of_router_normalize_is_taken() -> None:
    """In the arguments, in a model's ``moe`` and in a preset's, which old runs and programs have."""
    spelled: list[dict[str, Any]] = [{"normalize": False}, {"normalize": "none"}, {"router_normalize": False}]
    for options in spelled:
        layer = libmoe.Layer(**{**SIZES, **options})
        assert layer._config.router_normalize == abi.NORMALIZE["none"]
        model = libmoe.Model(4, 1, 2, moe={**SIZES, "hidden_size": 4, **options})
        assert model.layers[0]._config.router_normalize == abi.NORMALIZE["none"]
        preset = libmoe.presets.mixtral(**options)
        assert preset["router_normalize"] in (False, "none")
        assert "normalize" not in preset


def test_the_defaults_are_the_librarys_but_for_two_losses() -> None:
    filled, untouched = config.to_c({**DEFAULTS, **SIZES}), abi.moe_layer_config(**SIZES)
    assert filled.balance_coef == np.float32(0.01)
    assert filled.z_coef == np.float32(0.001)
    filled.balance_coef = filled.z_coef = 0
    assert bytes(filled) == bytes(untouched)


def test_the_layers_of_a_model_are_on_one_rank() -> None:
    moe = {**SIZES, "hidden_size": 4, "experts_per_rank": [5]}
    with pytest.raises(libmoe.InvalidArgumentError, match="moe: experts_per_rank.*model"):
        libmoe.Model(4, 1, 2, moe=moe)


def other(name: str, default: Any) -> Any:
    """Return a value of the option that is not its default."""
    if name == "expert_groups":
        return [
            {"n_experts": 2, "expert_kind": "gated", "dropout": 0.1, "expert_bias": True},
            {"n_experts": 3},
        ]
    if name == "unallocated":
        return ("expert_gradients", "expert_weights")
    if name == "losses":
        return {"switch": 0.01, "z_switch": 0.5}
    if default is None or isinstance(default, bool):
        return not default
    if isinstance(default, str):
        annotation = inspect.signature(libmoe.Layer).parameters[name].annotation
        return typing.get_args(getattr(words, annotation.split(".")[-1]))[-1]
    return 0.3 if isinstance(default, float) else 7


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name not in {*SIZES, "hash_table"}])
def test_every_option_arrives_and_comes_back(name: str) -> None:
    value = other(name, DEFAULTS[name])
    options = {**DEFAULTS, **SIZES}
    assert bytes(config.to_c({**options, name: value})) != bytes(config.to_c(options))
    del options["hash_table"]
    assert config.from_c(config.to_c({**options, name: value, "hash_table": None})) == {
        **options,
        name: value,
    }


def test_groups_and_losses_arrive_with_their_numbers() -> None:
    filled = config.to_c(
        {
            **DEFAULTS,
            **SIZES,
            "expert_groups": other("expert_groups", None),
            "losses": {"gshard": 0.25, "z": 2.0},
        }
    )
    gated, plain = filled.expert_groups[: filled.n_expert_groups]
    assert (gated.n_experts, gated.expert_kind, gated.expert_bias) == (2, abi.EXPERT_KIND["gated"], 2)
    assert gated.dropout == np.float32(0.1)
    assert bytes(plain) == bytes(abi.moe_expert_group(n_experts=3))
    terms = [(term.kind, term.coefficient) for term in filled.losses[: filled.n_losses]]
    assert terms == [(abi.LOSS["gshard"], 0.25), (abi.LOSS["z"], 2.0)]


def test_a_hash_table_is_passed_as_it_is_and_counts_the_token_ids() -> None:
    table = np.zeros((9, 2), np.int32)
    filled = config.to_c({**DEFAULTS, **SIZES, "hash_table": table})
    assert filled.hash_table == table.ctypes.data
    assert filled.vocabulary_size == 9


@pytest.mark.parametrize(
    ("wanted", "word"), [(True, "sum"), (False, "none"), *zip(abi.NORMALIZE, abi.NORMALIZE)]
)
def test_normalize_takes_yes_and_no(wanted: Any, word: str) -> None:
    filled = config.to_c({**DEFAULTS, **SIZES, "router_normalize": wanted})
    assert filled.router_normalize == abi.NORMALIZE[word]


@pytest.mark.parametrize(
    ("option", "kind", "text"),
    [
        (
            {"losses": {"swich": 0.1}},
            libmoe.InvalidArgumentError,
            "losses = 'swich'; choose one of 'balance'",
        ),
        ({"losses": {"switch": "1"}}, TypeError, "losses['switch']: expected a float, got str"),
        ({"losses": [("switch", 0.1)]}, TypeError, "losses: expected a dict of coefficients, got list; use"),
        (
            {"expert_groups": [3]},
            TypeError,
            "expert_groups[0]: expected a dict, got int; use libmoe.ExpertGroup",
        ),
        (
            {"expert_groups": [{"n_experts": 3}, {"n_experts": 2, "kind": "mlp"}]},
            libmoe.InvalidArgumentError,
            "expert_groups[1]: unknown names ['kind']; choose from ['n_experts', 'intermediate_size', ",
        ),
        (
            {"expert_groups": [{"expert_kind": "zero"}]},
            libmoe.InvalidArgumentError,
            "expert_groups[0]: n_experts is missing",
        ),
        (
            {"expert_groups": [{"n_experts": 5, "activation": "tanh"}]},
            libmoe.InvalidArgumentError,
            "expert_groups[0].activation = 'tanh'; choose one of 'gelu'",
        ),
        (
            {"hash_table": np.zeros((9, 2))},
            TypeError,
            "hash_table: expected int32, got float64; use hash_table.",
        ),
        (
            {"hash_table": np.zeros((9, 3), np.int32)},
            ValueError,
            "hash_table: expected shape [vocabulary_size, top_k = 2], got (9, 3)",
        ),
        (
            {"hash_table": np.zeros((9, 2), np.int32), "vocabulary_size": 8},
            libmoe.InvalidArgumentError,
            "vocabulary_size = 8, but hash_table has 9 rows",
        ),
        ({"min_k": 2**31}, libmoe.InvalidArgumentError, "min_k = 2147483648 is out of range"),
        ({"noise_std": "1"}, TypeError, "noise_std: expected a float, got str"),
    ],
)
def test_wrong_options(option: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match="^" + re.escape(text)):
        libmoe.Layer(**{**SIZES, **option})
