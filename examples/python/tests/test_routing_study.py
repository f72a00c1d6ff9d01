"""The study of routing schemes: what its numbers mean, and the whole job, small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import libmoe
from routing_study.runs import Result, active_width, run
from routing_study.schemes import ACTIVE, CLASSIC, COLLAPSE, DENSE, SCHEMES, Scheme
from train_text.text import Corpus

EXAMPLE = Path(__file__).resolve().parents[1] / "routing_study"
BINDING = Path(libmoe.__file__).resolve().parents[1]
DOCUMENTS = Path(__file__).resolve().parents[3] / "docs"
BY_NAME = {scheme.name: scheme for scheme in [*SCHEMES, *COLLAPSE]}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    rng = np.random.default_rng(6)
    words = [b"one small step", b"a giant leap", b"the quiet sea", b"of many numbers", b"under old trees"]
    text = b"\n".join(words[i] for i in rng.integers(len(words), size=4000))
    training, held_out = (np.frombuffer(part, np.uint8) for part in (text[:-5000], text[-5000:]))
    return Corpus(training, held_out, n_files=1, passed_over=[], truncated=False)


def short_run(scheme: Scheme, corpus: Corpus, steps: int, seed: int = 1) -> Result:
    context = libmoe.Context(n_threads=2)
    return run(scheme, corpus, steps=steps, seed=seed, context=context, show=lambda done: None)


# ------------------------------------------------------------------------------------------------------------
# Every scheme
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_NAME)
def test_every_scheme_learns(name: str, corpus: Corpus) -> None:
    result = short_run(BY_NAME[name], corpus, steps=12)
    letters = np.bincount(corpus.held_out) / len(corpus.held_out)
    entropy = -sum(share * np.log2(share) for share in letters if share)
    assert result.bits < entropy - 0.3  # better than counting bytes, which it begins with
    assert [point.step for point in result.points] == list(range(1, 13))
    for point in result.points:
        assert point.shares.sum() == pytest.approx(1)
        assert point.max_over_mean == pytest.approx(point.shares.max() * len(point.shares))
        assert point.dead_share == np.mean(point.shares == 0)


def test_names_are_different() -> None:
    assert len(BY_NAME) == len(SCHEMES) + len(COLLAPSE)


def test_no_scheme_is_wider_than_the_dense_layer() -> None:
    assert list(DENSE.widths()) == [ACTIVE]
    for scheme in SCHEMES:
        if "dynamic" not in scheme.name:  # its choices are four at most, and it says how many it used
            # ReLU routing comes to the wanted number on average.
            top_k = scheme.wanted or scheme.layer(1, libmoe.default_context()).top_k
            assert scheme.widths().max() * top_k + scheme.shared_width() == ACTIVE, scheme.name


def test_active_width_by_hand() -> None:
    groups = [{"n_experts": 1, "intermediate_size": 30}, {"n_experts": 1, "expert_kind": "identity"}]
    scheme = Scheme("", {"n_experts": 2, "expert_groups": groups})
    experts = np.array([[0, 1], [0, -1], [-1, -1], [1, 0]], np.int32)
    assert active_width(scheme, experts) == (30 + 30 + 0 + 30) / 4
    shared = Scheme("", {"n_experts": 2, "intermediate_size": 8, "n_shared_experts": 1})
    assert active_width(shared, experts) == (16 + 8 + 0 + 16) / 4 + 8


# ------------------------------------------------------------------------------------------------------------
# What the study is to show
# ------------------------------------------------------------------------------------------------------------


def test_a_head_start_stays_without_a_balance_loss_and_goes_with_its_cures(corpus: Corpus) -> None:
    collapsed, *cured = (short_run(scheme, corpus, steps=60).points[-1] for scheme in COLLAPSE)
    assert collapsed.shares[:2].sum() > 0.9
    for point in cured:
        assert point.shares[:2].sum() < 0.7


def test_a_run_is_repeatable_and_the_seed_is_the_models(corpus: Corpus) -> None:
    one, again, other = (short_run(CLASSIC, corpus, steps=3, seed=seed) for seed in (1, 1, 2))
    assert one.bits == again.bits and one.bits != other.bits
    np.testing.assert_array_equal(one.points[-1].shares, again.points[-1].shares)


def test_the_whole_job(corpus: Corpus, tmp_path: Path) -> None:
    text, output = tmp_path / "text", tmp_path / "out"
    text.write_bytes(bytes(corpus.training))
    subprocess.run(
        [sys.executable, EXAMPLE, text, "--steps", "2", "--output", output],
        env={**os.environ, "PYTHONPATH": str(BINDING)},
        check=True,
        timeout=300,
    )
    pictures = ("bits.png", "shares.png", "collapse.png")
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    table = (output / "table.md").read_text()
    runs = len(SCHEMES) + len(COLLAPSE) + 2  # two more seeds of the classic
    assert len(table.splitlines()) == runs + 2 * 2 + 1  # two heads of two lines, and a line between
    assert len((output / "points.csv").read_text().splitlines()) == 1 + runs * 2


def test_the_document_has_every_scheme() -> None:
    document = (DOCUMENTS / "study.md").read_text()
    assert [name for name in BY_NAME if f"\n| {name} |" not in document] == []
