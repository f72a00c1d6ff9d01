"""examples/c/generate.c on the tiny models' folders: the continuations that transformers writes, and text."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import compiler
from libmoe._native.library import lib

ROOT = Path(__file__).resolve().parents[4]
FOLDERS = Path(__file__).parent / "folders"
FAMILIES = ["olmoe", "gpt_oss", "mixtral"]  # of float32, so that no rounding decides between two tokens


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("generate") / "generate"
    library = Path(lib._name).resolve()
    options = ["-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{ROOT / 'include'}"]
    source = ROOT / "examples" / "c" / "generate.c"
    linked = [str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([compiler.PATH, *options, str(source), *linked, "-o", str(made)], check=True)
    return made


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def ids(text: str) -> list[int]:
    return [int(token) for token in text.split(",")]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_continuations(family: str, program: Path) -> None:
    data = np.load(FOLDERS / f"{family}.npz")
    config = json.loads((FOLDERS / family / "generation_config.json").read_text())
    ends = config["eos_token_id"]
    for number in ("0", "1"):
        prompt, continued = data[f"prompt/{number}"].tolist(), data[f"continued/{number}"].tolist()
        stop = next((i + 1 for i, token in enumerate(continued) if token in ends), len(continued))
        given = ["--ids", ",".join(map(str, prompt)), "--tokens", len(continued)]
        found = run(program, FOLDERS / family, *given)
        assert found.returncode == 0, found.stderr
        assert ids(found.stdout) == continued[:stop]
        assert "tokens read, the first one written after" in found.stderr


def test_text(program: Path, tmp_path: Path) -> None:
    """With a byte-level tokenizer a prompt of text is its tokens, and what is written is theirs."""
    folder = tmp_path / "model"
    shutil.copytree(FOLDERS / "olmoe", folder)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    text = "the cat and the dog sat on the mat; the end of 12 cats"
    words.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=80, special_tokens=["<e>", "<f>"]))
    words.add_special_tokens([f"<{n}>" for n in range(80 - words.get_vocab_size())])
    words.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").unlink()
    prompt = words.encode("the cat on 12 mats").ids
    options = ["--tokens", 9, "--temperature", 0.9, "--seed", 4, "--top-k", 30, "--repetition-penalty", 1.3]
    by_ids = run(program, folder, "--ids", ",".join(map(str, prompt)), *options)
    by_text = run(program, folder, "--prompt", "the cat on 12 mats", *options)
    assert by_text.returncode == by_ids.returncode == 0, by_text.stderr
    expected = words.decode(ids(by_ids.stdout), skip_special_tokens=False)
    assert by_text.stdout == expected + "\n"


def test_an_end_is_a_token(program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDERS / "olmoe", folder)
    for wrong in ('"</s>"', "[2, 4294967298]", "-1", "true"):
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {wrong}}}')
        found = run(program, folder, "--ids", "1")
        assert found.returncode == 1
        assert "eos_token_id: expected a token's number" in found.stderr


def test_a_seed_may_have_64_bits(program: Path) -> None:
    drawn = [
        run(program, FOLDERS / "olmoe", "--ids", "5,6", "--temperature", 1, "--tokens", 12, "--seed", seed)
        for seed in (2**64 - 1, 2**63 - 1)
    ]
    assert [each.returncode for each in drawn] == [0, 0]
    assert drawn[0].stdout != drawn[1].stdout


def test_what_is_refused(program: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ([], "usage"),
        ([FOLDERS / "olmoe"], "usage"),
        ([FOLDERS / "olmoe", "--ids", "1", "--tokens", "x"], "--tokens x: expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "1", "--tokens", "1e9"], "--tokens 1e9: expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "1", "--tokens", "-1"], "--tokens -1: expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "1", "--tokens", "9" * 30], "expected a whole number from 0 to"),
        ([FOLDERS / "olmoe", "--ids", "1", "--threads", "2.5"], "--threads 2.5: expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "1", "--threads", "4294967297"], "--threads 4294967297: expected"),
        ([FOLDERS / "olmoe", "--ids", "1", "--top-k", ""], "--top-k : expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "1", "--seed", "0x1"], "--seed 0x1: expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "1", "--top-p", "0.5x"], "--top-p 0.5x: expected a number"),
        ([FOLDERS / "olmoe", "--ids", "99999999999"], "--ids 99999999999: expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "4294967297"], "--ids 4294967297: expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "1, 2"], "--ids  2: expected a whole number"),
        ([FOLDERS / "olmoe", "--ids", "1," + "0" * 40], "longer than any id"),
        ([FOLDERS / "olmoe", "--ids", "1,"], "behind the last comma"),
        ([FOLDERS / "olmoe", "--ids", "1;2"], "--ids"),
        ([FOLDERS / "olmoe", "--ids", ""], "the prompt is empty"),
        ([FOLDERS / "olmoe", "--ids", "80"], "prompts[0] = 80 is not one of vocabulary_size = 80"),
        ([FOLDERS / "olmoe", "--ids", "1", "--tokens", "0"], "max_new_tokens = 0 is below 1"),
        ([tmp_path / "none", "--ids", "1"], "none"),
        ([tmp_path / "model.gguf", "--prompt", "a"], "as with a GGUF file, give --ids 1,2,3 and get ids"),
        ([FOLDERS / "mixtral", "--prompt", "a"], "it is no byte-level BPE; give token ids instead"),
    ):
        found = run(program, *arguments)
        assert found.returncode == 1
        assert found.stderr.startswith("generate: ")
        assert said in found.stderr
