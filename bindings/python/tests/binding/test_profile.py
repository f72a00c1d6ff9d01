"""Where the time goes: sums that can be counted by hand, and files that other programs read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import libmoe
from arrays import normal

T, H, INNER, E, K = 64, 32, 48, 4, 2


def trained(matmul: str, max_events: int = 100) -> tuple[libmoe.Profile, float]:
    """Profile one step of a gated layer; returns the profile and how long it was entered."""
    context = libmoe.Context(2, matmul)  # type: ignore[arg-type]
    layer = libmoe.Layer(H, INNER, E, K, expert_kind="gated", context=context)
    optimizer = libmoe.AdamW(layer.parameters, context=context)
    x, tape = normal(T, H), layer.tape()
    begun = time.perf_counter()
    with context.profile(max_events) as profile:
        output = layer.forward(x, tape=tape)
        layer.backward(tape, output.y)
        optimizer.step()
    entered = time.perf_counter() - begun
    layer.forward(x)  # not measured any more
    return profile, entered


@pytest.mark.parametrize("matmul", ["native", "openblas", "reference"])
def test_work_is_what_can_be_counted(matmul: str) -> None:
    """T K rows meet three matrices forwards; backwards each twice: for the rows, and for the weights."""
    profile, entered = trained(matmul)
    product = 2 * T * K * H * INNER
    flops = {(p.phase, p.backward): round(p.gflops * p.seconds * 1e9) for p in profile.phases}
    assert flops == {
        ("route", False): 0,
        ("route", True): 0,
        ("dispatch", False): 0,
        ("gate/up", False): 2 * product,
        ("gate/up", True): 4 * product,
        ("down", False): product,
        ("down", True): 2 * product,
        ("combine", False): 0,
        ("combine", True): 0,
        ("optimizer", False): 0,
        ("dispatch", True): 0,
    }
    weights = 3 * E * H * INNER * 4  # bytes, once forwards
    forward = [p for p in profile.phases if p.phase in ("gate/up", "down") and not p.backward]
    assert sum(p.gbytes * p.seconds * 1e9 for p in forward) > weights
    assert 0 < sum(p.seconds for p in profile.phases) < entered
    assert 0 < sum(p.share for p in profile.phases) < 1


@pytest.mark.parametrize("matmul", ["native", "openblas", "reference"])
def test_what_a_lean_tape_has_not_kept_is_backwards_work(matmul: str) -> None:
    context = libmoe.Context(2, matmul)  # type: ignore[arg-type]
    layer = libmoe.Layer(H, INNER, E, K, expert_kind="gated", context=context)
    x, tape = normal(T, H), layer.tape()
    with context.profile() as profile:
        layer.backward(tape, layer.forward(x, tape=tape, tape_policy="lean").y)
    flops = {(p.phase, p.backward): round(p.gflops * p.seconds * 1e9) for p in profile.phases if p.gflops}
    product = 2 * T * K * H * INNER
    assert flops == {
        ("gate/up", False): 2 * product,
        ("gate/up", True): 6 * product,
        ("down", False): product,
        ("down", True): 2 * product,
    }


def test_bits_are_the_same_while_it_measures() -> None:
    context = libmoe.Context(2)
    layer = libmoe.Layer(H, INNER, E, K, context=context)
    x = normal(T, H)
    with context.profile():
        measured = layer.forward(x).y
    np.testing.assert_array_equal(measured, layer.forward(x).y)


def test_table_and_json_say_the_same() -> None:
    profile, _ = trained("native")
    read = json.loads(profile.json())
    assert [(p["phase"], p["backward"]) for p in read] == [(p.phase, p.backward) for p in profile.phases]
    lines = profile.table().splitlines()
    assert [line.split()[0] for line in lines] == ["phase", *(p.phase for p in profile.phases), "elsewhere"]


def test_trace(tmp_path: Path) -> None:
    """Chrome's format: complete events in microseconds, which lie within the whole and do not overlap."""
    profile, entered = trained("native")
    profile.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(events) == sum(p.calls for p in profile.phases)
    assert {event["ph"] for event in events} == {"X"}
    ends = 0.0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        assert event["ts"] >= ends - 1e-3
        ends = event["ts"] + event["dur"]
    assert ends < entered * 1e6
    total = sum(p.seconds for p in profile.phases)
    assert sum(event["dur"] for event in events) == pytest.approx(total * 1e6)


def test_events_beyond_the_room_count_in_the_sums(tmp_path: Path) -> None:
    profile, _ = trained("native", max_events=3)
    profile.save_trace(tmp_path / "trace.json")
    assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) == 3
    assert sum(p.calls for p in profile.phases) > 3


def test_beginning_again_forgets() -> None:
    context = libmoe.Context(1)
    layer = libmoe.Layer(H, INNER, E, K, context=context)
    with context.profile():
        layer.forward(normal(T, H))
    with context.profile() as profile:
        pass
    assert profile.phases == []


def test_negative_room_is_refused() -> None:
    with pytest.raises(libmoe.InvalidArgumentError, match="max_events"), libmoe.Context(1).profile(-1):
        pass


def test_a_model_takes_part() -> None:
    """Counted by hand: H H products of queries, keys, values, output; 4 and 10 S S D of causal attention."""
    context = libmoe.Context(2)
    heads, sequence, vocabulary = 4, 16, 32
    model = libmoe.Model(
        hidden_size=H,
        n_layers=2,
        n_heads=heads,
        vocabulary_size=vocabulary,
        causal=True,
        rope_theta=1e4,
        tied_output=True,
        moe={"n_experts": E, "top_k": K, "intermediate_size": INNER},
        context=context,
    )
    tokens = np.arange(T, dtype=np.int32).reshape(-1, sequence) % vocabulary
    with context.profile() as profile:
        model.backward(model.forward(tokens, targets=tokens, tape=True, training=True))
    flops = {(p.phase, p.backward): round(p.gflops * p.seconds * 1e9) for p in profile.phases}
    seen = sequence * (sequence + 1) // 2
    assert flops["projection", False] == 2 * 2 * T * 4 * H * H
    assert flops["projection", True] == 2 * flops["projection", False]
    assert flops["attention", False] == 2 * 4 * (T // sequence) * seen * H
    assert flops["attention", True] == flops["attention", False] // 2 * 5
    # The logits are computed in forward, and again in backward with two products more.
    assert flops["loss", False] + flops["loss", True] == 4 * 2 * T * H * vocabulary
    assert {"norm", "embedding", "route", "gate/up", "down"} <= {p.phase for p in profile.phases}
