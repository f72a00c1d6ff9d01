"""Calls of experts that are spread over ranks have the bits of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
from comparison import assert_same_bits
from expert_calls import KINDS, Arrays, Case, stored
from ranked_layers import Part, divided
from thread_ranks import NOT_BEGUN, NOT_ENDED, ThreadRanks

WHOLE = slice(None)


class Call:
    """One rank's part of a case, or all of it."""

    def __init__(self, case: Case, part: Part, own: slice, form: str | None = None) -> None:
        self.case, self.own = case, own
        self.values = {name: value[own] for name, value in case.values.items()}
        arrays: dict[str, Any] = {
            n: stored(v, "f32" if "bias" in n else case.dtype) for n, v in self.values.items()
        }
        weights = libmoe.ExpertWeights(**arrays)
        self.given: tuple[Any, ...] = (part.of(case.indices), part.of(case.weights), weights)
        self.x, self.dy = part.of(case.x), part.of(case.dy)
        self.options: dict[str, Any] = dict(case.options)
        if form is not None and len(weights._places) and weights.n_experts:
            self.options["prepared"] = libmoe.experts_prepare(weights, form)  # type: ignore[arg-type]

    def forward(self, **more: Any) -> libmoe.ExpertsOutput:
        options = {**self.options, **more}
        return libmoe.experts_forward(self.x, *self.given, **options)

    def backward(self, saved: Any, *, frozen: bool = False, **more: Any) -> Arrays:
        """Return the gradients, those of weights too unless they are frozen."""
        into: dict[str, Any] = {}
        if not frozen:
            into = {n: np.full(v.shape, np.nan, np.float32) for n, v in self.values.items()}
        gradients = libmoe.ExpertGradients(**into) if into else None
        given = (self.dy, self.x, *self.given)
        more = {**self.options, **more, "saved": saved, "gradients": gradients, "overwrite": True}
        dx, dw = libmoe.experts_backward(*given, **more)
        return {"dx": dx, "dw": dw, **into}

    def everything(self, *, saves: bool = True, frozen: bool = False, **more: Any) -> Arrays:
        """Return what a forward and a backward make."""
        out = self.forward(saved=saves, rows=True, **more)
        return {"y": out.y, "rows": out.rows, **self.backward(out.saved, frozen=frozen, **more)}


