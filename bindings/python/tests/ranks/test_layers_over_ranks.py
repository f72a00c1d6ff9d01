"""A layer whose experts are spread over ranks has the bits of one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
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
)
from thread_ranks import ThreadRanks

DIVISIONS = [[37], [20, 17], [0, 37], [37, 0], [9, 0, 28], [1, 2, 30, 4], [0, 0, 37, 0]]


@pytest.mark.parametrize("parts", DIVISIONS, ids=str)
def test_any_division_of_tokens_has_the_bits_of_one_process(parts: list[int]) -> None:
    same(plain(), parts)


@pytest.mark.parametrize("counts", [[7, 0, 0], [1, 5, 1], [0, 0, 7], [3, 0, 4]], ids=str)
def test_any_division_of_experts_too(counts: list[int]) -> None:
    same(plain(experts_per_rank=counts), [12, 9, 16])


ROUTERS: dict[str, dict[str, Any]] = {
    "sigmoid": {
        "score": "sigmoid",
        "selection_bias": True,
        "routed_scale": 2.5,
        "n_groups": 7,
        "top_groups": 3,
    },
    "topk_softmax": {"router_weights": "topk_softmax", "expert_kind": "gated", "activation": "silu"},
    "sparsemixer": {"router_weights": "sparsemixer", "mask_threshold": 0.1},
    "expert scale": {"expert_scale": True, "router_normalize": False},
    "weight on input": {"weight_on_input": True, "expert_bias": True},
    "hierarchical": {"router": "hierarchical", "n_experts": 8, "n_groups": 4, "top_groups": 2, "top_k": 2},
    "relu": {
        "router": "relu",
        "score": "identity",
        "router_normalize": False,
        "losses": {"l1_balanced": 0.1},
    },
    "top_p": {"dynamic_k": "top_p", "dynamic_value": 0.4, "top_k": 4},
    "router norm": {"router_norm": "rms_weight"},
    "linear": {"expert_kind": "linear", "intermediate_size": 24},
    "shared": {"n_shared_experts": 2, "output_bias": True},
    "shared sigmoid": {"n_shared_experts": 1, "shared_gate": "sigmoid", "expert_kind": "gated"},
    "residual": {"n_shared_experts": 1, "shared_gate": "residual"},
    "no bias": {"router_bias": False, "expert_bias": False},
    "bf16 weights": {"weight_dtype": "bf16", "n_shared_experts": 1},
    "bf16": {"weight_dtype": "bf16", "io_dtype": "bf16"},
    "bf16 tokens": {"io_dtype": "bf16"},
    "f16 weights": {"weight_dtype": "f16"},
    "groups": GROUPS,
}


@pytest.mark.parametrize("router", ROUTERS)
def test_routers_and_formats(router: str) -> None:
    same(plain(**ROUTERS[router]), [14, 0, 23])


LOSSES = {
    "balance_count": 0.1,
    "transformers": 0.2,
    "switch": 0.1,
    "gshard": 0.3,
    "deepspeed": 0.1,
    "variance": 0.1,
    "importance": 0.2,
    "z_switch": 0.01,
    "balance_positive": 0.1,
    "l1": 0.01,
    "tutel_gshard": 0.1,
}


def test_losses_of_all_tokens() -> None:
    same(plain(losses=LOSSES), [300, 0, 333], d_aux_loss=0.7)


def test_losses_of_shares_and_of_sequences() -> None:
    losses = {"megatron": 0.1, "megatron_sequence": 0.2, "switch_sequence": 0.1, "megatron_global": 0.1}
    same(plain(losses=losses, score="sigmoid"), [10, 25, 0, 5], sequence_length=5)


CAPACITIES: dict[str, dict[str, Any]] = {
    "position": {"capacity_formula": "megatron", "drop": "position"},
    "choice": {"capacity_formula": "megatron", "drop": "choice_position", "capacity_factor": 0.8},
    "after": {"capacity_formula": "constant", "capacity": 9, "renormalize": "after"},
    "tutel": {"capacity_formula": "tutel", "capacity_factor": 0.0},
    "adaptive": {"capacity_formula": "megatron", "adaptive_capacity": True, "drop": "choice_position"},
    "second": {"random_second": True, "capacity_formula": "megatron"},
}


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_capacity_is_shared_out_over_all_tokens(capacity: str) -> None:
    same(plain(**CAPACITIES[capacity], losses={"gshard": 0.1}), [15, 0, 30, 16], training=True, step=5)


def test_random_numbers_go_by_the_place_among_all_tokens() -> None:
    config = plain(
        dropout=0.3,
        noise="learned",
        jitter=0.1,
        jitter_experts=True,
        router_dropout=0.2,
        n_shared_experts=1,
        hidden_size=22,
        intermediate_size=38,
        losses={},
        expert_kind="gated",
    )
    same(config, [13, 5, 19], training=True, step=7)


def test_noise_on_logits_jitter_of_the_gate_and_dropout_of_logits() -> None:
    config = plain(
        noise="gaussian", noise_std=0.5, jitter=0.1, router_dropout=0.2, router_dropout_on="logits"
    )
    same(config, [13, 5, 19], training=True, step=8)


def test_losses_of_loads() -> None:
    same(plain(noise="learned", losses={"load": 0.1, "shazeer": 0.1}), [13, 5, 19], training=True, step=8)


def test_numbers_masks_and_choices_of_the_caller() -> None:
    numbers = np.random.default_rng(4)
    noise = numbers.standard_normal((37, 7), np.float32)
    valid = numbers.random(37) < 0.7
    indices = numbers.integers(-1, 7, (37, 2), np.int32)
    same(plain(noise="gaussian", noise_std=0.5), [13, 5, 19], training=True, noise=noise, valid_mask=valid)
    same(plain(), [13, 0, 24], expert_indices=indices, loss_mask=valid)


def test_lean_tapes() -> None:
    same(plain(n_shared_experts=1, weight_dtype="bf16"), [14, 0, 23], tape_policy="lean")
    same(plain(dropout=0.2), [13, 0, 24], tape_policy="lean", training=True)


def test_what_cannot_be_exact_is_refused_or_local() -> None:
    one = ThreadRanks(1).communicators[0]
    for options, words in (
        ({"router": "expert_choice"}, "router = 'expert_choice'"),
        ({"router": "sinkhorn"}, "router = 'sinkhorn'"),
        ({"dynamic_k": "complexity"}, "dynamic_k = 'complexity'"),
        ({"capacity_formula": "megatron", "drop": "probability"}, "drop = 'probability'"),
        ({"capacity_formula": "megatron", "overflow": "next_best"}, "overflow = 'next_best'"),
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match=f"{words} compares the tokens of all ranks"):
            libmoe.Layer(**plain(**options), communicator=one)
        libmoe.Layer(**plain(**options), communicator=one, choice_scope="local")
    with pytest.raises(libmoe.InvalidArgumentError, match="router_batch_norm = True"):
        libmoe.Layer(**plain(router_batch_norm=True), communicator=one, choice_scope="local")


LOCAL: dict[str, dict[str, Any]] = {
    "expert choice": {"router": "expert_choice"},
    "sinkhorn": {"router": "sinkhorn"},
    "next best": {"capacity_formula": "megatron", "overflow": "next_best", "drop": "probability"},
    "position": {"capacity_formula": "megatron", "drop": "position"},
    "complexity": {"dynamic_k": "complexity", "dynamic_value": 3.0, "top_k": 4},
}


@pytest.mark.parametrize("kind", LOCAL)
def test_local_choices_are_those_of_each_ranks_tokens_alone(kind: str) -> None:
    parts = [14, 0, 23]
    config = plain(**LOCAL[kind])
    x, dy = tokens(37)
    use = partial(step, x=x, dy=dy, training=True, step=2)
    for part, made in zip(divided(parts), together({**config, "choice_scope": "local"}, parts, use)):
        with libmoe.Context(1) as context:
            own = use(libmoe.Layer(**config, context=context), part)
        assert_same_bits(made.y, own.y)


def test_ranks_without_experts_and_threads_change_no_bit() -> None:
    config = plain(n_experts=3, n_shared_experts=1)
    x, dy = tokens(300)
    use = partial(step, x=x, dy=dy)
    divisions = divided([100, 0, 150, 50])

    def one(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(2) as context:
            layer = libmoe.Layer(**config, context=context, communicator=communicator)
            return use(layer, divisions[communicator.rank])

    require_same(joined(ThreadRanks(4, patience=20).run(one)), alone(config, 300, use))


@pytest.mark.parametrize("prepared", ["f32", "bf16", "int8", "int4_a8"])
def test_prepared_weights(prepared: Any) -> None:
    config = plain(hidden_size=64, intermediate_size=64, expert_kind="gated", inference_only=True)
    x, _ = tokens(37, 64)

    def use(layer: libmoe.Layer, part: Part) -> NDArray[Any]:
        layer.prepare(prepared)
        return layer(part.of(x))

    found = np.concatenate(together(config, [14, 0, 23], use))
    assert_same_bits(found, alone(config, 37, use))


@pytest.mark.parametrize("policy", ["full", "lean"])
def test_backward_over_weights_of_few_bits(policy: Any) -> None:
    config = plain(hidden_size=64, intermediate_size=64, n_shared_experts=1, expert_kind="gated")
    x, dy = tokens(37, 64)

    def use(layer: libmoe.Layer, part: Part) -> Any:
        layer.prepare("int8_a8")
        tape = layer.tape()
        output = layer.forward(part.of(x), tape=tape, tape_policy=policy)
        dx = layer.backward(tape, part.of(dy))
        return output.y, dx, layer.parameters["router.weight"].grad.copy()

    found = together(config, [14, 0, 23], use)
    y, dx, gate = alone(config, 37, use)
    assert_same_bits(np.concatenate([each[0] for each in found]), y)
    assert_same_bits(np.concatenate([each[1] for each in found]), dx)
    for each in found:
        assert_same_bits(each[2], gate)


def test_twenty_steps_of_an_optimiser_with_clipped_gradients() -> None:
    config = plain(
        n_experts=6, n_shared_experts=1, selection_bias=True, dropout=0.1, capacity_formula="megatron",
        hidden_size=96, intermediate_size=112, experts_per_rank=None,
    )  # fmt: skip
    count = 45
    x, dy = tokens(count, 96)

    def use(layer: libmoe.Layer, part: Part) -> Any:
        optimizer = libmoe.AdamW(layer.parameters, learning_rate=0.01)
        losses, norms = [], []
        for number in range(20):
            made = step(layer, part, x + number, dy, training=True, step=number)
            norms.append(layer.clip_grad_norm(0.5))
            optimizer.step()
            layer.zero_grad()
            layer.update_selection_bias(made.report.tokens_per_expert)
            losses.append(made.report.aux_loss)
        made = step(layer, part, x, dy)
        made.parameters |= {"losses": np.array(losses), "norms": np.array(norms)}
        made.gradients |= {"losses": np.array(losses), "norms": np.array(norms)}
        return made

    wanted = alone({k: v for k, v in config.items() if k != "experts_per_rank"}, count, use)
    assert (wanted.parameters["norms"] > 0.5).all()
    for parts, counts in (([20, 25], None), ([7, 0, 38], [1, 5, 0])):
        require_same(joined(together({**config, "experts_per_rank": counts}, parts, use)), wanted)


def test_clipping_is_that_of_all_parameters() -> None:
    def use(layer: libmoe.Layer, by_layer: bool) -> float:
        for name, parameter in layer.parameters.items():
            parameter.grad[...] = np.random.default_rng([*name.encode()]).standard_normal(
                parameter.grad.shape
            )
        return layer.clip_grad_norm(2) if by_layer else libmoe.clip_grad_norm(layer.parameters, 2)

    one, other = (libmoe.Layer(**plain(n_shared_experts=1)) for _ in range(2))
    assert use(one, True) == use(other, False) > 2
    for name, parameter in one.parameters.items():
        np.testing.assert_array_equal(parameter.grad, other.parameters[name].grad)


@pytest.mark.parametrize(
    ("options", "size"), [({}, 4), ({"weight_dtype": "bf16"}, 2), ({"io_dtype": "bf16"}, 2)]
)
def test_bytes_are_those_of_the_rows(options: dict[str, Any], size: int) -> None:
    """Of the same choices with twice the features, so that what else is told does not count."""
    parts, owned = [6, 0, 9], [range(3), range(3, 5), range(5, 7)]
    numbers = np.random.default_rng(2)
    indices = numbers.integers(0, 7, (15, 2), np.int32)
    rows = np.zeros((3, 3), np.int64)  # from one rank's tokens to another's experts
    for t, chosen in enumerate(indices):
        for expert in chosen:
            rows[0 if t < 6 else 2, next(r for r in range(3) if expert in owned[r])] += 1

    def sent(hidden: int, *, backward: bool) -> Any:
        x, dy = tokens(15, hidden)
        if "io_dtype" in options:
            x, dy = (libmoe.to_bfloat16(array) for array in (x, dy))
        config = plain(
            hidden_size=hidden, router="external", balance_coef=0.0, z_coef=0.0, expert_bias=False, **options
        )
        weights = np.ones((15, 2), np.float32)
        ranks = ThreadRanks(3, patience=20)
        given: dict[str, Any] = {"expert_indices": indices, "expert_weights": weights, "backward": backward}
        together(config, parts, partial(step, x=x, dy=dy, **given), ranks)
        return np.array([[ranks.bytes(a, b) for b in range(3)] for a in range(3)])

    forward = sent(64, backward=False) - sent(32, backward=False)
    there, back = rows * 32 * size, rows.T * 32 * 4
    np.testing.assert_array_equal(forward, there + back)
    both = sent(64, backward=True) - sent(32, backward=True)
    dy_size = 2 if "io_dtype" in options else 4
    np.testing.assert_array_equal(both, forward + rows * 32 * dy_size + rows.T * 32 * 4)


CHUNKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"n_shared_experts": 2, "dropout": 0.2, "output_bias": True, "shared_gate": "sigmoid"},
    "bf16": {"weight_dtype": "bf16", "expert_kind": "gated", "n_shared_experts": 1},
    "capacity": {"capacity_formula": "megatron", "drop": "choice_position", "losses": {"gshard": 0.1}},
}


@pytest.mark.parametrize("kind", CHUNKED)
@pytest.mark.parametrize("parts", [[700, 300], [0, 1000, 0], [128, 128, 512, 232]], ids=str)
def test_chunks_change_no_bit(kind: str, parts: list[int]) -> None:
    same(plain(**CHUNKED[kind]), parts, chunk_tokens=256, training=True)


def test_a_memory_limit_of_one_rank_divides_the_call_of_all() -> None:
    config = plain(hidden_size=64, intermediate_size=256, n_shared_experts=1)
    x, dy = tokens(2000, 64)

    def use(limit: int, layer: libmoe.Layer, part: Part) -> Any:
        return step(layer, part, x, dy, memory_limit=limit if part.rank == 1 else 0)

    wanted = alone(config, 2000, partial(step, x=x, dy=dy))
    require_same(joined(together(config, [900, 1100], partial(use, 6 << 20))), wanted)
    with pytest.raises(libmoe.InvalidArgumentError, match="rank 1: memory_limit = 100000 bytes, but"):
        together(config, [900, 1100], partial(use, 100000))


def test_experts_in_memory_of_the_caller() -> None:
    """The layer has none of its own for them; what wants all of it is refused."""
    config, (x, dy) = plain(n_shared_experts=1), tokens(37)
    values = alone(config, 37, lambda layer, _: {n: p.data.copy() for n, p in layer.parameters.items()})

    def use(layer: libmoe.Layer, part: Part) -> Any:
        own = slice(4, 7) if part.rank else slice(4)  # of seven experts
        for name in values:
            if name.startswith(("experts.", "shared.")):
                data = values[name][own if name.startswith("experts.") else slice(None)].copy()
                layer.bind(name, data, np.zeros(data.shape, np.float32))
        optimizer = libmoe.AdamW(layer.parameters)
        tape = layer.tape()
        layer.forward(part.of(x), tape=tape)
        with pytest.raises(libmoe.BadStateError, match="optimizer: the layer's experts are spread"):
            layer.backward(tape, part.of(dy), optimizer=optimizer)
        return step(layer, part, x, dy)

    unallocated = {"unallocated": ("expert_weights", "expert_gradients")}
    found = joined(together(config | unallocated, [20, 17], use))
    require_same(found, alone(config, 37, partial(step, x=x, dy=dy)))
