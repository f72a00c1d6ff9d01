"""Ways to divide experts among ranks beside one owner for each."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import libmoe
from ranked_layers import GROUPS, Part, alone, joined, plain, require_same, same, step, together, tokens, whole
from thread_ranks import ThreadRanks

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"expert_kind": "gated", "activation": "silu", "expert_bias": False},
    "linear": {"expert_kind": "linear", "intermediate_size": 24},
    "shared": {"n_shared_experts": 2, "output_bias": True, "shared_gate": "sigmoid"},
    "bf16": {"weight_dtype": "bf16", "io_dtype": "bf16"},
    "f16": {"weight_dtype": "f16"},
    "weight on input": {"weight_on_input": True},
    "dropout": {"dropout": 0.3, "jitter": 0.1, "jitter_experts": True, "n_shared_experts": 1},
    "capacity": {"capacity_formula": "megatron", "drop": "choice_position", "losses": {"gshard": 0.1}},
}


def replicated(**changes: Any) -> dict[str, Any]:
    """Return a small layer's arguments, all of whose experts are on every rank."""
    return plain(strategy="replicated", **changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["full", "lean"])
def test_replicated_experts_have_the_bits_of_one_process(kind: str, policy: str) -> None:
    same(replicated(**KINDS[kind]), [14, 0, 23], training=True, step=3, tape_policy=policy)


@pytest.mark.parametrize("parts", [[37], [0, 37], [37, 0], [1, 2, 30, 4]], ids=str)
def test_replicated_experts_with_any_division_of_tokens(parts: list[int]) -> None:
    groups = [group for group in GROUPS["expert_groups"] if group.get("expert_kind") != "constant"]
    same(replicated(**GROUPS | {"expert_groups": groups, "n_experts": 6, "n_shared_experts": 1}), parts)


def test_replicated_experts_in_chunks() -> None:
    config = replicated(n_shared_experts=1, expert_kind="gated")
    same(config, [700, 0, 300], chunk_tokens=256, training=True)


def test_twenty_steps_of_replicated_experts() -> None:
    config = replicated(n_shared_experts=1, dropout=0.1, hidden_size=96, intermediate_size=112)
    x, dy = tokens(45, 96)

    def use(layer: libmoe.Layer, part: Part) -> Any:
        optimizer = libmoe.AdamW(layer.parameters, learning_rate=0.01)
        for number in range(20):
            step(layer, part, x + number, dy, training=True, step=number)
            layer.clip_grad_norm(0.5)
            optimizer.step()
            layer.zero_grad()
        return step(layer, part, x, dy)

    require_same(joined(together(config, [7, 0, 38], use), "replicated"), alone(whole(config), 45, use))


def test_of_replicated_experts_gradients_travel_and_no_rows() -> None:
    config = replicated(router="external", balance_coef=0.0, z_coef=0.0, n_experts=4, expert_bias=False)

    def sent(count: int, hidden: int) -> Any:
        ranks = ThreadRanks(3, patience=20)
        x, dy = tokens(count, hidden)
        given: dict[str, Any] = {
            "expert_indices": np.zeros((count, 2), np.int32),
            "expert_weights": np.ones((count, 2), np.float32),
        }
        use = partial(step, x=x, dy=dy, **given)
        together({**config, "hidden_size": hidden}, [count // 3] * 3, use, ranks)
        return np.array([[ranks.bytes(a, b) for b in range(3)] for a in range(3)])

    assert (sent(30, 64) == sent(300, 64)).all()
    more = 4 * 2 * 40 * 32 * 4  # bytes of all experts' gradients, with 32 features more
    np.testing.assert_array_equal(
        sent(30, 64) - sent(30, 32), [[0, 2 * more, 0], [0, 0, more], [more, 0, 0]]
    )


def test_what_does_not_go_with_a_strategy_is_refused() -> None:
    one = ThreadRanks(1).communicators[0]
    for options, words in (
        ({"experts_per_rank": [7]}, "experts_per_rank is given, but strategy is not 'exclusive'"),
        (GROUPS, "strategy = 'replicated': constant experts"),
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match=words):
            libmoe.Layer(**replicated(**options), communicator=one)
    with pytest.raises(libmoe.InvalidArgumentError, match="but there is no communicator"):
        libmoe.Layer(**replicated())


def test_ranks_with_other_strategies_are_told_so() -> None:
    def use(communicator: libmoe.Communicator) -> str:
        strategy: Any = ["exclusive", "replicated"][communicator.rank]
        layer = libmoe.Layer(**plain(strategy=strategy), communicator=communicator)
        with pytest.raises(libmoe.InvalidArgumentError) as caught:
            layer(tokens(4)[0])
        return str(caught.value)

    words = ThreadRanks(2, patience=20).run(use)
    assert words[0] == words[1]
    assert "another configuration, placement" in words[0]
