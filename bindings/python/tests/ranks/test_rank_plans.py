"""What is planned and simulated of ranks, beside what layers over threads as ranks send, hold and compute."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import libmoe
from libmoe.cli import main
from libmoe.ranks import LayerWork, Machine, plan, simulate
from ranked_layers import Made, alone, divided, joined, plain, step, together, tokens
from thread_ranks import ThreadRanks

WORK = LayerWork(128, 192, n_experts=8, top_k=2, tokens=1024, expert_kind="gated")
CONFIG = plain(hidden_size=128, intermediate_size=192, n_experts=8, expert_kind="gated", router_bias=False)
MACHINE = Machine(cores=2, core_rate=6e10, node_rate=1.1e11)


@pytest.mark.parametrize("strategy", ["exclusive", "replicated", "sliced"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_and_memory_are_those_of_a_layer(ranks: int, strategy: Any) -> None:
    """With every expert chosen equally often by the tokens of each rank."""
    count = WORK.tokens
    x, dy = tokens(count * ranks, WORK.hidden_size)
    first = np.arange(count * ranks, dtype=np.int32) % WORK.n_experts
    chosen = np.stack([first, (first + 3) % WORK.n_experts], axis=1)
    group = ThreadRanks(ranks, patience=20)

    def held(communicator: libmoe.Communicator) -> int:
        part = divided([count] * ranks)[communicator.rank]
        with libmoe.Context(1) as context:
            layer = libmoe.Layer(**CONFIG, context=context, communicator=communicator, strategy=strategy)
            optimizer = libmoe.AdamW(layer.parameters, context=context)
            step(layer, part, x, dy, expert_indices=chosen)
            optimizer.step()
            return int(context.memory()[1]) + 4 * int(part.of(x).nbytes)  # x, y, dy, dx are the caller's

    memory = group.run(held)
    sent = [sum(group.bytes(a, b) for b in range(ranks) if a != b) for a in range(ranks)]
    name = "expert-exclusive" if strategy == "exclusive" else strategy
    planned = next(each for each in plan(WORK, MACHINE, ranks).strategies if each.name == name)
    assert planned.bytes_sent == pytest.approx(np.mean(sent), rel=0.02)
    assert [planned.memory] * ranks == pytest.approx(memory, rel=0.1)


@pytest.mark.parametrize("ep", [1, 2])
def test_copies_whose_gradients_are_added_up_are_one_layer_but_for_rounding(ep: int) -> None:
    """A plain layer on each rank, or a grid of groups: a plan says that both can be run."""
    config, count, ranks = plain(balance_coef=0.0, z_coef=0.0, n_experts=8), 40, 4
    x, dy = tokens(count)
    parts = divided([count // ranks] * ranks)
    groups = []
    for first in range(0, ranks, ep):
        own = slice(parts[first].first, parts[first].first + ep * parts[first].count)
        use = partial(step, x=x[own], dy=dy[own])
        counts = [count // ranks] * ep
        groups.append(joined(together(config, counts, use)) if ep > 1 else alone(config, counts[0], use))
    wanted: Made = alone(config, count, partial(step, x=x, dy=dy))
    np.testing.assert_array_equal(np.concatenate([group.y for group in groups]), wanted.y)
    for name, gradient in wanted.gradients.items():
        found = sum(group.gradients[name] for group in groups)
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("experts", "inner", "seen"), [(16, 8192, 1 / 8), (2, 8192, 1), (16, 1, None)])
def test_what_is_computed_meanwhile_hides_rows_between_nodes(experts: int, inner: int, seen: Any) -> None:
    """All but the first and the last piece and all of dx, or what takes as long as computing."""
    work = LayerWork(512, inner, n_experts=experts, top_k=2, tokens=4096)

    def exchange(rate: float) -> Any:
        return next(
            each.exchange
            for each in plan(work, MACHINE.with_(link_rate=rate), 2, ranks_per_node=1).strategies
            if each.name == "expert-exclusive"
        )

    rate = 1e9
    waited = exchange(rate) - exchange(1e30)
    x, out, dy, dx = (work.tokens * each / rate for each in work.row_bytes)  # half of two choices a token
    small = 7 * (24 + 8 * experts / 7) / rate
    wanted = (
        x + out + dy + dx - work.operations / MACHINE.core_rate if seen is None else seen * (x + out + dy)
    )
    assert waited - small == pytest.approx(wanted, rel=0.01)


def test_only_what_runs_and_fits_is_chosen() -> None:
    made = plan(WORK, MACHINE, 4, ranks_per_node=2)
    assert made.best.runs and made.best in made.strategies
    assert {each.name for each in made.strategies} == {"expert-exclusive", "grid", "replicated", "sliced"}
    assert all(each.runs for each in made.strategies) and f"* {made.best.name}" in str(made)
    assert {each.ep * each.copies for each in made.strategies if each.name != "sliced"} == {4}
    thin = plan(LayerWork(128, 3, n_experts=8, top_k=2, tokens=1024), MACHINE, 4)
    assert [each.name for each in thin.strategies if not each.runs] == ["sliced"]
    assert "an expert has no slice for each rank" in str(thin)
    slow = MACHINE.with_(link_rate=1e8)
    many_rows = LayerWork(1024, 64, n_experts=4, top_k=4, tokens=4096)
    rows = plan(many_rows, slow, 4, ranks_per_node=1)
    assert rows.best.ep == 1
    assert [each.name for each in rows.strategies if each.same_bits] == ["replicated", "expert-exclusive"]
    many_weights = LayerWork(1024, 4096, n_experts=64, top_k=2, tokens=64)
    assert plan(many_weights, slow, 4, ranks_per_node=1).best.name == "expert-exclusive"
    with pytest.raises(libmoe.InvalidArgumentError, match="nothing fits .*: expert-exclusive needs the"):
        plan(many_weights, MACHINE.with_(memory=1e6), 4)


def test_what_is_no_plan_is_refused() -> None:
    for change, words in (
        ({"top_k": 9}, "top_k = 9, but there are 8 experts"),
        ({"tokens": 0}, "tokens = 0"),
        ({"expert_kind": "dense"}, "expert_kind = 'dense'"),
        ({"weight_bytes": 3}, "weight_bytes = 3"),
        ({"imbalance": 0.5}, "imbalance = 0.5"),
        ({"imbalance": float("nan")}, "imbalance = nan"),
        ({"tokens": "4"}, "tokens: expected an int, got str"),
        ({"n_experts": 2.5}, "n_experts: expected an int, got float"),
    ):
        sizes: dict[str, Any] = {
            "hidden_size": 8,
            "intermediate_size": 8,
            "n_experts": 8,
            "top_k": 2,
            "tokens": 4,
        }
        with pytest.raises(libmoe.InvalidArgumentError, match=words):
            LayerWork(**{**sizes, **change})
    for numbers in (
        {"core_rate": 0.0},
        {"cores": -1},
        {"oversubscription": 0.5},
        {"link_rate": float("nan")},
        {"cores": 2.5},
        {"memory": "64e9"},
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match=next(iter(numbers))):
            MACHINE.with_(**numbers)
    for options in (
        {"ranks": 0},
        {"ranks": 1 << 21},
        {"threads": 0, "ranks": 2},
        {"ranks": "8"},
        {"threads": None, "ranks": 2},
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match=next(iter(options))):
            plan(WORK, MACHINE, **options)
    with pytest.raises(TypeError, match="ranks: expected a sequence, got int"):
        simulate(WORK, MACHINE, 8)  # type: ignore[arg-type]


def test_messages_take_what_the_equations_say() -> None:
    m = Machine(
        cores=4, core_rate=1e9, node_rate=4e9, copy_rate=1e9, copy_latency=1e-3, link_rate=1e8,
        link_latency=1e-2, message_time=1e-4, nodes_per_switch=2, oversubscription=3.0,
    )  # fmt: skip
    # Two of eight ranks a node: 2 messages within it, 2 x 6 out of it, of whose bytes 4 / 6 leave the switch.
    near, far = 2 * 1e6 / 1e9 + 1e-3, 12 * 1e6 / 1e8 * (4 / 6 * 3)
    assert m.all_to_all(8, 2, 1e6) == pytest.approx(near + far + 6 * 1e-4 + 1e-2)
    assert m.by_nodes(8, 2, 1e6) == pytest.approx(2 * 4e6 / 1e9 + 1e-3 + far + 3 * 1e-4 + 1e-2)
    assert m.all_to_all(2, 2, 1e6) == pytest.approx(near)
    assert m.rate(1) == 1e9 and m.rate(2) == 2e9 and m.rate(99) == 4e9
    assert m.along(8, 2, 0) == pytest.approx(4 * 1e-3 + 3 * (1e-2 + 1e-4))


def test_steps_by_nodes_are_better_below_the_tokens_that_are_named() -> None:
    work = LayerWork(256, 256, n_experts=256, top_k=8, tokens=512)
    slow = MACHINE.with_(message_time=2e-5)
    point = simulate(work, slow, [64], ranks_per_node=8)[0]
    assert point.tokens_by_nodes > 1
    for share, better in ((0.9, True), (1.1, False)):
        few = LayerWork(256, 256, n_experts=256, top_k=8, tokens=round(share * point.tokens_by_nodes))
        found = simulate(few, slow, [64], ranks_per_node=8)[0]
        assert (found.by_nodes < found.flat) == better


def test_more_ranks_have_less_memory_and_wait_more() -> None:
    points = simulate(WORK, MACHINE, [1, 2, 4, 8])
    memory = [point.strategy.memory for point in points]
    waiting = [point.strategy.exchanged_share for point in points]
    assert memory == sorted(memory, reverse=True) and waiting == sorted(waiting) and waiting[0] == 0
    assert points[0].efficiency == pytest.approx(1)


def test_the_program_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).resolve().parents[4] / "docs" / "scale.md"
    _, program = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    exec(compile(program, str(page), "exec"), {})
    assert capsys.readouterr().out.startswith("8 ranks, 2 a node\n")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine, picture, numbers = (tmp_path / name for name in ("machine.json", "scale.svg", "scale.json"))
    MACHINE.save(machine)
    assert Machine.load(machine) == MACHINE
    sizes = ["--hidden-size", "64", "--intermediate-size", "64", "--n-experts", "16", "--tokens", "64"]
    files = ["--machine", str(machine), "--picture", str(picture), "--json", str(numbers)]
    assert main(["scale", *sizes, *files, "--ranks", "1", "8", "32", "--link-gbs", "1.25"]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[3].split()[:2] == ["32", "16"] and "sliced" in table
    assert sum(node.tag.endswith("rect") for node in ElementTree.parse(picture).iter()) == 1 + 3 * 4 + 4
    written = json.loads(numbers.read_text())
    assert written["machine"]["link_rate"] == 1.25e9 and len(written["points"]) == 3
    machine.write_text("{}")
    assert main(["scale", *sizes, "--machine", str(machine)]) == 1
    assert "has no machine" in capsys.readouterr().err
    machine.write_text('{"cores": 0, "core_rate": 1, "node_rate": 1}')
    assert main(["scale", *sizes, "--machine", str(machine)]) == 1
    assert "machine.json': cores = 0" in capsys.readouterr().err
    assert main(["scale", *sizes, "--ranks", "2"]) == 0  # measured here


@pytest.mark.parametrize(
    "option, value",
    [
        ("--cores", "0"),
        ("--cores", "1.5"),
        ("--core-gflops", "-3"),
        ("--link-gbs", "nan"),
        ("--memory-gb", "inf"),
        ("--oversubscription", "0.5"),
        ("--imbalance", "nan"),
        ("--hidden", "1.5"),
        ("--n-shared-experts", "-1"),
        ("--ranks", "2000000"),
        ("--threads", "0"),
        ("--top-k", "500"),
        ("--picture", "no/such/folder/scale.svg"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name_before_anything_is_measured(
    option: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libmoe.ranks, "measure", None)
    try:
        status = main(["scale", option, value])
    except SystemExit as leaving:
        status = int(str(leaving.code))
    assert status in (1, 2)
    told = capsys.readouterr().err
    assert (option if option != "--picture" else value) in told and "measuring" not in told
