"""Files of the package tokenizers as they come: truncation, padding, spaces, holes, long letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from libmoe.train import Tokenizer, Trainer, UserError, open_run, sample
from libmoe.train.data import load
from libmoe.train.folder import TOKENIZER
from libmoe.train.sample import printable
from tiny import SMALL, WORDS, called, settings, text

LETTERS = "the model routes é日本語 every token 🙂 to its experts. "


def saved(coder: Any, folder: Path) -> str:
    path = folder / "coder.json"
    coder.save(str(path))
    return str(path)


def byte_level() -> Any:
    """Every byte is a token: as many tokens as bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    coder = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = decoders.ByteLevel()
    return coder


def metaspace() -> Any:
    """As SentencePiece: a space is part of the word behind it, and the first word has one too."""
    coder = tokenizers.Tokenizer(models.Unigram())
    coder.pre_tokenizer = pre_tokenizers.Metaspace()
    coder.decoder = decoders.Metaspace()
    coder.train_from_iterator([LETTERS] * 9, trainers.UnigramTrainer(vocab_size=90, show_progress=False))
    return coder


def word_piece() -> Any:
    coder = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    coder.normalizer = normalizers.BertNormalizer()
    coder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    coder.decoder = decoders.WordPiece()
    special = ["[UNK]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    coder.train_from_iterator([LETTERS] * 9, trainer)
    return coder


def byte_fallback() -> Any:
    """As Llama 2: what is no word is written in bytes."""
    words = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz."]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    table = {word: n for n, word in enumerate([*words, *("".join(pair) for pair in merges)])}
    coder = tokenizers.Tokenizer(models.BPE(table, merges, unk_token="<unk>", byte_fallback=True))
    coder.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    coder.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return coder


KINDS = [byte_level, metaspace, word_piece, byte_fallback]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_continues_the_prompt(tmp_path: Path, kind: Any) -> None:
    coder = kind()
    ours = Tokenizer(saved(coder, tmp_path))
    tokens = coder.encode(LETTERS * 2, add_special_tokens=False).ids
    whole = coder.decode(tokens, skip_special_tokens=False)
    for cut in range(1, len(tokens)):
        prompt = coder.decode(tokens[:cut], skip_special_tokens=False)
        if "\N{REPLACEMENT CHARACTER}" in prompt:
            continue  # the prompt of a user is whole
        written = b"".join(ours.pieces(tokens[cut:], tokens[:cut])).decode()
        assert prompt + written == whole, cut
    assert ours.encode(np.frombuffer(LETTERS.encode(), np.uint8)).tolist() == coder.encode(LETTERS).ids


def test_a_sample_has_the_space_between_prompt_and_word(tmp_path: Path) -> None:
    name, coder = text(tmp_path), tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    words = ["<unk>", "\n", *sorted({"▁" + word.decode().strip() for word in WORDS})]
    coder.model = models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
    coder.normalizer = normalizers.Replace("\n", "")
    coder.pre_tokenizer, coder.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    run = str(tmp_path / "run")
    arguments = ["--tokenizer", saved(coder, tmp_path), "--steps", "30", *SMALL]
    status, _, err = called("train", name, "--output", run, *arguments)
    assert status == 0, err
    status, out, err = called("sample", run, "--prompt", "every token", "--tokens", "12")
    assert status == 0, err
    assert out.startswith("every token ") and set(out.split()) <= {w.decode().strip() for w in WORDS} | {
        "<unk>"
    }


def test_truncation_and_padding_are_switched_off(tmp_path: Path) -> None:
    coder = byte_level()
    coder.add_tokens(["[PAD]"])
    coder.enable_truncation(512)
    coder.enable_padding(length=600, pad_token="[PAD]", pad_id=coder.token_to_id("[PAD]"))
    name, path, run = text(tmp_path), saved(coder, tmp_path), tmp_path / "run"
    stored = json.loads(Path(path).read_text())
    assert stored["truncation"]["max_length"] == 512 and stored["padding"]
    status, out, err = called(
        "train", name, "--tokenizer", path, "--output", str(run), "--steps", "2", *SMALL
    )
    assert status == 0, err
    start = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert start["training_tokens"] == start["training_bytes"] > 50_000  # every byte is a token
    assert f"{start['training_bytes']:,} bytes ({start['training_tokens']:,} tokens) to train on" in out
    status, out, err = called("sample", str(run), "--prompt", "the ", "--tokens", "3")
    assert status == 0 and out.startswith("the "), err
    assert Tokenizer(path).encode(np.frombuffer(b"the ", np.uint8)).tolist() == coder.encode("the ").ids[:4]
    # A run stands for itself: its own copy of the tokenizer, wherever the folder goes.
    Path(path).unlink()
    moved = run.rename(tmp_path / "moved")
    assert open_run(moved).tokenizer.path == str(moved / TOKENIZER)
    status, out, err = called("eval", str(moved))
    assert status == 0 and "bits per byte of held-out text" in out, err
    status, out, err = called("train", "--resume", str(moved), "--steps", "3")
    assert status == 0 and "finished at step 3" in out, err


def test_a_run_goes_on_with_its_own_tokenizer(tmp_path: Path) -> None:
    run, path = tmp_path / "run", saved(byte_level(), tmp_path)
    given = settings(tmp_path, tokenizer=path, steps=2)
    Trainer(given, run, quiet=True).train()
    assert Trainer(given.changed({"steps": 3}), run, resume=True, quiet=True).train().step == 3
    saved(metaspace(), tmp_path)  # in its place
    for other in (path, ""):
        with pytest.raises(UserError, match="it is not that of the run, '.*run/tokenizer.json'"):
            Trainer(given.changed({"tokenizer": other}), run, resume=True)


def test_random_merges_are_switched_off(tmp_path: Path) -> None:
    coder = tokenizers.Tokenizer(models.BPE(dropout=0.5))
    coder.train_from_iterator(["aaaa bbbb abab"] * 9, trainers.BpeTrainer(vocab_size=30, show_progress=False))
    ours, written = Tokenizer(saved(coder, tmp_path)), np.frombuffer(b"aaaa bbbb abab" * 50, np.uint8)
    assert len({tuple(ours.encode(written).tolist()) for _ in range(4)}) == 1


def test_a_vocabulary_with_holes(tmp_path: Path) -> None:
    words = [*sorted({word.decode().strip() for word in WORDS}), "[UNK]"]
    coder = tokenizers.Tokenizer(
        models.WordLevel({word: 3 + 31 * n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    coder.pre_tokenizer = pre_tokenizers.Whitespace()
    largest, run = max(coder.get_vocab().values()), tmp_path / "run"
    assert largest > len(words)
    arguments = ["--tokenizer", saved(coder, tmp_path), "--output", str(run), "--steps", "4", *SMALL]
    status, _, err = called("train", text(tmp_path), *arguments)
    assert status == 0, err
    assert json.loads((run / "log.jsonl").read_text().splitlines()[0])["vocabulary_size"] == largest + 1
    status, out, err = called("sample", str(run), "--prompt", "the", "--tokens", "9")
    assert status == 0 and out.startswith("the"), err


def test_letters_are_not_cut_where_blocks_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kanji = "".join(map(chr, rng.integers(0x4E00, 0x9000, size=60_000))) + "é🙂" * 9000
    (tmp_path / "kanji.txt").write_text(kanji)
    path = saved(byte_level(), tmp_path)
    corpus = load([str(tmp_path / "kanji.txt")], held_out=0.3, seed=0, tokenizer=path)
    spans = [*corpus.training.spans, *corpus.held_out.spans]
    assert len(spans) > 20
    ours = Tokenizer(path)
    pieces = [ours.decode(span.tolist()).decode() for span in spans]
    assert sum(map(len, pieces)) == len(kanji) and not any("\N{REPLACEMENT CHARACTER}" in p for p in pieces)
    plain = load([str(tmp_path / "kanji.txt")], held_out=0.3, seed=0)  # the same split, in bytes
    assert [span.tobytes().decode() for span in plain.held_out.spans] == pieces[len(corpus.training.spans) :]


def test_text_that_ends_within_a_letter_is_flushed(tmp_path: Path) -> None:
    coder = byte_level()
    tokens = coder.encode("a日").ids
    pieces = list(Tokenizer(saved(coder, tmp_path)).pieces(tokens[:-1]))
    assert b"".join(pieces).decode() == coder.decode(tokens[:-1]) == "a\N{REPLACEMENT CHARACTER}"
    shown = "".join(printable([b"a", "日".encode()[:2]]))
    assert shown == "a\N{REPLACEMENT CHARACTER}"
    # U+FFFD of the text itself, and bytes that are no letter, do not hold back what follows for long.
    for wrong in ("\N{REPLACEMENT CHARACTER}".encode() * 3, b"\xff\xff\xff\xff\xff"):
        table = dict(zip(sorted(pre_tokenizers.ByteLevel.alphabet()), range(256)))
        names = byte_names()
        tokens = [table[names[byte]] for byte in wrong + b"abc"]
        ours = list(Tokenizer(saved(coder, tmp_path)).pieces(tokens))
        assert len(ours) >= 4 and b"".join(ours).decode() == coder.decode(tokens)


def byte_names() -> list[str]:
    """What GPT-2 calls each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def test_latin_1_is_refused_by_a_tokenizer_and_no_matter_to_bytes(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(("café au lait, déjà vu; " * 900).encode("latin-1"))
    run, path = str(tmp_path / "run"), saved(byte_level(), tmp_path)
    status, _, err = called("train", str(latin), "--output", run, "--steps", "1", "--tokenizer", path, *SMALL)
    assert status == 1 and f"'{latin}' is not UTF-8 text (byte 0xe9 at 3)" in err and "iconv" in err
    assert not Path(run).exists()
    status, _, err = called("train", str(latin), "--output", run, "--steps", "1", *SMALL)
    assert status == 0, err
    folder = tmp_path / "folder"
    folder.mkdir()
    text(folder)
    latin.rename(folder / "latin.txt")
    arguments = ["--output", str(tmp_path / "other"), "--steps", "1", "--tokenizer", path, *SMALL]
    status, out, err = called("train", str(folder), *arguments)
    assert status == 0 and f"1 not UTF-8 text: '{folder / 'latin.txt'}'" in out, err
    with pytest.raises(UserError, match="the prompt: byte 0xe9 at 3 is not UTF-8"):
        next(sample(open_run(tmp_path / "other"), b"caf\xe9", 3))


def test_characters_without_a_token_are_counted(tmp_path: Path) -> None:
    coder = tokenizers.Tokenizer(models.BPE({chr(n): n for n in range(128)}, []))  # drops what is not ASCII
    (tmp_path / "mixed.txt").write_text("plain text 日本 " * 1000)
    run = tmp_path / "run"
    arguments = ["--output", str(run), "--steps", "1", "--tokenizer", saved(coder, tmp_path), *SMALL]
    status, out, err = called("train", str(tmp_path / "mixed.txt"), *arguments)
    assert status == 0, err
    assert "the tokenizer has nothing for 2,000 of 11,000 characters, and writes 0 tokens" in out
    unknown = tokenizers.Tokenizer(models.WordLevel({"plain": 0, "[UNK]": 1}, unk_token="[UNK]"))
    unknown.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = Tokenizer(saved(unknown, tmp_path)).encoded(np.frombuffer(b"plain text " * 7, np.uint8))[1]
    assert (found.dropped, found.unknown) == (0, 7)


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="words.json'.*that tokenizers.Tokenizer.save wrote is wanted"):
        Tokenizer(str(tmp_path / "words.json"))
    with pytest.raises(UserError, match="is a folder: name the file in it, often tokenizer.json"):
        Tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="has no vocabulary"):
        Tokenizer(saved(tokenizers.Tokenizer(models.BPE()), tmp_path))
