"""Numbers of the caller's in place of drawn ones, chunks of the caller's size, and presets without groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import libmoe
import oracle
from against_oracle import MATMULS, Arguments, check, inputs, unsettle
from comparison import assert_all_same_bits, assert_close, gradients_of

E, K, T, H = 6, 2, 37, 7
SIZES: Arguments = {"hidden_size": H, "intermediate_size": 11, "n_experts": E, "top_k": K}
RANDOM = np.random.default_rng(2)
NOISE = RANDOM.normal(size=(T, E)).astype(np.float32)
JITTER = RANDOM.uniform(-1, 1, (T, H)).astype(np.float32)
SECOND = RANDOM.random(T).astype(np.float32)

# Arguments of the layer, options of the call.
CASES: dict[str, tuple[Arguments, Arguments]] = {
    "noise as it is": ({}, {"noise": NOISE}),
    "noise of a deviation": ({"noise": "gaussian", "noise_std": 0.4}, {"noise": NOISE}),
    "learned noise": ({"noise": "learned"}, {"noise": NOISE}),
    "losses of loads": ({"noise": "learned", "losses": {"shazeer": 0.4}}, {"noise": NOISE}),
    "topk_softmax": ({"noise": "learned", "router_weights": "topk_softmax"}, {"noise": NOISE}),
    "hierarchical": ({"router": "hierarchical", "n_groups": 3, "top_groups": 1}, {"noise": NOISE}),
    "experts choose": ({"router": "expert_choice"}, {"noise": NOISE}),
    "jitter": ({"jitter": 0.3}, {"jitter": JITTER}),
    "jitter for the experts too": ({"jitter": 0.3, "jitter_experts": True}, {"jitter": JITTER}),
    "second choices": ({"random_second": True}, {"second": SECOND}),
    "second choices, after": (
        {"random_second": True, "renormalize": "after", "capacity_formula": "classic", "jitter": 0.1},
        {"second": SECOND, "jitter": JITTER, "noise": NOISE},
    ),
}


@pytest.mark.parametrize("matmul", MATMULS)
@pytest.mark.parametrize("case", CASES)
def test_against_the_oracle(case: str, matmul: str) -> None:
    arguments, call = CASES[case]
    check({**SIZES, **arguments}, matmul, T, training=True, **call)


@pytest.mark.parametrize("case", CASES)
def test_lean_tapes_and_chunks(case: str) -> None:
    """The tape keeps the numbers, and later chunks find their own."""
    arguments, call = CASES[case]
    many: Arguments = {name: np.concatenate([numbers] * 18) for name, numbers in call.items()}
    x, dy = inputs(18 * T, H)
    results = []
    divisions: list[Arguments] = [{}, {"tape_policy": "lean", "chunk_tokens": 256}]
    for division in divisions:
        layer = libmoe.Layer(**{**SIZES, **arguments})
        unsettle(layer)
        tape = layer.tape()
        given = {name: numbers.copy() for name, numbers in many.items()}
        y = layer.forward(x, tape=tape, training=True, **given, **division).y
        for numbers in given.values():
            numbers[...] = 9  # forward has a copy
        results.append({"y": y} | gradients_of(layer, layer.backward(tape, dy)))
    assert_all_same_bits(results[1], results[0])


def test_the_numbers_that_would_be_drawn() -> None:
    settings: Arguments = {**SIZES, "noise": "gaussian", "noise_std": 0.7, "jitter": 0.3, "seed": 5}
    layer = libmoe.Layer(**settings)
    x, _ = inputs(T, H)
    draws = oracle.draw(oracle.Settings.of(settings), T, H, E, 4)
    assert draws.noise is not None and draws.jitter is not None
    given: Arguments = {"noise": draws.noise.astype(np.float32), "jitter": draws.jitter.astype(np.float32)}
    output = layer.forward(x, training=True, step=9, **given)
    expected = layer.forward(x, training=True, step=4)
    np.testing.assert_array_equal(output.report.expert_indices, expected.report.expert_indices)
    assert_close("y", output.y, expected.y)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ({}, {"noise": NOISE}, "noise is not None, but training = False"),
        ({}, {"jitter": JITTER, "training": True}, "jitter is not None, but the layer's jitter = 0"),
        (
            {},
            {"second": SECOND, "training": True},
            "second is not None, but the layer's random_second = False",
        ),
        (
            {"router": "external"},
            {
                "noise": NOISE,
                "training": True,
                "expert_indices": np.zeros((T, K), np.int32),
                "expert_weights": np.zeros((T, K), np.float32),
            },
            "noise is not None, but the router has no gate",
        ),
        ({}, {"chunk_tokens": -1}, "chunk_tokens = -1 is below 0"),
    ],
)
def test_refused(arguments: Arguments, options: Arguments, text: str) -> None:
    layer = libmoe.Layer(**SIZES, **arguments)
    with pytest.raises(libmoe.InvalidArgumentError, match=text):
        layer.forward(inputs(T, H)[0], **options)


def test_numbers_are_finite() -> None:
    layer = libmoe.Layer(**SIZES)
    noise = NOISE.copy()
    noise[5, 2] = np.nan
    with pytest.raises(libmoe.NotFiniteError, match="noise: a number of token 5 is not finite"):
        layer.forward(inputs(T, H)[0], noise=noise, training=True)


class TestChunks:
    """chunk_tokens divides a call, and changes no bit."""

    TOKENS = 1500

    @pytest.mark.parametrize("taped", [True, False])
    def test_the_plan(self, taped: bool) -> None:
        layer = libmoe.Layer(**SIZES)
        for asked, rounded in ((1, 256), (256, 256), (257, 512), (1024, 1024), (5000, self.TOKENS)):
            plan = layer.plan(self.TOKENS, taped=taped, chunk_tokens=asked)
            assert plan.chunk_tokens == rounded
        whole, half = (layer.plan(self.TOKENS, taped=taped, chunk_tokens=n) for n in (0, 768))
        assert whole.chunk_tokens == self.TOKENS and half.forward_bytes < whole.forward_bytes
        limit = layer.plan(self.TOKENS, taped=taped, chunk_tokens=512).total_bytes
        assert layer.plan(self.TOKENS, taped=taped, memory_limit=limit, chunk_tokens=256).chunk_tokens == 256
        within = layer.plan(self.TOKENS, taped=taped, memory_limit=limit, chunk_tokens=1024)
        assert within.chunk_tokens <= 1024 and within.total_bytes <= limit

    @pytest.mark.parametrize("policy", ["full", "lean"])
    @pytest.mark.parametrize("limited", [False, True])
    def test_no_bit_changes(self, policy: Any, limited: bool) -> None:
        layer = libmoe.Layer(**SIZES, dropout=0.1, router_norm="rms_weight", losses={"switch_sequence": 0.2})
        x, dy = inputs(self.TOKENS, H)
        results = []
        for chunk in (0, 256, 700):
            layer.zero_grad()
            tape = layer.tape()
            limit = layer.plan(self.TOKENS, tape_policy=policy).total_bytes if limited else 0
            output = layer.forward(
                x,
                tape=tape,
                training=True,
                chunk_tokens=chunk,
                tape_policy=policy,
                memory_limit=limit,
                sequence_length=100,
            )
            found = gradients_of(layer, layer.backward(tape, dy)) | {"y": output.y}
            results.append(found | {"aux_loss": np.array(output.report.aux_loss)})
        for other in results[1:]:
            assert_all_same_bits(other, results[0])

    def test_of_a_model(self) -> None:
        model = libmoe.Model(
            16, 2, 2, vocabulary_size=11, moe=libmoe.presets.mixtral(hidden_size=16, intermediate_size=24)
        )
        tokens = np.random.default_rng(0).integers(0, 11, (10, 100)).astype(np.int32)
        mask = np.arange(100) < np.full((10, 1), 60)
        results = []
        for chunk in (0, 256):
            model.zero_grad()
            output = model.forward(
                tokens, targets=tokens, tape=True, logits=True, chunk_tokens=chunk, loss_mask=mask
            )
            model.backward(output)
            report = output.layers[0]
            assert report is not None and report.n_valid == 600
            results.append([output.logits, *[p.grad.copy() for p in model.parameters.values()]])
        for ours, theirs in zip(*results):  # noqa: B905
            np.testing.assert_array_equal(ours, theirs)
        plans = [model.plan(10, 100, chunk_tokens=chunk).forward_bytes for chunk in (0, 256)]
        assert plans[1] < plans[0]


class TestWithoutGroups:
    """DeepSeek's presets without their groups: one argument, or one field."""

    SMALL: Arguments = {
        "hidden_size": 16,
        "intermediate_size": 12,
        "n_experts": 16,
        "shared_intermediate_size": 8,
    }

    @pytest.mark.parametrize("none", [0, None, -1, 1])
    @pytest.mark.parametrize("model", ["deepseek_v2", "deepseek_v3"])
    def test_one_argument(self, model: str, none: Any) -> None:
        options = getattr(libmoe.presets, model)(**self.SMALL, n_groups=none)
        layer = libmoe.Layer(**options)
        unsettle(layer)
        x, dy = inputs(20, 16)
        plain = {name: value for name, value in options.items() if name not in ("n_groups", "top_groups")}
        assert not plain.keys() & {"group_top_m", "group_mask"}
        expected = libmoe.Layer(**plain)
        expected.load_state_dict(layer.state_dict())
        np.testing.assert_array_equal(
            layer.forward(x).report.expert_indices, expected.forward(x).report.expert_indices
        )
        check(plain, "native", 20)

    def test_one_field(self) -> None:
        options = libmoe.presets.deepseek_v3(**self.SMALL)
        assert options["n_groups"] == 8
        layer = libmoe.Layer(**{**options, "n_groups": -1})
        plain = libmoe.Layer(**libmoe.presets.deepseek_v3(**self.SMALL, n_groups=None))
        x, _ = inputs(20, 16)
        np.testing.assert_array_equal(layer(x), plain(x))

    def test_groups_by_themselves_are_still_a_contradiction(self) -> None:
        with pytest.raises(libmoe.InvalidArgumentError, match="top_groups, group_top_m and group_mask are 0"):
            libmoe.Layer(**SIZES, top_groups=2)
        with pytest.raises(libmoe.InvalidArgumentError, match="top_groups"):
            libmoe.Layer(**libmoe.presets.deepseek_v2(**self.SMALL, n_groups=None, top_groups=2))