def together(
    case: Case,
    parts: Sequence[int],
    use: Callable[[Call, libmoe.ExpertRanks], Any],
    counts: Sequence[int] | None = None,
    ranks: ThreadRanks | None = None,
    form: str | None = None,
) -> list[Any]:
    """Return what each rank makes of its part."""
    divisions = divided(parts)

    def one(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(1) as context:
            spread = libmoe.ExpertRanks(communicator, case.E, counts, context=context)
            call = Call(case, divisions[communicator.rank], spread.own, form)
            call.options["context"] = context
            return use(call, spread)

    return (ranks or ThreadRanks(len(parts), patience=20)).run(one)


def same(
    case: Case,
    parts: Sequence[int],
    counts: Sequence[int] | None = None,
    *,
    form: str | None = None,
    ranks: ThreadRanks | None = None,
    **options: Any,
) -> None:
    """Compare a call over ranks with the same call in one process."""
    made = together(
        case, parts, lambda call, spread: call.everything(ranks=spread, **options), counts, ranks, form
    )
    alone = Call(case, Part(0, case.T), WHOLE, form).everything(**options)
    for name, wanted in alone.items():
        assert_same_bits(np.concatenate([each[name] for each in made]), wanted, name)


@pytest.mark.parametrize("parts", [[40], [17, 23], [0, 40], [40, 0], [9, 0, 31], [0, 0, 40, 0]], ids=str)
def test_any_division_of_tokens_has_the_bits_of_one_process(parts: list[int]) -> None:
    same(Case(), parts)


@pytest.mark.parametrize("counts", [[5, 0, 0], [1, 3, 1], [0, 0, 5], [2, 0, 3]], ids=str)
def test_any_division_of_experts_too(counts: list[int]) -> None:
    same(Case(), [12, 9, 19], counts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saves", [True, False])
def test_kinds_of_experts(kind: str, saves: bool) -> None:
    same(Case(**KINDS[kind]), [14, 0, 26], saves=saves)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("saves", [True, False])
def test_types_of_weights(dtype: str, saves: bool) -> None:
    same(Case(dtype=dtype), [14, 0, 26], [3, 2, 0], saves=saves)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_tokens_of_bfloat16(dtype: str) -> None:
    case: Any = Case(dtype=dtype)
    case.x, case.dy = libmoe.to_bfloat16(case.x), libmoe.to_bfloat16(case.dy)
    same(case, [14, 26])


def test_weights_on_what_experts_read_and_another_number_of_choices() -> None:
    same(Case(weight_on_input=True, K=3), [14, 26])


def test_no_tokens_at_all() -> None:
    same(Case(T=0), [0, 0, 0])


@pytest.mark.parametrize("form", ["f32", "int8", "int4"])
def test_prepared_weights(form: str) -> None:
    same(Case(), [14, 26], form=form, frozen=form != "f32")


def test_rows_in_pieces() -> None:
    ranks = ThreadRanks(2, patience=60)
    same(Case(E=9, H=512, I=64, T=1400, K=2), [700, 700], ranks=ranks)
    assert ranks.exchanges(0) > 24  # more than with one piece each way


def test_the_bytes_of_rows_are_those_of_the_arithmetic() -> None:
    case = Case(dtype="bf16", T=64)
    case.indices = np.zeros((64, 2), np.int64)  # rank 0's
    ranks = ThreadRanks(2, patience=20)
    together(case, [0, 64], lambda call, spread: call.forward(ranks=spread), ranks=ranks)
    there, back = ranks.bytes(1, 0), ranks.bytes(0, 1)
    assert 128 * 37 * 2 <= there < 128 * 37 * 2 + 1000  # what experts round to bfloat16 travels as that
    assert 128 * 37 * 4 <= back < 128 * 37 * 4 + 1000


# What only some ranks want.


def test_gradients_that_only_some_ranks_want() -> None:
    case, parts = Case(), [12, 9, 19]

    def some(call: Call, spread: libmoe.ExpertRanks) -> Arrays:
        first = call.own.start == 0
        out = call.forward(saved=True, ranks=spread)
        made = call.backward(out.saved, frozen=first, dx=first, d_expert_weights=not first, ranks=spread)
        return {name: array for name, array in made.items() if array is not None}

    made = together(case, parts, some)
    alone = Call(case, Part(0, case.T), WHOLE).everything()
    assert_same_bits(made[0]["dx"], alone["dx"][:12], "dx")
    assert_same_bits(np.concatenate([each["dw"] for each in made[1:]]), alone["dw"][12:], "dw")
    assert_same_bits(np.concatenate([each["up"] for each in made[1:]]), alone["up"][2:], "up")
    assert "up" not in made[0] and "dx" not in made[1]


def test_where_one_rank_saves_all_do() -> None:
    def plan(call: Call, spread: libmoe.ExpertRanks) -> int:
        indices, _, weights = call.given
        tokens: dict[str, Any] = {"n_tokens": len(indices), "top_k": 2, "expert_indices": indices}
        saves = [
            libmoe.experts_plan(weights, **tokens, saves=saves, ranks=spread).tape_bytes
            for saves in (False, call.own.start > 0)
        ]
        return saves[1] if saves[0] == 0 else -1

    found = together(Case(), [40, 0], plan)
    assert min(found) > 0


# Faults.


def said(call: Callable[[], Any]) -> tuple[type, str] | None:
    """Return what a call raises."""
    try:
        call()
    except libmoe.MoeError as error:
        return type(error), str(error)
    return None


def test_an_error_of_one_rank_is_that_of_all_and_calls_go_on() -> None:
    case = Case()

    def use(call: Call, spread: libmoe.ExpertRanks) -> tuple[list[Any], Arrays]:
        out = call.forward(saved=True, ranks=spread)
        wrong = out.saved.copy()
        if spread.own.start == 2:
            wrong[40] ^= 1
        found = [said(lambda: call.backward(wrong, ranks=spread))]
        if spread.own.start == 4:
            out.saved.resize(8)
        found.append(said(lambda: call.forward(saved=out.saved, ranks=spread)))
        return found, call.everything(ranks=spread)

    made = together(case, [12, 9, 19], use)
    alone = Call(case, Part(0, case.T), WHOLE).everything()
    for name, wanted in alone.items():
        assert_same_bits(np.concatenate([each[name] for _, each in made]), wanted, name)
    for number, (kind, text) in enumerate(
        [(libmoe.BadStateError, "rank 1: saved"), (libmoe.InvalidArgumentError, "rank 2: saved_size = 8")]
    ):
        each = {found[number] for found, _ in made}
        assert len(each) == 1
        assert next(iter(each))[0] is kind and next(iter(each))[1].startswith(text)


def test_ranks_that_call_differently_are_told_so() -> None:
    def other(call: Call, spread: libmoe.ExpertRanks) -> Any:
        if spread.own.start == 0:
            return said(lambda: call.forward(ranks=spread))
        return said(lambda: call.backward(None, ranks=spread))

    found = set(together(Case(), [20, 20], other))
    assert len(found) == 1
    assert "rank 1 makes another call than rank 0" in found.pop()[1]

    def placed(communicator: libmoe.Communicator) -> Any:
        with libmoe.Context(1) as context:
            counts = [3, 2] if communicator.rank == 0 else [4, 1]
            spread = libmoe.ExpertRanks(communicator, 5, counts, context=context)
            call = Call(Case(), Part(0, 20), spread.own)
            return said(lambda: call.forward(ranks=spread, context=context))

    found = set(ThreadRanks(2, patience=20).run(placed))
    assert len(found) == 1
    assert "another configuration, placement or number of ranks" in found.pop()[1]


@pytest.mark.parametrize("fault", [NOT_BEGUN, NOT_ENDED])
def test_a_transport_that_fails_anywhere_ends_the_call_everywhere(fault: int) -> None:
    def use(call: Call, spread: libmoe.ExpertRanks) -> Any:
        found = said(lambda: call.everything(ranks=spread))
        return found, said(lambda: call.everything(ranks=spread))

    healthy = ThreadRanks(3, patience=20)
    assert together(Case(), [12, 0, 28], use, ranks=healthy) == [(None, None)] * 3
    for exchange in range(1, healthy.exchanges(1) // 2 + 1):
        ranks = ThreadRanks(3, patience=20)
        ranks.fail(1, exchange, fault)
        for found in together(Case(), [12, 0, 28], use, ranks=ranks):
            assert found[1] is not None and found[1][0] is libmoe.CommunicationError, exchange


def test_what_is_wrong_with_the_ranks_themselves() -> None:
    def refused(communicator: libmoe.Communicator) -> None:
        for counts, text in (([3, 3], "of n_experts = 5 are left"), ([2, 2], "adds up to 1 less")):
            with pytest.raises(libmoe.InvalidArgumentError, match=text):
                libmoe.ExpertRanks(communicator, 5, counts)
        with pytest.raises(libmoe.InvalidArgumentError, match="2 ranks"):
            libmoe.ExpertRanks(communicator, 5, [5])
        with pytest.raises(libmoe.ArgumentTypeError, match="communicator"):
            libmoe.ExpertRanks(communicator.rank, 5)  # type: ignore[arg-type]
        spread = libmoe.ExpertRanks(communicator, 5)
        assert repr(spread).startswith(f"ExpertRanks(rank {communicator.rank} of 2")
        call = Call(Case(), Part(0, 4), WHOLE)
        with pytest.raises(libmoe.InvalidArgumentError, match="n_experts = 5, but of the 5 experts"):
            call.forward(ranks=spread)

    ThreadRanks(2, patience=20).run(refused)


def test_an_empty_array_is_no_experts_of_one_process() -> None:
    case = Case()
    values: dict[str, Any] = {name: value[:0] for name, value in case.values.items()}
    weights = libmoe.ExpertWeights(**values)
    none: NDArray[Any] = np.zeros((0, 2), np.int64)
    with pytest.raises(libmoe.InvalidArgumentError, match="n_experts = 0"):
        libmoe.experts_forward(case.x[:0], none, none.astype(np.float32), weights)
