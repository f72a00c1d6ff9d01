"""The language model of the example: its gradients against float64, its files, and the whole job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import libmoe
import oracle
from train_text.kinds import KINDS, kinds
from train_text.model import TOP_K, TextModel
from train_text.text import Bytes, bigram_bits, load, unigram, unigram_bits
from train_text.training import generate

EXAMPLE = Path(__file__).resolve().parents[1] / "train_text"
BINDING = Path(libmoe.__file__).resolve().parents[1]
Doubles = NDArray[np.float64]


def of(text: bytes) -> Bytes:
    return np.frombuffer(text, np.uint8)


def used_model() -> TextModel:
    """Make a model whose weights are all away from their special beginnings, zeros and ones."""
    model = TextModel(np.full(256, 1 / 256), seed=3)
    rng = np.random.default_rng(4)
    for parameter in model.parameters:
        parameter.data[:] += 0.1 * rng.standard_normal(parameter.data.shape, np.float32)
    return model


# ------------------------------------------------------------------------------------------------------------
# The gradient: the whole model again in float64, and finite differences of that
# ------------------------------------------------------------------------------------------------------------


def objective(weights: dict[str, Doubles], contexts: Bytes, targets: Bytes) -> tuple[float, float]:
    """Mean cross-entropy in nats plus the auxiliary loss, and the margin of the routing's choices."""

    def normed(v: Doubles, gain: Doubles) -> Doubles:
        result: Doubles = gain * v / np.sqrt(np.mean(v**2, axis=1, keepdims=True) + 1e-6)
        return result

    of_layer = {name[4:]: values for name, values in weights.items() if name.startswith("moe.")}
    x = np.stack([np.concatenate([weights["embedding"][byte] for byte in row]) for row in contexts])
    layer = oracle.forward(oracle.Settings(TOP_K), of_layer, normed(x, weights["norm_x.gain"]))
    h = normed(x + layer.y, weights["norm_h.gain"])
    logits = h @ weights["output.weight"].T + weights["output.bias"]
    nats = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]
    return float(nats.mean() + layer.report.aux_loss), layer.routing.margin()


def test_objective_and_gradient_against_float64() -> None:
    model = used_model()
    rng = np.random.default_rng(5)
    contexts = rng.choice(of(b"\x00aab \xff"), (12, 16))  # some bytes again and again, some never
    targets = rng.choice(of(b"ab\xff"), 12)
    model.zero_grad()
    activations = model.forward(contexts, training=True)
    model.backward(activations, targets)

    names = ["embedding", "norm_x.gain", "norm_h.gain", "output.weight", "output.bias"]
    names += [f"moe.{name}" for name in model.moe.parameters]
    parameters = dict(zip(names, model.parameters))
    weights = {name: parameter.data.astype(np.float64) for name, parameter in parameters.items()}
    expected, margin = objective(weights, contexts, targets)
    assert margin > 1e-4  # so that neither rounding nor the small steps below change a choice
    nats = -np.log(activations.probabilities[np.arange(12), targets].astype(np.float64)).mean()
    assert nats + activations.report.aux_loss == pytest.approx(expected, rel=1e-5)

    step = 1e-6
    for name, parameter in parameters.items():
        gradient = parameter.grad.astype(np.float64)
        for _ in range(2):  # along a random direction every element counts
            direction = rng.standard_normal(gradient.shape)
            above, below = (
                objective({**weights, name: weights[name] + way * direction}, contexts, targets)[0]
                for way in (step, -step)
            )
            error = (above - below) / (2 * step) - float((gradient * direction).sum())
            assert abs(error) < 1e-5 * float(np.linalg.norm(gradient)), name


def test_a_fresh_model_is_the_unigram_model() -> None:
    shares = unigram(of(b"some text to count the bytes of"))
    probabilities = TextModel(shares, seed=1).forward(np.zeros((2, 16), np.uint8)).probabilities
    np.testing.assert_allclose(probabilities, np.stack([shares, shares]), rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------
# Weights, text, kinds of bytes
# ------------------------------------------------------------------------------------------------------------


def test_saved_weights_write_the_same_text(tmp_path: Path) -> None:
    model = used_model()
    model.save(tmp_path / "weights.npz")
    again = TextModel.load(tmp_path / "weights.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]
    samples = [generate(m, of(b"def "), 30, temperature=1.0, seed=7) for m in (model, again)]
    assert samples[0] == samples[1] and len(samples[0]) > 0


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    (tmp_path / "weights.npz").write_bytes(b"old")
    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="full"):
        used_model().save(tmp_path / "weights.npz")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_no_file_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"{i}.txt").write_bytes(f"<file {i}>".encode() * 100)
        (tmp_path / f"copy of {i}.txt").write_bytes(f"<file {i}>".encode() * 100)
    (tmp_path / "binary").write_bytes(b"\x7fELF\x00" * 1000)
    (tmp_path / ".hidden").write_bytes(b"hidden" * 1000)
    corpus = load([str(tmp_path)])
    parts = [set(bytes(part).split(b"\0")) - {b""} for part in (corpus.training, corpus.held_out)]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0] | parts[1] == {f"<file {i}>".encode() * 100 for i in range(60)}
    assert corpus.n_files == 60 and corpus.passed_over == [tmp_path / "binary"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "loss.csv").write_text("step,loss\n" * 99)  # of a run before
    assert load([str(tmp_path)]).n_files == 61
    again = load([str(tmp_path)], tmp_path / "out")
    assert (again.n_files, bytes(again.training)) == (60, bytes(corpus.training))


