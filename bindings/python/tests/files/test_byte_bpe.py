"""examples/c/byte_bpe.h beside the package tokenizers: the same tokens, and the text again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

import compiler

EXAMPLES = Path(__file__).resolve().parents[4] / "examples" / "c"

PROGRAM = r"""
#include "byte_bpe.h"
/* A tokenizer's file; a text from stdin: its tokens, and what they stand for. */
int main(int count, char **arguments) {
  static char text[1 << 16];
  static int32_t ids[(1 << 16) + 2];
  byte_bpe words;
  if (count != 2 || !byte_bpe_open(&words, arguments[1])) return fputs(words.error, stderr), 1;
  size_t size = fread(text, 1, sizeof text, stdin);
  int64_t found = byte_bpe_encode(&words, text, size, ids);
  for (int64_t i = 0; i < found; i++) printf("%d ", (int)ids[i]);
  printf("\n");
  for (int64_t i = 0; i < found; i++) fwrite(words.token[ids[i]], 1, words.size[ids[i]], stdout);
  byte_bpe_free(&words);
  return 0;
}
"""

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "Hello, world! It's 12345 o'clock; they'll say we'Ve been there.",
    "  two  spaces   three\n\n\nlines\r\n\tand a tab \n end  ",
    "int main(void) { return x[3] += 0x1F; } // don't\n\n  /* ** */",
    "a\tb\t\tc 1 22 333 4444 55555 -6.78e-9 ...!? \"quoted\" 'single'",
    "x",
    " ",
    "\n",
    "café naïve <|end|>and more<|end|> <|e <|begin|>",
]


def trained(
    pre: pre_tokenizers.PreTokenizer, path: Path, ignore_merges: bool = False, begins: bool = False
) -> Tokenizer:
    tokenizer = Tokenizer(BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|begin|>"]
    )
    tokenizer.train_from_iterator([*TEXTS, Path(__file__).read_text()], trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    if begins:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin|> $A",
                    pair="<|begin|> $A $B",
                    special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))],
                ),
            ]
        )
    tokenizer.save(str(path))
    return tokenizer


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


KINDS = {
    "gpt2": lambda path: trained(pre_tokenizers.ByteLevel(add_prefix_space=False), path),
    "llama3": lambda path: trained(split(LLAMA_3), path, ignore_merges=True, begins=True),
    "qwen2": lambda path: trained(split(QWEN_2), path),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte_bpe")
    (folder / "words.c").write_text(PROGRAM)
    options = ["-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wno-unused-function"]
    subprocess.run(
        [compiler.PATH, *options, f"-I{EXAMPLES}", "-o", folder / "words", folder / "words.c"], check=True
    )
    return folder / "words"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens(kind: str, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer = KINDS[kind](path)
    for text in TEXTS:
        found = subprocess.run([program, path], input=text.encode(), capture_output=True, check=True).stdout
        numbers, _, again = found.partition(b"\n")
        expected = tokenizer.encode(text).ids
        assert list(map(int, numbers.split())) == expected, text
        begin = "<|begin|>" if kind == "llama3" else ""
        assert again.decode() == begin + text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}', "no byte-level BPE"),
        (
            '{"model": {"vocab": {"a": 0}, "merges": []}, "decoder": {"type": "ByteFallback"}}',
            "no byte-level BPE",
        ),
        ('{"model": {"vocab": {"a": -1}, "merges": []}, "decoder": {"type": "ByteLevel"}}', "out of range"),
        (
            '{"model": {"vocab": {"a": 0}, "merges": ["a"]}, "decoder": {"type": "ByteLevel"}}',
            "a merge has one part",
        ),
        ('{"model": ', "no JSON"),
        ("[" * 1000, "no JSON"),
        ('{"a": "\\\\', "no JSON"),
    ],
)
def test_what_is_refused(content: str, text: str, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    found = subprocess.run([program, path], input=b"a", capture_output=True, check=False)
    assert found.returncode == 1
    assert text in found.stderr.decode()
