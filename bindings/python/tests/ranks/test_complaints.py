"""What users of other systems reported of experts over several processes, by the name of the complaint.

Each test says in which projects it was met.  The ranks are threads, and a rank that does not come within 20
seconds is an error: no test hangs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
from ranked_layers import (
    Made,
    Part,
    alone,
    divided,
    joined,
    plain,
    require_same,
    step,
    together,
    tokens,
)
from thread_ranks import ThreadRanks

Floats = NDArray[np.float32]

# ------------------------------------------------------------------------------------------------------------
# Ranks that hang
# ------------------------------------------------------------------------------------------------------------


def trained(config: dict[str, Any], parts: Sequence[int], steps: int = 3, **options: Any) -> Made:
    """Return what whole steps come to, over ranks or with one part in one process."""
    count = sum(parts)
    x, dy = tokens(count)

    def use(layer: libmoe.Layer, part: Part) -> Made:
        optimizer = libmoe.AdamW(layer.parameters, learning_rate=0.01)
        for number in range(steps):
            layer.zero_grad()
            made = step(layer, part, x + number, dy, training=True, step=number, **options)
            layer.clip_grad_norm(0.5)
            optimizer.step()
        return made

    return joined(together(config, parts, use)) if len(parts) > 1 else alone(config, count, use)


@pytest.mark.parametrize("policy", ["full", "lean"])
@pytest.mark.parametrize("parts", [[0, 23], [11, 0, 12], [0, 0, 0, 23]], ids=str)
def test_hang_of_ranks_without_tokens(parts: list[int], policy: str) -> None:
    """Forward, backward, clipping and steps (Megatron-LM, PaddleFormers, DeepSpeed, transformers)."""
    config = plain(n_shared_experts=1)
    require_same(trained(config, parts, tape_policy=policy), trained(config, [23], tape_policy=policy))


def test_hang_when_no_rank_has_tokens() -> None:
    """The last batch of an epoch, or one that is all padding (DeepSpeed, transformers)."""
    config = plain(balance_coef=0.1)
    require_same(trained(config, [0, 0, 0]), trained(config, [0]))
    padding = np.zeros(9, bool)
    require_same(trained(config, [4, 0, 5], valid_mask=padding), trained(config, [9], valid_mask=padding))


def test_hang_of_experts_without_tokens() -> None:
    """Whose gradients are zeros that are there, so that a step finds all of them (Megatron-LM, DeepSpeed)."""
    config, count = plain(), 17
    chosen = np.tile(np.array([[5, 6]], np.int32), (count, 1))  # both are the last rank's
    found = trained(config, [8, 0, 9], expert_indices=chosen)
    require_same(found, trained(config, [count], expert_indices=chosen))
    gradient = found.gradients["experts.up.weight"]
    assert not gradient[:5].any() and gradient[5:].any(axis=(1, 2)).all()


# ------------------------------------------------------------------------------------------------------------
# Gradients with a factor of the number of ranks
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_gradient_scale_wrong_by_the_number_of_ranks(size: int) -> None:
    """For experts and router against differences of the loss (MegaBlocks, DeepSpeed, PyTorch, Megatron-LM).

    The loss is the mean over all tokens of y c, with choices given, so that it is smooth.
    """
    count, config = 24, plain(balance_coef=0.0, z_coef=0.0, n_shared_experts=1)
    x, c = tokens(count)
    chosen = np.argsort(np.random.default_rng(5).random((count, 7)))[:, :2].astype(np.int32)
    parts = [count // size] * size
    found = joined(together(config, parts, partial(step, x=x, dy=c / count, expert_indices=chosen)))
    numbers = np.random.default_rng(6)
    for name in ("experts.up.weight", "experts.down.bias", "router.weight", "shared.up.weight"):
        shape = found.gradients[name].shape
        direction = numbers.standard_normal(shape, np.float32)

        def loss(layer: libmoe.Layer, part: Part, name: str = name, by: Any = direction) -> tuple[float, ...]:
            parameter, means = layer.parameters[name].data, []
            start = parameter.copy()
            for far in (1e-2, -1e-2):
                parameter[...] = start + np.float32(far) * by
                y = layer.forward(x, expert_indices=chosen).y
                means.append(float((y.astype(float) * c).sum() / count))
            return tuple(means)

        up, down = alone(config, count, loss)
        wanted = (up - down) / 2e-2
        assert np.vdot(found.gradients[name].astype(float), direction) == pytest.approx(wanted, rel=0.02), (
            name
        )


# ------------------------------------------------------------------------------------------------------------
# Experts on another number of ranks
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([(20, 4), (17, 3)], [(9, 1), (0, 5), (28, 1)]),
        ([(9, 2), (8, 2), (10, 2), (10, 1)], [(18, 0), (19, 7)]),
        ([(37, 7)], [(30, 3), (7, 4)]),
    ],
    ids=["2 to 3", "4 to 2", "1 to 2"],
)
def test_resharding_of_parameters(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> None:
    """Ranks with so many tokens and experts, then others (pith-train, KempnerForge, NeMo Automodel)."""
    config, count = plain(selection_bias=True), 37
    x, dy = tokens(count)

    def steps(
        first: int, start: dict[str, Any] | None, own: list[int], layer: libmoe.Layer, part: Part
    ) -> Made:
        arrays = {**{name: p.data for name, p in layer.parameters.items()}, **layer.buffers}
        if start is not None:
            mine = slice(sum(own[: part.rank]), sum(own[: part.rank + 1]))
            for name, array in arrays.items():
                array[...] = start[name][mine] if name.startswith("experts.") else start[name]
        optimizer = libmoe.SGD(layer.parameters, learning_rate=0.05)
        for number in range(first, first + 3):
            layer.zero_grad()
            made = step(layer, part, x + number, dy)
            optimizer.step()
            layer.update_selection_bias(made.report.tokens_per_expert)
        made.parameters = {name: np.array(array) for name, array in arrays.items()}
        made.gradients |= {name: np.array(array) for name, array in layer.buffers.items()}
        return made

    def on(ranks: list[tuple[int, int]], first: int, start: dict[str, Any] | None) -> Made:
        parts, own = ([each[i] for each in ranks] for i in range(2))
        return joined(together({**config, "experts_per_rank": own}, parts, partial(steps, first, start, own)))

    half = alone(config, count, partial(steps, 0, None, [7]))
    whole = alone(config, count, partial(steps, 3, half.parameters, [7]))
    require_same(on(after, 3, on(before, 0, None).parameters), whole)


def test_the_experts_of_one_rank_saved_as_if_they_were_all(tmp_path: Path) -> None:
    """Refused with these words, and no file is there (pith-train, KempnerForge, transformers)."""
    layer = libmoe.Layer(**plain(), communicator=ThreadRanks(1).communicators[0])
    whole = tmp_path / "whole.safetensors"
    libmoe.Layer(**plain()).save(whole)
    calls: list[Callable[[], object]] = [
        lambda: layer.save(tmp_path / "layer.safetensors"),
        lambda: libmoe.save_training(tmp_path / "state.safetensors", step=1, layers=[layer]),
        lambda: layer.load(whole),
    ]
    for call in calls:
        with pytest.raises(libmoe.BadStateError, match="spread over ranks, and only some of them are here"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["whole.safetensors"]


# ------------------------------------------------------------------------------------------------------------
# Losses and counts
# ------------------------------------------------------------------------------------------------------------


def test_auxiliary_loss_is_of_all_tokens_and_not_a_mean_of_ranks() -> None:
    """Against its equation in float64 (torchtitan; arXiv:2501.11873 on what the difference does)."""
    count, parts = 40, [25, 0, 15]
    config = plain(top_k=1, losses={"switch": 1.0}, balance_coef=0.0, z_coef=0.0, router_bias=False)
    x, dy = tokens(count)
    gate = alone(config, count, lambda layer, _: layer.parameters["router.weight"].data.copy())
    x[:25] += 3 * gate[0] / np.linalg.norm(gate[0])  # rank 0 likes expert 0, rank 2 expert 1
    x[25:] += 3 * gate[1] / np.linalg.norm(gate[1])

    def equation(some: Floats) -> float:
        logits = some.astype(float) @ gate.astype(float).T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        shares = np.bincount(p.argmax(axis=1), minlength=7) / len(some)
        return float(7 * shares @ p.mean(axis=0))

    wanted = equation(x)
    assert abs(wanted - (equation(x[:25]) + equation(x[25:])) / 2) > 0.1
    found = together(config, parts, partial(step, x=x, dy=0 * dy))
    assert [made.report.losses["switch"] for made in found] == pytest.approx([wanted] * 3, rel=1e-5)
    require_same(joined(found), alone(config, count, partial(step, x=x, dy=0 * dy)))


@pytest.mark.parametrize("policy", ["full", "lean"])
def test_running_counts_with_accumulated_gradients_and_recomputing(policy: str) -> None:
    """Each choice counts once, whatever is computed again (torchtitan, Megatron-LM)."""
    config = plain(selection_bias=True, losses={"megatron_global": 0.1}, score="sigmoid")
    x, dy = tokens(60)

    def use(layer: libmoe.Layer, part: Part) -> Made:
        counts, numbers = np.zeros(7, np.int64), []
        for micro in range(4):
            options: dict[str, Any] = {"tape_policy": policy, "global_counts": counts.copy()}
            made = step(layer, part, x * (micro + 1), dy, training=True, step=micro, **options)
            counts += made.report.tokens_per_expert
            numbers.append(made.report.aux_loss)
        assert counts.sum() == 4 * 60 * 2
        layer.update_selection_bias(counts)
        bias = np.array(layer.buffers["router.selection_bias"])
        kept = {"losses": np.array(numbers), "counts": counts, "bias": bias}
        made.parameters |= kept
        made.gradients |= kept
        return made

    require_same(joined(together(config, [30, 0, 30], use)), alone(config, 60, use))


def test_dummy_rows_of_ranks_without_tokens() -> None:
    """There are none in counts, in losses or on the wire (transformers inserts one)."""
    config, parts, count = plain(balance_coef=0.1), [5, 0, 7], 12
    chosen = np.argsort(np.random.default_rng(5).random((count, 7)))[:, :2].astype(np.int32)

    def sent(hidden: int) -> NDArray[np.int64]:
        """Bytes from rank 1, whose experts are 3 and 4, to the others."""
        x, dy = tokens(count, hidden)
        ranks = ThreadRanks(3, patience=20)
        use = partial(step, x=x, dy=dy, expert_indices=chosen)
        for made in together({**config, "hidden_size": hidden}, parts, use, ranks):
            assert made.report.n_valid == count
            np.testing.assert_array_equal(
                made.report.tokens_per_expert, np.bincount(chosen.flat, minlength=7)
            )
        return np.array([ranks.bytes(1, 0), ranks.bytes(1, 2)])

    # With twice the features rows are longer, and the gate's gradient, which goes on from rank 1 to rank 2.
    rows = np.array([np.isin(own, (3, 4)).sum() for own in (chosen[:5], chosen[5:])])
    np.testing.assert_array_equal(sent(48) - sent(24), rows * 2 * 24 * 4 + np.array([0, 7 * 24 * 4]))


# ------------------------------------------------------------------------------------------------------------
# The same bits
# ------------------------------------------------------------------------------------------------------------


def digest(made: Made) -> str:
    """Return a checksum of all that a step has come to."""
    kept = hashlib.sha256()
    for array in (made.y, made.dx, *(made.gradients[name] for name in sorted(made.gradients))):
        kept.update(np.asarray(array).tobytes())
    return kept.hexdigest()


def test_nondeterminism_from_run_to_run() -> None:
    """With threads, over links of any speed (NeMo-RL, SGLang, FlashInfer, llama.cpp)."""
    config = plain(n_experts=5, n_shared_experts=1)
    x, dy = tokens(300)
    found = set()
    for run in range(6):
        ranks = ThreadRanks(3, patience=20)
        ranks.slow_down(5e6 * (run + 1), 1e-4 * (run % 3))
        divisions = divided([120, 80, 100])

        def one(communicator: libmoe.Communicator, parts: list[Part] = divisions, n: int = run) -> Made:
            with libmoe.Context(1 + (communicator.rank + n) % 2) as context:
                layer = libmoe.Layer(**config, context=context, communicator=communicator)
                return step(layer, parts[communicator.rank], x, dy)

        found.add(digest(joined(ranks.run(one))))
    assert found == {digest(alone(config, 300, partial(step, x=x, dy=dy)))}


def test_byte_exactness_across_numbers_of_ranks() -> None:
    """After training, on 1 to 4 ranks (FreeToken calls it impossible)."""
    config = plain(n_shared_experts=1, capacity_formula="megatron", dropout=0.1)
    found = {digest(trained(config, parts)) for parts in ([40], [20, 20], [9, 30, 1], [10, 0, 25, 5])}
    assert len(found) == 1


def test_duplicate_tokens() -> None:
    """The same token on two ranks is two tokens, and an expert named twice is two choices (DeepSpeed)."""
    config, half = plain(balance_coef=0.0, z_coef=0.0), 9
    x, dy = (np.concatenate([array, array]) for array in tokens(half))
    found = joined(together(config, [half, half], partial(step, x=x, dy=dy)))
    require_same(found, alone(config, 2 * half, partial(step, x=x, dy=dy)))
    assert found.report.n_valid == 2 * half and found.dx is not None
    assert_same_bits(found.y[:half], found.y[half:])
    once = alone(config, half, partial(step, x=x[:half], dy=dy[:half]))
    for name, gradient in once.gradients.items():
        np.testing.assert_allclose(found.gradients[name], 2 * gradient, rtol=1e-4, atol=1e-5, err_msg=name)
    twice = np.tile(np.array([[4, 4]], np.int32), (2 * half, 1))
    use = partial(step, x=x, dy=dy, expert_indices=twice)
    found = joined(together(config, [half, half], use))
    require_same(found, alone(config, 2 * half, use))
    assert found.report.tokens_per_expert[4] == 4 * half