def test_of_a_single_file_the_end_is_held_out(tmp_path: Path) -> None:
    text = b"".join(b"line %d\n" % i for i in range(3000))
    (tmp_path / "one.txt").write_bytes(text)
    corpus = load([str(tmp_path / "one.txt")])
    assert bytes(corpus.training)[:-1] + bytes(corpus.held_out)[:-1] == text
    assert len(corpus.held_out) - 1 == len(text) // 10


def test_counting_models_by_hand() -> None:
    # Of the training text "aab", one more of each of the 256 bytes: a 3, b 2, every other byte 1, of 259.
    training, text, both = of(b"aab"), of(b"ab"), np.arange(2)
    p_a, p_b = 3 / 259, 2 / 259
    assert unigram_bits(training, text, both) == pytest.approx(-np.log2([p_a, p_b]).mean())
    # After a came a once and b once. Before the text stands a NUL, which nothing followed.
    after = [p_a, (1 + p_b) / (2 + 1)]
    assert bigram_bits(training, text, both) == pytest.approx(-np.log2(after).mean())


def test_kinds_of_bytes() -> None:
    found = [KINDS[kind] for kind in kinds(of(b"\n  a B_1\t=('.\xc3"))]
    assert found == [
        *("newline", "indentation", "indentation", "lower case", "space", "upper case", "underscore"),
        *("digit", "space", "operator", "bracket", "quote", "punctuation", "other"),
    ]


# ------------------------------------------------------------------------------------------------------------
# The whole job, as users run it
# ------------------------------------------------------------------------------------------------------------


def start(arguments: Sequence[object], how: Sequence[str] = (str(EXAMPLE),)) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *how, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{BINDING}{os.pathsep}{EXAMPLE.parent}"},
    )


@pytest.fixture
def small_text(tmp_path: Path) -> Path:
    """Sentences that come again and again: soon learnt by a model that sees further than one byte."""
    words = ["one small step", "a giant leap", "the quiet sea", "of many numbers", "under old trees"]
    order = np.random.default_rng(6).integers(len(words), size=2000)
    path = tmp_path / "small.txt"
    path.write_text("\n".join(words[i] for i in order))
    return path


def test_the_whole_job_on_a_small_text(small_text: Path, tmp_path: Path) -> None:
    runs: list[tuple[str, bytes]] = []
    for how in ([str(EXAMPLE)], ["-m", "train_text"]):
        output = tmp_path / f"run {len(runs)}"
        process = start([small_text, "--steps", 40, "--seed", 2, "--output", output], how)
        told, complaints = process.communicate(timeout=300)
        assert (process.returncode, complaints) == (0, "")  # 0: it beat both counting models
        for picture in ("loss.png", "experts.png"):
            assert (output / picture).read_bytes().startswith(b"\x89PNG")
        curve = (output / "loss.csv").read_text().splitlines()
        assert curve[0].startswith("step,tokens,") and len(curve) == 41
        runs.append((told[told.index("A sample") : told.index("In ")], (output / "weights.npz").read_bytes()))
    assert runs[0] == runs[1]  # the same text, steps and seed: the same result


def test_interrupt_keeps_the_weights(small_text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start([small_text, "--steps", 100_000, "--output", output])
    assert process.stdout is not None
    for line in process.stdout:
        if "tokens/s" in line:  # in the midst of training
            break
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaints.count("\n") == 2 and "weights.npz" in complaints
    assert len(generate(TextModel.load(output / "weights.npz"), of(b""), 5, temperature=1.0, seed=1)) <= 5


def test_wrong_input_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "little").write_bytes(b"too little text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "binary").write_bytes(bytes(100_000))
    for name, reason in {
        "missing": "no such file",
        "empty": "too little text",
        "little": "15 bytes",
        "folder": "unreadable or binary: 1",
        "folder/binary": "is no text: it cannot be read, or has a NUL byte",
    }.items():
        process = start([tmp_path / name, "--output", tmp_path / "out"])
        told, complaints = process.communicate(timeout=60)
        assert (process.returncode, told) == (1, "")
        assert complaints.count("\n") == 1 and reason in complaints and str(tmp_path / name) in complaints
