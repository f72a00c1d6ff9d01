"""Tokenizers, templates and defaults of generation from the keys of GGUF files; commands on such files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_models import write_gguf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import libmoe
from pretrained.tokenizer import MERGES, TEMPLATE, tokenizer
from pretrained_models import FOLDERS
from tiny import called

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "the cat and the hat",
    "Once upon a time, there were 12345 cats; they'd 3.14 hats!",
    "  two spaces\n\n\tand\r\nlines   ",
    "don't DON'T it's naïve — 東京 café\u0301 🙂👍",
    "",
]


def own_pieces(writer: gguf.GGUFWriter) -> None:
    """The tiny tokenizer of the folders as llama.cpp has such: pieces with scores."""
    vocabulary = sorted(tokenizer().get_vocab().items(), key=lambda each: each[1])
    order = {left + right: n for n, (left, right) in enumerate(map(str.split, MERGES))}
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_scores([-float(order.get(token, 1000)) for token, _ in vocabulary])
    kinds = [gguf.TokenType.CONTROL] * 7 + [gguf.TokenType.NORMAL] * (len(vocabulary) - 7)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(3)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf("mixtral", path, keys=own_pieces)
    return path


def test_pieces_are_those_of_the_folder(file: Path) -> None:
    found, wanted = libmoe.Tokenizer(file), libmoe.Tokenizer(FOLDERS / "mixtral")
    for text in ("the cat and the hat", "in the house, here and there.", "on a hat", "wow on 42!"):
        assert found.encode(text) == wanted.encode(text), text
        assert found.encode(text, special=False) == wanted.encode(text, special=False), text
        assert found.decode(found.encode(text)) == text
    assert found.vocabulary_size == wanted.vocabulary_size
    assert found.token("<|end|>") == wanted.token("<|end|>")
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a hat"}]
    assert found.chat_template.render(talk) == wanted.chat_template.render(talk)


def test_defaults_of_generation(file: Path, tmp_path: Path) -> None:
    sampling = libmoe.Sampling.from_pretrained(file)
    assert sampling.end_tokens == (2, 3) and sampling.temperature == 0
    path = tmp_path / "model.gguf"

    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_eos_token_id(2)
        writer.add_sampling_temp(0.5)
        writer.add_sampling_top_k(7)
        writer.add_sampling_top_p(0.75)

    write_gguf("olmoe", path, keys=keys)
    drawn = libmoe.Model.from_pretrained(path).sampling
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.end_tokens) == (0.5, 7, 0.75, (2,))


def test_a_model_writes_what_the_folders_writes(file: Path) -> None:
    model = libmoe.Model.from_pretrained(file, weight_dtype="f32")
    text = "".join(model.write("the cat", 12, end_tokens=()))
    assert text
    tokens = [int(t) for t in model.generate(model.tokenizer.encode("the cat"), 12, end_tokens=())]
    assert len(tokens) == 12


def test_what_is_saved_has_tokenizer_and_defaults(file: Path, tmp_path: Path) -> None:
    libmoe.Model.from_pretrained(file).save_pretrained(tmp_path / "saved")
    saved = libmoe.Tokenizer(tmp_path / "saved")
    assert saved.encode("the cat and the hat") == libmoe.Tokenizer(file).encode("the cat and the hat")
    assert saved.chat_template.source == TEMPLATE
    assert libmoe.Sampling.from_pretrained(tmp_path / "saved").end_tokens == (2, 3)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "mixtral"


# ---- pairs of bytes


def trained(cuts: list[Any]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


def write_pairs(path: Path, made: Tokenizer, pre: str, **flags: bool) -> None:
    model = json.loads(made.to_str())["model"]

    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(
            [token for token, _ in sorted(model["vocab"].items(), key=lambda each: each[1])]
        )
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
        kinds = [gguf.TokenType.NORMAL] * len(model["vocab"])
        kinds[model["vocab"]["<|end|>"]] = gguf.TokenType.CONTROL
        writer.add_token_types(kinds)
        writer.add_bos_token_id(model["vocab"]["<|end|>"])
        for name, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)

    write_gguf("olmoe", path, keys=keys)


@pytest.mark.parametrize(
    ("pre", "cuts"),
    [
        ("gpt-2", [pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        (
            "qwen2",
            [
                pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        ),
        (
            "llama-bpe",
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        ),
    ],
)
def test_pairs_of_bytes_are_merged_as_they_were(pre: str, cuts: list[Any], tmp_path: Path) -> None:
    made = trained(cuts)
    write_pairs(tmp_path / "model.gguf", made, pre, add_bos_token=False)
    found = libmoe.Tokenizer(tmp_path / "model.gguf")
    for text in [*TEXTS, "<|end|>the<|end|>"]:
        assert found.encode(text) == made.encode(text).ids, text
        assert found.decode(found.encode(text), special=True) == text.replace(
            "e\u0301", "é" if pre == "qwen2" else "e\u0301"
        )


@pytest.mark.parametrize(
    ("pre", "text", "wanted"),
    [
        ("llama-bpe", "12345 I'm\n\n", ["123", "45", " I", "'m", "\n\n"]),
        ("qwen2", "123 I'm", ["1", "2", "3", " I", "'m"]),
        ("gpt-4o", "HelloWorld I'm 1234/\n", ["Hello", "World", " I'm", " ", "123", "4", "/\n"]),
        ("deepseek-v3", "12345東京x.y", ["123", "45", "東京", "x", ".y"]),
        ("refact", "12 ab", ["1", "2", " ab"]),
        ("gpt-2", "12 ab's", ["12", " ab", "'s"]),
    ],
)
def test_texts_are_cut_by_the_kind(pre: str, text: str, wanted: list[str], tmp_path: Path) -> None:
    made = trained([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    write_pairs(tmp_path / "model.gguf", made, pre)
    coder = libmoe.Tokenizer(tmp_path / "model.gguf")._coder
    cut = [text[begin:end] for _, (begin, end) in coder.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == wanted


def test_texts_begin_and_end_as_the_file_says(tmp_path: Path) -> None:
    made = trained([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    path = tmp_path / "model.gguf"
    write_pairs(path, made, "gpt-2", add_bos_token=True)
    bos = made.token_to_id("<|end|>")
    assert libmoe.Tokenizer(path).encode("the") == [bos, *made.encode("the").ids]
    made.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", bos)]
    )
    assert libmoe.Tokenizer(path).encode("the") == made.encode("the").ids
    write_pairs(path, made, "gpt-2")
    assert libmoe.Tokenizer(path).encode("the")[0] != bos


def test_kinds_that_are_not_known_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    made = trained([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    write_pairs(path, made, "viking")
    with pytest.raises(libmoe.InvalidArgumentError, match="tokenizer.ggml.pre = 'viking'"):
        libmoe.Tokenizer(path)
    model = libmoe.Model.from_pretrained(path)
    model.tokenizer = libmoe.Tokenizer(FOLDERS / "mixtral")  # another one may be given
    assert "".join(model.write("the", 3, end_tokens=()))
    write_gguf("olmoe", path, keys=lambda writer: writer.add_tokenizer_model("bert"))
    with pytest.raises(libmoe.InvalidArgumentError, match="tokenizer.ggml.model = 'bert'"):
        libmoe.Tokenizer(path)
    write_gguf("olmoe", path)
    with pytest.raises(libmoe.InvalidArgumentError, match="tokenizer.ggml.model = None"):
        libmoe.Tokenizer(path)


def test_damaged_keys_are_refused(tmp_path: Path, file: Path) -> None:
    raw = file.read_bytes()
    end = min(raw.index(name.encode()) for name in libmoe.Checkpoint(file)) - 8  # then come the tensors
    path = tmp_path / "model.gguf"
    for length in [4, 10, 30, *range(40, end, 97)]:
        path.write_bytes(raw[:length])
        with pytest.raises(libmoe.InvalidArgumentError, match="GGUF"):
            libmoe.Tokenizer(path)
    rng = np.random.default_rng(0)
    for _ in range(100):
        spoilt = bytearray(raw[: end + 100])
        for place in rng.integers(4, end, 3):
            spoilt[place] = rng.integers(0, 256)
        path.write_bytes(bytes(spoilt))
        try:
            libmoe.Tokenizer(path).encode("the cat")
        except libmoe.InvalidArgumentError:
            pass


# ---- the command line


def test_commands_take_a_file(file: Path, tmp_path: Path) -> None:
    status, out, err = called("inspect", str(file))
    assert (status, err) == (0, "")
    assert f"{file}: mixtral, 3 layers" in out and "tokenizer: llama" in out and "there is no" not in out
    asked = ["generate", str(file), "--prompt", "the cat", "--tokens", "9", "--greedy"]
    status, out, err = called(*asked)
    assert status == 0 and out.startswith("the cat"), err
    text = tmp_path / "text.txt"
    text.write_text("the cat and the hat in the house, here and there. " * 20)
    status, out, err = called("eval", str(file), str(text))
    assert status == 0 and re.search(r"^\d\.\d+ bits per byte", out), err
    status, out, err = called("convert", str(file), str(tmp_path / "folder"), "--dtype", "f32")
    assert status == 0, err
    _, wanted, _ = called("eval", str(tmp_path / "folder"), str(text))
    assert called("eval", str(file), str(text))[1] == wanted
