"""The text of a run: what is read, what is held out, which windows a step sees."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from libmoe.train import Tokenizer, UserError
from libmoe.train.data import SMALLEST_BLOCK, Corpus, Part, load, load_whole
from tiny import text


def counted(folder: Path, blocks: int, name: str = "counted") -> Path:
    """A file whose every four bytes are the number of their place, in digits from 1 to 64."""
    path = folder / name
    places = np.arange(1, blocks * SMALLEST_BLOCK // 4 + 1)
    digits = places[:, None] // 64 ** np.arange(4)[::-1] % 64 + 1
    path.write_bytes(digits.astype(np.uint8).tobytes())
    return path


def places_of(digits: bytes) -> list[int]:
    """Numbers of whole fours of digits."""
    table = np.frombuffer(digits, np.uint8).reshape(-1, 4).astype(np.int64) - 1
    return (table * 64 ** np.arange(4)[::-1]).sum(1).tolist()  # type: ignore[no-any-return]


def numbers(part: Part) -> set[int]:
    return {n for span in part.spans for n in places_of(span.tobytes())}


def of(path: Path, seed: int = 0, held_out: float = 0.1) -> Corpus:
    return load([str(path)], held_out=held_out, seed=seed)


def test_the_split_does_not_leak_and_loses_nothing(tmp_path: Path) -> None:
    corpus = of(counted(tmp_path, 50))
    training, held_out = numbers(corpus.training), numbers(corpus.held_out)
    assert training.isdisjoint(held_out)
    assert training | held_out == set(range(1, 50 * SMALLEST_BLOCK // 4 + 1))
    assert corpus.held_out.n_bytes == 5 * SMALLEST_BLOCK  # a tenth of 50 blocks

    # No window of a step reaches into held-out text: its numbers are neighbours of the training side.
    for step in range(20):
        for window in corpus.training.batch(0, step, 8, 64):
            inside = window.astype(np.uint8).tobytes()
            # A window may begin within a number: find how by the only way that makes neighbours.
            ways = [places_of(inside[cut : cut + 60]) for cut in range(4)]
            (found,) = [way for way in ways if (np.diff(way) == 1).all()]
            assert set(found) <= training


def test_the_split_is_the_seeds(tmp_path: Path) -> None:
    path = counted(tmp_path, 50)
    assert numbers(of(path, 1).held_out) == numbers(of(path, 1).held_out)
    assert numbers(of(path, 1).held_out) != numbers(of(path, 2).held_out)


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    part = of(counted(tmp_path, 20)).training
    drawn = part.batch(3, 7, 4, 33)
    part.batch(3, 8, 9, 33)
    np.testing.assert_array_equal(part.batch(3, 7, 4, 33), drawn)
    assert (part.batch(3, 8, 4, 33) != drawn).any() and (part.batch(4, 7, 4, 33) != drawn).any()
    assert drawn.dtype == np.int32 and drawn.shape == (4, 33)
    assert part.batch((1 << 64) - 1, (1 << 56) - 1, 1, 33).shape == (1, 33)


def test_every_place_is_equally_likely() -> None:
    part = Part([np.arange(10, dtype=np.uint8), np.arange(100, 103, dtype=np.uint8)], 13)
    starts = part.batch(0, 0, 9000, 3)[:, 0]
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 100]  # where three stand together
    # Each is expected 1000 times with a deviation of 30.
    assert (abs(counts - 1000) < 150).all()


def test_windows_of_an_evaluation_have_no_common_token() -> None:
    part = Part([np.arange(100, dtype=np.uint8), np.arange(100, 150, dtype=np.uint8)], 150)
    assert part.spread(1000, 20)[:, 0].tolist() == [0, 20, 40, 60, 80, 100, 120]
    assert part.spread(3, 20)[:, 0].tolist() == [0, 60, 120]


def test_an_evaluation_of_a_long_text_takes_the_memory_of_its_windows() -> None:
    part = Part([np.zeros(1 << 20, np.uint8), np.ones(1 << 20, np.uint8)], 1 << 21)
    tracemalloc.start()
    try:
        windows = part.spread(2, 16)
        assert tracemalloc.get_traced_memory()[1] < 1 << 17
    finally:
        tracemalloc.stop()
    assert windows.tolist() == [[0] * 16, [1] * 16] and windows.dtype == np.int32


def test_folders_are_read_without_copies_binaries_and_hidden_files(tmp_path: Path) -> None:
    text(tmp_path, name="one.txt")
    (tmp_path / "again.txt").write_bytes((tmp_path / "one.txt").read_bytes())
    (tmp_path / "binary").write_bytes(b"\x7fELF\x00" * 1000)
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden").write_bytes(b"hidden" * 1000)
    corpus = load([str(tmp_path)], held_out=0.1, seed=0)
    assert (corpus.n_files, corpus.n_bytes) == (1, 60_000)
    assert {Path(each.name).name: each.reason for each in corpus.record.passed_over} == {
        ".hidden": "hidden",
        "binary": "binary",
        "empty": "empty",
        "one.txt": "a copy of another file",
    }
    with pytest.raises(UserError, match="binary' is binary .NUL at byte 4"):
        load_whole([str(tmp_path / "binary")])


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing", "no such file or folder: '.*nothing'"), ("small", "too little text.*100 bytes in 1 files")],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "small").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=says):
        of(tmp_path / name)


def test_too_long_a_sequence_is_said(tmp_path: Path) -> None:
    corpus = of(counted(tmp_path, 10))
    with pytest.raises(UserError, match=f"sequence_length {2 * SMALLEST_BLOCK}: .* {SMALLEST_BLOCK} at most"):
        corpus.held_out.spread(1, 2 * SMALLEST_BLOCK + 1)


def test_a_tokenizer_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install|no such file"):
        load([text(tmp_path)], held_out=0.1, seed=0, tokenizer=str(tmp_path / "nothing.json"))


def test_tokens_of_a_tokenizer(tmp_path: Path) -> None:
    coder = tokenizers.Tokenizer(tokenizers.models.BPE())
    coder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = tokenizers.decoders.ByteLevel()
    name, path = text(tmp_path), str(tmp_path / "coder.json")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    coder.train([name], tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    coder.save(path)
    corpus = load([name], held_out=0.1, seed=0, tokenizer=path)
    assert corpus.vocabulary_size == Tokenizer(path).vocabulary_size == coder.get_vocab_size()
    assert corpus.n_bytes == 60_000 and corpus.training.n_tokens < corpus.training.n_bytes
    plain = load([name], held_out=0.1, seed=0)  # the same split, in bytes
    for tokens, bytes_ in zip(corpus.held_out.spans, plain.held_out.spans):  # noqa: B905
        assert Tokenizer(path).decode(tokens.tolist()) == bytes_.tobytes()
