"""Ways to divide experts among ranks beside one owner for each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import libmoe
import oracle
from comparison import assert_all_close, assert_close, assert_same_bits
from ranked_layers import (
    GROUPS,
    Part,
    alone,
    divided,
    joined,
    plain,
    require_same,
    same,
    step,
    together,
    tokens,
    whole,
)
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


def one_token_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX512-BF16 adds two tokens to a gradient at once, of which two ranks may have one each."""
    if kind == "bf16":
        monkeypatch.setattr(libmoe, "Context", partial(libmoe.Context, instructions="avx512"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["full", "lean"])
def test_replicated_experts_have_the_bits_of_one_process(
    kind: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_token_at_a_time(kind, monkeypatch)
    same(replicated(**KINDS[kind]), [14, 0, 23], training=True, step=3, tape_policy=policy)


@pytest.mark.parametrize("parts", [[37], [0, 37], [37, 0], [1, 2, 30, 4]], ids=str)
def test_replicated_experts_with_any_division_of_tokens(parts: list[int]) -> None:
    groups = [group for group in GROUPS["expert_groups"] if group.get("expert_kind") != "constant"]
    same(replicated(**GROUPS | {"expert_groups": groups, "n_experts": 6, "n_shared_experts": 1}), parts)


def test_replicated_experts_in_chunks() -> None:
    config = replicated(n_shared_experts=1, expert_kind="gated")
    same(config, [700, 0, 300], chunk_tokens=256, training=True)


def _twenty(layer: libmoe.Layer, part: Part, x: Any, dy: Any) -> Any:
    optimizer = libmoe.AdamW(layer.parameters, learning_rate=0.01)
    for number in range(20):
        step(layer, part, x + number, dy, training=True, step=number)
        layer.clip_grad_norm(0.5)
        optimizer.step()
        layer.zero_grad()
    return step(layer, part, x, dy)


def test_twenty_steps_of_replicated_experts() -> None:
    config = replicated(n_shared_experts=1, dropout=0.1, hidden_size=96, intermediate_size=112)
    x, dy = tokens(45, 96)

    use = partial(_twenty, x=x, dy=dy)
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
    np.testing.assert_array_equal(sent(30, 64) - sent(30, 32), [[0, 2 * more, 0], [0, 0, more], [more, 0, 0]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["full", "lean"])
def test_hot_experts_have_the_bits_of_one_process(
    kind: str, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_token_at_a_time(kind, monkeypatch)
    config = plain(hot_experts=[5, 0, 3], **KINDS[kind])
    same(config, [14, 0, 23], training=True, step=3, tape_policy=policy)


@pytest.mark.parametrize("hot", [[6], [0, 1, 2, 3, 4, 5, 6], 7], ids=str)
@pytest.mark.parametrize(
    ("parts", "counts"), [([37], None), ([0, 37], [7, 0]), ([1, 2, 30, 4], [3, 0, 0, 4]), ([400, 300], None)],
    ids=str,
)  # fmt: skip
def test_hot_experts_anywhere(hot: Any, parts: list[int], counts: list[int] | None) -> None:
    same(plain(hot_experts=hot, experts_per_rank=counts, intermediate_size=3), parts)


@pytest.mark.parametrize("hot", [[2, 4], 3], ids=str)
def test_hot_experts_of_each_chunk(hot: Any) -> None:
    config = plain(hot_experts=hot, n_shared_experts=1, intermediate_size=5)
    same(config, [700, 0, 900], chunk_tokens=256, training=True)
    same(config, [700, 0, 900], memory_limit=4 << 20)


def test_hot_experts_beside_pieces() -> None:
    config = plain(
        n_experts=12, hidden_size=512, intermediate_size=8, hot_experts=[3, 7], expert_kind="gated"
    )
    same(config, [700, 0, 900], training=True)


def test_twenty_steps_with_hot_experts() -> None:
    config = plain(dropout=0.1, hidden_size=96, intermediate_size=9, hot_experts=2)
    x, dy = tokens(450, 96)
    wanted = alone(whole(config), 450, partial(_twenty, x=x, dy=dy))
    for hot in (2, [6, 1]):
        use = partial(_twenty, x=x, dy=dy)
        require_same(joined(together({**config, "hot_experts": hot}, [70, 0, 380], use)), wanted)


def _bytes(config: dict[str, Any], parts: list[int], indices: Any, *, backward: bool) -> Any:
    """Return what each rank has sent to each in a step."""
    ranks = ThreadRanks(len(parts), patience=20)
    x, dy = tokens(len(indices), config["hidden_size"])
    weights = np.ones(indices.shape, np.float32)
    given: dict[str, Any] = {"expert_indices": indices, "expert_weights": weights, "backward": backward}
    config = {**config, "router": "external", "balance_coef": 0.0, "z_coef": 0.0}
    together(config, parts, partial(step, x=x, dy=dy, **given), ranks)
    return np.array([[ranks.bytes(a, b) for b in range(len(parts))] for a in range(len(parts))])


def test_of_hot_experts_weights_travel_and_no_rows() -> None:
    """Of the same choices with twice the features, so that what else is told does not count."""
    indices = np.random.default_rng(2).integers(0, 4, (15, 2), np.int32)
    config = plain(n_experts=4, expert_bias=False, hot_experts=[0, 1, 2, 3], experts_per_rank=[2, 1, 1])

    def more(*, backward: bool) -> Any:
        one, other = (
            _bytes({**config, "hidden_size": hidden}, [6, 0, 9], indices, backward=backward)
            for hidden in (32, 64)
        )
        return other - one

    expert = 2 * 40 * 32 * 4  # bytes of two matrices, with 32 features more
    owned = np.array([2, 1, 1]) * expert
    weights = np.array([[0, 2, 2], [1, 0, 1], [1, 1, 0]]) * expert
    np.testing.assert_array_equal(more(backward=False), weights)
    gradients = np.zeros((3, 3), np.int64)
    gradients[1:, 0] += owned[1:]  # to the first rank,
    gradients[0, 1] += 4 * expert  # from rank to rank,
    gradients[1, 2] += 4 * expert
    gradients[2, :2] += owned[:2]  # and back
    np.testing.assert_array_equal(more(backward=True), 2 * weights + gradients)


def test_an_expert_is_hot_where_that_sends_less() -> None:
    """With x and an output of 64 features, and 2 * 64 * 3 weights: forwards from four rows on."""
    config = plain(n_experts=2, top_k=1, hidden_size=64, intermediate_size=3, expert_bias=False)

    def sent(rows: int, hot: Any) -> Any:
        indices = np.zeros((rows + 2, 1), np.int32)
        indices[:2] = 1  # of rank 0, which owns expert 0; rank 1 has the others
        return _bytes({**config, "hot_experts": hot}, [2, rows], indices, backward=False)

    assert (sent(3, 2) == sent(3, 0)).all()
    np.testing.assert_array_equal(sent(4, 1) - sent(4, [0]), 0)
    assert sent(4, 1).sum() < sent(4, 0).sum()


def test_prepared_experts_are_not_hot() -> None:
    config = plain(hidden_size=64, intermediate_size=64, inference_only=True, hot_experts=[1, 2])
    x, _ = tokens(37, 64)

    def use(layer: libmoe.Layer, part: Part) -> Any:
        layer.prepare("int8")
        return layer(part.of(x))

    found = np.concatenate(together(config, [14, 0, 23], use))
    np.testing.assert_array_equal(found, alone(whole(config), 37, use))


SLICED = ["plain", "gated", "shared", "weight on input", "capacity"]


def sliced(parts: list[int], threads: int = 1, config: dict[str, Any] | None = None, **options: Any) -> Any:
    """Return what ranks have made that have a slice of each expert."""
    config = {**plain(strategy="sliced"), **(config or {})}
    x, dy = tokens(sum(parts), config["hidden_size"])
    if config.get("io_dtype") == "bf16":
        x, dy = (libmoe.to_bfloat16(array) for array in (x, dy))
    divisions = divided(parts)

    def one(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(threads) as context:
            layer = libmoe.Layer(**config, context=context, communicator=communicator)
            return step(layer, divisions[communicator.rank], x, dy, **options)

    return joined(ThreadRanks(len(parts), patience=20).run(one), "sliced")


@pytest.mark.parametrize("kind", SLICED)
@pytest.mark.parametrize("policy", ["full", "lean"])
def test_sliced_experts_are_those_of_the_oracle(kind: str, policy: str) -> None:
    config = plain(**KINDS[kind])
    made = sliced([14, 0, 23], config=config, tape_policy=policy)
    with libmoe.Context(1) as context:
        begun = libmoe.Layer(**config, context=context).state_dict()
    for name, values in begun.items():
        assert_same_bits(made.parameters[name], values, name)
    x, dy = tokens(37)
    truth = oracle.forward(oracle.Settings.of(config), begun, x)
    assert truth.routing.margin() > 1e-5, "choose another seed"
    d_x, gradients = oracle.backward(truth, dy, 1.0, None, None)
    assert_close("y", made.y, truth.y)
    assert_close("dx", made.dx, d_x)
    assert_all_close(made.gradients, gradients)


@pytest.mark.parametrize("kind", [*SLICED, "bf16"])
def test_bits_of_sliced_experts_depend_on_the_slices_alone(kind: str) -> None:
    wanted = sliced([37, 0, 0], config=KINDS[kind])
    for parts, threads in (([9, 9, 19], 1), ([0, 36, 1], 2)):
        require_same(sliced(parts, threads, KINDS[kind]), wanted)


def test_neither_chunks_nor_pieces_change_bits_of_sliced_experts() -> None:
    config = {"n_experts": 12, "hidden_size": 256, "expert_kind": "gated", "n_shared_experts": 1}
    wanted = sliced([700, 0, 900], config=config)
    require_same(sliced([1000, 500, 100], config=config, chunk_tokens=256), wanted)


def test_twenty_steps_of_sliced_experts() -> None:
    config = plain(strategy="sliced", hidden_size=96, n_shared_experts=1)
    x, dy = tokens(450, 96)
    use = partial(_twenty, x=x, dy=dy)
    one, other = (joined(together(config, parts, use), "sliced") for parts in ([70, 0, 380], [200, 200, 50]))
    require_same(one, other)
    wanted = alone(whole(config), 450, use)
    np.testing.assert_allclose(one.y, wanted.y, rtol=1e-2, atol=1e-3)


def test_the_norm_of_sliced_gradients() -> None:
    x, dy = tokens(37)

    def use(layer: libmoe.Layer, part: Part) -> Any:
        made = step(layer, part, x, dy)
        return made, layer.clip_grad_norm(1e-3)

    made = together(plain(strategy="sliced"), [14, 0, 23], use)
    assert len({norm for _, norm in made}) == 1
    gradients = joined([own for own, _ in made], "sliced").gradients
    squares = sum(float((gradient.astype(np.float64) ** 2).sum()) for gradient in gradients.values())
    assert made[0][1] == pytest.approx(squares**0.5, rel=1e-6)


def test_every_row_of_sliced_experts_goes_to_all_ranks() -> None:
    indices = np.random.default_rng(2).integers(0, 4, (15, 2), np.int32)
    config = plain(n_experts=4, strategy="sliced")

    def more(*, backward: bool) -> Any:
        one, other = (
            _bytes({**config, "hidden_size": hidden}, [6, 0, 9], indices, backward=backward)
            for hidden in (32, 64)
        )
        return other - one

    rows = 2 * np.array([[6] * 3, [0] * 3, [9] * 3]) * 32 * 4
    there_and_back = rows + rows.T
    np.testing.assert_array_equal(more(backward=False), there_and_back)
    np.testing.assert_array_equal(more(backward=True), 2 * there_and_back)


def test_what_does_not_go_with_a_strategy_is_refused() -> None:
    one = ThreadRanks(1).communicators[0]
    for options, words in (
        (
            {"strategy": "replicated", "experts_per_rank": [7]},
            "experts_per_rank is given, but strategy is not",
        ),
        ({"strategy": "replicated", **GROUPS}, "strategy = 'replicated': constant experts"),
        ({"strategy": "replicated", "hot_experts": 1}, "hot_experts is not 0, but strategy is not"),
        ({"hot_experts": 1, **GROUPS}, "hot_experts is not 0, but not all experts are of one kind"),
        ({"strategy": "sliced", "dropout": 0.1}, "strategy = 'sliced': dropout"),
        (
            {"strategy": "sliced", "expert_kind": "linear", "intermediate_size": 24},
            "strategy = 'sliced': only",
        ),
        ({"hot_experts": 8}, "hot_experts = 8"),
        ({"hot_experts": [1, 7]}, "hot_indices.1. = 7"),
        ({"hot_experts": [1, 3, 1]}, "hot_indices.2. = 1, which is named twice"),
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match=words):
            libmoe.Layer(**plain(**options), communicator=one)
    for placed in ({"strategy": "replicated"}, {"hot_experts": 2}, {"hot_experts": [1]}):
        with pytest.raises(libmoe.InvalidArgumentError, match="but there is no communicator"):
            libmoe.Layer(**plain(**placed))


@pytest.mark.parametrize(
    "other", [{"strategy": "replicated"}, {"hot_experts": 3}, {"hot_experts": [1, 3]}], ids=str
)
def test_ranks_that_ask_for_others_are_told_so(other: dict[str, Any]) -> None:
    def use(communicator: libmoe.Communicator) -> str:
        placed = {"hot_experts": [1, 2]} if communicator.rank == 0 else other
        layer = libmoe.Layer(**plain(**placed), communicator=communicator)
        with pytest.raises(libmoe.InvalidArgumentError) as caught:
            layer(tokens(4)[0])
        return str(caught.value)

    words = ThreadRanks(2, patience=20).run(use)
    assert words[0] == words[1]
    assert "another configuration, placement" in words[0]


def test_a_training_state_of_slices_is_refused(tmp_path: Path) -> None:
    def use(communicator: libmoe.Communicator) -> str:
        layer = libmoe.Layer(**plain(strategy="sliced"), communicator=communicator)
        with pytest.raises(libmoe.BadStateError, match="sliced, and files have them whole") as caught:
            libmoe.save_training(tmp_path / "state", step=0, layers=[layer], communicator=communicator)
        return str(caught.value)

    assert len(set(ThreadRanks(2, patience=20).run(use))) == 1


def test_more_ranks_than_inner_features_are_refused() -> None:
    for communicator in ThreadRanks(2).communicators:
        with pytest.raises(libmoe.InvalidArgumentError, match="intermediate_size = 1, but there are 2 ranks"):
            libmoe.Layer(**plain(strategy="sliced", intermediate_size=1), communicator=communicator)


@pytest.mark.parametrize("placed", [{"strategy": "replicated"}, {"hot_experts": [1, 2]}], ids=str)
def test_an_error_of_one_rank_is_that_of_all_and_the_layer_goes_on(placed: dict[str, Any]) -> None:
    config = plain(**placed, expert_bias=False)
    x, dy = tokens(37)
    bad = x.copy()
    bad[14] = np.nan

    def use(layer: libmoe.Layer, part: Part) -> Any:
        with pytest.raises(libmoe.NotFiniteError) as caught:
            step(layer, part, bad, dy)
        return str(caught.value), step(layer, part, x, dy)

    results = together(config, [12, 5, 20], use)
    assert len({words for words, _ in results}) == 1
    found = joined([made for _, made in results], placed.get("strategy", "exclusive"))
    require_same(found, alone(whole(config), 37, partial(step, x=x, dy=dy)))
