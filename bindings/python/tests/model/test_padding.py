"""Padded sequences have the bits that each has alone: in forward, backward, reading and generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from comparison import assert_all_same_bits, assert_close, assert_same_bits
from oracle.model import Model as Oracle
from small_language_models import CASES, made

DECODER: dict[str, Any] = {**CASES["normed heads"], "vocabulary_size": 17}
LEARNED: dict[str, Any] = {**CASES["learned positions"], "max_positions": 400}
DENSE: dict[str, Any] = {**CASES["every second"]}
ENCODER: dict[str, Any] = {**CASES["encoder of experts"], "rope_theta": 1e4}
BOTH_POSITIONS: dict[str, Any] = {**LEARNED, "rope_theta": 500.0, "head_size": 6}
LONG: dict[str, Any] = CASES["long rotary"]
MODELS = {
    "rotary": DECODER,
    "learned": LEARNED,
    "both": BOTH_POSITIONS,
    "dense": DENSE,
    "encoder": ENCODER,
    "windows": CASES["windows and chunks"],
    "sinks": CASES["sinks"],
    "long": {
        **CASES["long rotary"],
        "rotary_tables": [{**CASES["long rotary"]["rotary_tables"][0], "original_length": 100}],
    },
    "sharpened": CASES["two layers of three rotate"],
}
Tokens = NDArray[Any]


def tokens_of(arguments: dict[str, Any], n: int, seed: int) -> Tokens:
    random = np.random.default_rng(seed)
    if arguments.get("vocabulary_size"):
        return random.integers(0, arguments["vocabulary_size"], (1, n)).astype(np.int32)
    return random.standard_normal((1, n, arguments["hidden_size"])).astype(np.float32)


def padded(sequences: list[Tokens], before: list[int], length: int) -> tuple[Tokens, NDArray[np.bool_]]:
    """The sequences as a batch: so much padding before each, the rest behind it."""
    batch = np.zeros((len(sequences), length, *sequences[0].shape[2:]), sequences[0].dtype)
    valid = np.zeros((len(sequences), length), bool)
    for row, (sequence, first) in enumerate(zip(sequences, before)):  # noqa: B905
        n = sequence.shape[1]
        batch[row, first : first + n] = sequence[0]
        valid[row, first : first + n] = True
    batch[~valid] = 3
    return batch, valid


@pytest.mark.parametrize("name", MODELS)
def test_each_sequence_is_as_alone(name: str) -> None:
    # Longer than the blocks of keys and of queries, by odd numbers of tokens.
    lengths, before, length = [301, 7, 150], [0, 294, 75], 301
    with libmoe.Context(n_threads=2, matmul="native") as context:
        model = made(MODELS[name], context)
        sequences = [tokens_of(MODELS[name], n, n) for n in lengths]
        batch, valid = padded(sequences, before, length)
        hidden = model.forward(batch, valid_mask=valid, hidden=True).hidden
        assert hidden is not None
        for row, sequence in enumerate(sequences):
            alone = model.forward(sequence, hidden=True).hidden
            assert alone is not None
            assert_same_bits(hidden[row][valid[row]], alone[0], f"sequence {row}")


def gradients(model: libmoe.Model) -> dict[str, NDArray[np.float32]]:
    return {name: parameter.grad.copy() for name, parameter in model.parameters.items()}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_sequences_one_after_another(name: str) -> None:
    arguments = {**MODELS[name], "moe": {**MODELS[name]["moe"], "balance_coef": 0.0, "z_coef": 0.0}}
    lengths, before, length = [40, 139], [110, 5], 150
    with libmoe.Context(n_threads=2, matmul="native") as context:
        model = made(arguments, context)
        sequences = [tokens_of(arguments, n, n) for n in lengths]
        d_alone = [np.random.default_rng(n).standard_normal((1, n, 12)).astype(np.float32) for n in lengths]
        batch, valid = padded(sequences, before, length)
        d_hidden = np.zeros((len(lengths), length, 12), np.float32)
        for row in range(len(lengths)):
            d_hidden[row][valid[row]] = d_alone[row][0]
        model.zero_grad()
        output = model.forward(batch, valid_mask=valid, tape=True)
        dinput = model.backward(output, dhidden=d_hidden)
        found = gradients(model)
        model.zero_grad()
        for row, sequence in enumerate(sequences):
            alone = model.backward(model.forward(sequence, tape=True), dhidden=d_alone[row])
            if dinput is not None and alone is not None:
                assert_same_bits(dinput[row][valid[row]], alone[0], "dinput")
                np.testing.assert_array_equal(dinput[row][~valid[row]], 0)
        assert_all_same_bits(found, gradients(model))


@pytest.mark.parametrize("name", ["rotary", "learned", "both", "dense", "windows", "sinks", "sharpened"])
def test_reading(name: str) -> None:
    lengths, length, more = [5, 290, 131], 290, 6
    with libmoe.Context(n_threads=2, matmul="native") as context:
        model = made(MODELS[name], context)
        sequences = [tokens_of(MODELS[name], n + more, n) for n in lengths]
        for before in ([285, 0, 159], [0, 0, 0], [100, 0, 80]):  # padding in front, behind, around
            batch, valid = padded([s[:, :n] for s, n in zip(sequences, lengths)], before, length)  # noqa: B905
            cache = model.cache(3, length + more)
            first = model.read(cache, batch[:, :37].copy(), valid_mask=valid[:, :37].copy())
            for row in range(3):
                if not valid[row, :37].any():
                    np.testing.assert_array_equal(first[row], 0)
            # Some tokens too many, forgotten again.
            model.read(cache, batch[:, 37:40].copy(), valid_mask=valid[:, 37:40].copy())
            cache.truncate(37)
            found = [model.read(cache, batch[:, 37:].copy(), valid_mask=valid[:, 37:].copy())]
            for step in range(more):
                token = np.array([[s[0, n + step]] for s, n in zip(sequences, lengths)], np.int32)  # noqa: B905
                found.append(model.read(cache, token))
            for row, (sequence, n) in enumerate(zip(sequences, lengths)):  # noqa: B905
                logits = model.forward(sequence, logits=True).logits
                assert logits is not None
                for step in range(more + 1):
                    if step == 0 and not valid[row, 37:].any():
                        np.testing.assert_array_equal(found[0][row], 0)  # all of it came in the first read
                        continue
                    assert_same_bits(
                        found[step][row], logits[0, n - 1 + step], f"{before} sequence {row} step {step}"
                    )


def test_a_sequence_that_has_ended_waits() -> None:
    with libmoe.Context(n_threads=1, matmul="native") as context:
        model = made(DECODER, context)
        tokens = tokens_of(DECODER, 9, 1)
        cache = model.cache(2, 9)
        model.read(cache, np.concatenate([tokens[:, :4]] * 2))
        for step in range(4, 8):  # the second sequence gets nothing
            model.read(
                cache,
                np.concatenate([tokens[:, step : step + 1]] * 2),
                valid_mask=np.array([[True], [False]]),
            )
        last = model.read(cache, np.concatenate([tokens[:, 8:], tokens[:, 4:5]]))
        logits = model.forward(tokens, logits=True).logits
        assert logits is not None
        assert_same_bits(last[0], logits[0, 8], "read on")
        assert_same_bits(last[1], logits[0, 4], "waited")


@pytest.mark.parametrize("side", ["left", "right"])
def test_generation(side: str) -> None:
    with libmoe.Context(n_threads=2, matmul="native") as context:
        model = made(LEARNED, context)
        lengths = [3, 140, 11]
        prompts = [tokens_of(LEARNED, n, n) for n in lengths]
        before = [140 - n if side == "left" else 0 for n in lengths]
        batch, valid = padded(prompts, before, 140)
        drawn = np.stack(list(model.generate_batch(batch, 7, valid_mask=valid, top_k=5, seed=9)), axis=1)
        for row, prompt in enumerate(prompts):
            alone = list(model.generate(prompt[0], 7, top_k=5, seed=9 + row))
            assert drawn[row].tolist() == alone


def test_given_positions_against_tables_in_another_order() -> None:
    # A model whose table of positions has been reordered has at positions p what another has at t.
    with libmoe.Context(n_threads=1, matmul="native") as context:
        model = made(LEARNED, context)
        tokens = np.concatenate([tokens_of(LEARNED, 20, seed) for seed in (1, 2)])
        order = np.random.default_rng(3).permutation(400)[:40].reshape(2, 20)
        table = model.parameters["positions.weight"].data
        output = model.forward(tokens, positions=order, hidden=True, tape=True)
        model.zero_grad()
        model.backward(output, 0.0, np.ones((2, 20, 12), np.float32))
        found = model.parameters["positions.weight"].grad.copy()
        kept = table.copy()
        for row in range(2):
            table[:20] = kept[order[row]]
            alone = model.forward(tokens[row : row + 1], hidden=True, tape=True)
            assert output.hidden is not None and alone.hidden is not None
            assert_same_bits(output.hidden[row], alone.hidden[0], "hidden")
            model.zero_grad()
            model.backward(alone, 0.0, np.ones((1, 20, 12), np.float32))
            assert_same_bits(found[order[row]], model.parameters["positions.weight"].grad[:20], "gradient")
            table[...] = kept


def test_given_rotary_positions_are_counted_ones_moved() -> None:
    # Rotary scores depend on distances alone, and the counted positions are 0, 1, 2 ...
    with libmoe.Context(n_threads=1, matmul="native") as context:
        model = made(DECODER, context)
        tokens = tokens_of(DECODER, 30, 1)
        counted = model.forward(tokens, logits=True).logits
        given = model.forward(tokens, positions=np.arange(30)[None], logits=True).logits
        moved = model.forward(tokens, positions=np.arange(1000, 1030)[None], logits=True).logits
        spread = model.forward(tokens, positions=3 * np.arange(30)[None], logits=True).logits
        assert counted is not None and given is not None and moved is not None and spread is not None
        assert_same_bits(given, counted, "given")
        assert_close("moved", moved, counted, 1e-3)
        assert np.abs(spread - counted).max() > 1e-2


@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_padding_in_front_against_float64(name: str) -> None:
    with libmoe.Context(n_threads=1) as context:
        model = made(MODELS[name], context)
        sequence = tokens_of(MODELS[name], 9, 4)
        batch, valid = padded([sequence], [4], 13)
        targets = np.full((1, 13), -100, np.int32)
        targets[0, 4:] = tokens_of(MODELS[name], 9, 5)
        model.zero_grad()
        output = model.forward(batch, targets, valid_mask=valid, tape=True, logits=True)
        model.backward(output)
        truth = Oracle(MODELS[name], model.state_dict(), tokens=sequence, targets=targets[:, 4:].copy())
        assert output.logits is not None
        assert_close("logits", output.logits[0, 4:], truth.logits[0])
        assert_close("loss", output.loss, truth.loss)
        _, expected = truth.backward(1.0, np.zeros((1, 9, 12), np.float32))
        for parameter, gradient in gradients(model).items():
            assert_close(parameter, gradient, expected[parameter], 2e-5)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["encoder", "encoder after", "attention alone"])
def test_padding_that_is_not_finite(name: str, odd: float) -> None:
    arguments = {**CASES, **MODELS}[name]
    with libmoe.Context(n_threads=2, matmul="native") as context:
        model = made(arguments, context)
        sequences = [tokens_of(arguments, n, n) for n in (20, 11)]
        batch, valid = padded(sequences, [0, 9], 20)
        d_hidden = np.random.default_rng(1).standard_normal(batch.shape).astype(np.float32)
        results = []
        for value in (0.0, odd):
            batch[~valid] = value
            d_hidden[~valid] = value
            model.zero_grad()
            output = model.forward(batch, valid_mask=valid, tape=True)
            dinput = model.backward(output, dhidden=d_hidden)
            assert output.hidden is not None and dinput is not None
            results.append({"hidden": output.hidden, "dinput": dinput, **gradients(model)})
        for key, expected in results[0].items():
            assert_same_bits(results[1][key], expected, key)


@pytest.mark.parametrize("weights", ["f32", "bf16"])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_reaches_no_later_token(odd: float, weights: str) -> None:
    """A causal query sees no later key, and a weight of 0 must not carry what is not finite there."""
    arguments = {**CASES["attention alone"], "causal": True, "weight_dtype": weights}
    with libmoe.Context(n_threads=2, matmul="native") as context:
        model = made(arguments, context)
        batch = tokens_of(arguments, 40, 1)
        d_hidden = np.random.default_rng(1).standard_normal(batch.shape).astype(np.float32)
        results = []
        for value in (0.0, odd):
            d_hidden[:, 2] = value
            dinput = model.backward(model.forward(batch, tape=True), dhidden=d_hidden)
            assert dinput is not None
            results.append(dinput)
        assert np.isfinite(results[0]).all() and not np.isfinite(results[1][:, 2]).any()
        assert_same_bits(results[1][:, 3:], results[0][:, 3:], "dinput")


def test_refusals() -> None:
    model = libmoe.Model(**{**LEARNED, "max_positions": 8})
    tokens = np.zeros((2, 9), np.int32)
    valid = np.ones((2, 9), bool)
    valid[:, :1] = False
    model.forward(tokens, valid_mask=valid)  # 8 real tokens
    valid[1] = True
    with pytest.raises(libmoe.InvalidArgumentError, match="sequence 1 has 9 real tokens.*max_positions = 8"):
        model.forward(tokens, valid_mask=valid)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"positions\[17\] = 8 is not in 0 ... 7"):
        positions = np.zeros((2, 9), np.int64)
        positions[1, 8] = 8
        model.forward(tokens, positions=positions)
    with pytest.raises(libmoe.InvalidArgumentError, match=r"positions\[1\] = -1"):
        model.read(model.cache(1, 8), tokens[:1, :2].copy(), positions=np.array([[0, -1]]))
    with pytest.raises(libmoe.InvalidArgumentError, match="prompt 1 is all padding"):
        model.generate_batch(tokens, 2, valid_mask=np.array([[True] * 9, [False] * 9]))
    encoder = libmoe.Model(**CASES["encoder"])
    with pytest.raises(libmoe.InvalidArgumentError, match="positions.*max_positions = 0 and rope_theta = 0"):
        encoder.forward(np.zeros((1, 2, 12), np.float32), positions=np.zeros((1, 2), np.int64))


def test_a_tape_wants_the_positions_it_was_filled_with() -> None:
    model = libmoe.Model(**DECODER)
    tokens = np.zeros((1, 3), np.int32)
    output = model.forward(tokens, positions=np.array([[2, 1, 0]]), tape=True)
    output._call.c_input.positions = None
    with pytest.raises(libmoe.InvalidArgumentError, match="positions are not as in forward"):
        model.backward(output)
