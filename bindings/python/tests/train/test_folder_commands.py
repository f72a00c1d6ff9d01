"""The command line on folders of models: generate, chat, eval, inspect, convert, train --init."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import libmoe
from libmoe._conversation import Conversation
from libmoe.train import Settings, open_run
from libmoe.train.part import train_only
from pretrained_models import FOLDERS, loaded, logits_of, most_of_the_experts, reference, tensors
from tiny import called, command, finished, state

MIXTRAL = str(FOLDERS / "mixtral")
TEXT = "the cat and the hat in the house, here and there. " * 200


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


@pytest.mark.parametrize("name", ["generate", "chat", "convert"])
def test_help(name: str) -> None:
    status, out, err = called(name, "--help")
    assert (status, err) == (0, "")
    assert f"usage: python -m libmoe {name}" in out and "examples:\n" in out and "FOLDER" in out


def test_generate_writes_what_the_model_writes() -> None:
    asked = ["generate", MIXTRAL, "--prompt", "the cat", "--tokens", "12", "--seed", "3"]
    status, out, err = finished(*asked)
    assert status == 0, err
    model = libmoe.Model.from_pretrained(MIXTRAL)
    assert out == "the cat" + "".join(model.write("the cat", 12, seed=3)) + "\n"
    assert re.search(r"^read .*mixtral: 1\d\d\.\d kB in \d+\.\d s$", err, re.MULTILINE)
    assert re.search(
        r"^\d+ tokens of the prompt, first token after \d+\.\d\d s; 12 tokens written, [\d,.]+ tokens/s",
        err,
        re.M,
    )
    _, greedy, _ = called("generate", MIXTRAL, "--prompt", "the cat", "--tokens", "9", "--greedy")
    assert greedy == "the cat" + "".join(model.write("the cat", 9, temperature=0)) + "\n"
    stop = greedy[8:10]
    _, short, _ = called(
        "generate", MIXTRAL, "--prompt", "the cat", "--tokens", "9", "--greedy", "--stop", stop
    )
    assert short == greedy[: greedy.index(stop, 7)] + "\n"


def test_generate_reads_the_standard_input_and_packed_or_filed_weights() -> None:
    def written(*more: str) -> str:
        child = command("generate", MIXTRAL, "--prompt", "-", "--tokens", "9", *more, stdin=subprocess.PIPE)
        out, err = child.communicate("the hat", timeout=100)
        assert child.returncode == 0, err
        return out

    plain = written()
    assert plain.startswith("the hat") and plain == written("--prepared", "f32")
    assert plain == written("--resident-limit", str(most_of_the_experts("mixtral")))


def test_chat_answers_as_the_whole_conversation_read_at_once() -> None:
    child = command(
        "chat", MIXTRAL, "--tokens", "7", "--seed", "2", "--system", "be kind", stdin=subprocess.PIPE
    )
    out, err = child.communicate("the cat?\n\nthe hat?\n/exit\nnever\n", timeout=100)
    assert child.returncode == 0, err
    model = libmoe.Model.from_pretrained(MIXTRAL)
    talk: list[dict[str, str]] = [{"role": "system", "content": "be kind"}]
    answers = []
    for line in ("the cat?", "the hat?"):
        talk.append({"role": "user", "content": line})
        prompt = model.tokenizer.chat(talk)
        answers.append("".join(model.written(model.generate(prompt, 7, seed=2), prompt)))
        talk.append({"role": "assistant", "content": answers[-1]})
    assert out == "".join(answer + "\n" for answer in answers)
    counts = [int(n) for n in re.findall(r"(\d+) tokens of the prompt", err)]
    whole = len(model.tokenizer.chat(talk[:-1]))
    assert len(counts) == 2 and counts[1] < whole - counts[0]  # what was read is not read again


def test_a_prompt_is_told_before_its_reply() -> None:
    model = loaded("mixtral", inference_only=True)
    talk = Conversation(model)
    messages: list[dict[str, str]] = []
    for line in ("the cat?", "the hat?"):
        tokens = talk.reply(line, 3)
        messages.append({"role": "user", "content": line})
        prompt = model.tokenizer.chat(messages)
        assert talk.prompt() == prompt
        list(tokens)
        assert talk.prompt() == prompt
        talk.said("the")
        messages.append({"role": "assistant", "content": "the"})


def test_eval_is_what_forward_says(text: str) -> None:
    status, out, err = called("eval", MIXTRAL, text, "--sequence-length", "20", "--sequences", "3")
    assert status == 0, err
    model = loaded("mixtral", inference_only=True)
    tokens = np.array(model.tokenizer.encode(TEXT, special=False), np.int32)
    windows = tokens[: len(tokens) // 21 * 21].reshape(-1, 21)
    logits = logits_of(model, windows[:, :-1]).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chances = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(chances, windows[:, 1:, None].astype(np.int64), axis=-1).mean()
    bits, perplexity = map(float, re.findall(r"(\d+\.\d{4})", out))
    assert perplexity == pytest.approx(np.exp(nats), rel=1e-4)
    assert bits == pytest.approx(nats / np.log(2) * len(tokens) / len(TEXT), rel=1e-4)
    assert f"of {len(TEXT):,} bytes ({len(tokens):,} tokens), in windows of 20" in out


def test_inspect_tells_what_it_takes() -> None:
    status, out, _ = called("inspect", str(FOLDERS / "glm4_moe"))
    assert status == 0
    info = libmoe.describe_pretrained(FOLDERS / "glm4_moe", inference_only=True)
    for says in (
        "glm4_moe, 3 layers, hidden size 32, vocabulary 80, 32 positions",
        "2 layers of experts: 2 of 6 for each token",
        f"{info.n_parameters:,} weights, {info.n_active:,} of them used",
        f"  f32  {info.parameter_bytes / 1e3:>7.1f} kB",
        f"to train them all {(info.parameter_bytes + 12 * info.n_parameters) / 1e3:.1f} kB",
        "the model does not use 2 tensors (model.layers.3.",
        "there is no tokenizer.json",
    ):
        assert says in out, out


def test_inspect_of_packed_weights(tmp_path: Path) -> None:
    model = libmoe.Model.from_pretrained(FOLDERS / "glm4_moe", inference_only=True, prepared="int8")
    model.save_pretrained(tmp_path)
    status, out, err = called("inspect", str(tmp_path))
    assert status == 0, err
    size = sum(tensor.nbytes for tensor in tensors(tmp_path).values())
    assert f"weights are packed and mapped: {size / 1e3:.1f} kB" in out
    assert f"files: {size / 1e3:.1f} kB in " in out and " tensors, packed as int8\n" in out


def test_convert_changes_type_and_shards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, _, err = called("convert", MIXTRAL, str(out), "--dtype", "bf16", "--max-shard-size", "15kB")
    assert status == 0, err
    assert len(list(out.glob("*.safetensors"))) > 3
    then, now = tensors(FOLDERS / "mixtral"), tensors(out)
    assert now.keys() == then.keys()
    for name in then:
        np.testing.assert_array_equal(now[name].astype(np.float32), rounded(then[name]), err_msg=name)
    assert (out / "tokenizer.json").exists()
    for again in (str(out), MIXTRAL):
        status, _, err = called("convert", MIXTRAL, again)
        assert status == 1 and "name " in err


def rounded(values: np.ndarray) -> np.ndarray:
    return libmoe.from_bfloat16(libmoe.to_bfloat16(np.ascontiguousarray(values)))


TUNE = (
    "--steps 4 --sequence-length 12 --sequences 2 --evaluate-every 2 --evaluate-tokens 100 --warmup-steps 1 "
    "--learning-rate 0.001 --log-every 1 --threads 1"
).split()


def test_train_begins_with_a_folder_and_leaves_one(tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    status, out, err = called("train", text, "--init", MIXTRAL, "--output", str(run), *TUNE)
    assert status == 0, err
    assert "finished at step 4" in out
    assert f"the model of the best evaluation is in {run / 'model'}: generate from it" in out
    assert f"bits per byte, which is {MIXTRAL} itself" in err and "step 4: held-out" in err
    tuned = libmoe.Model.from_pretrained(run / "model", weight_dtype="f32")
    best = open_run(run).model
    tokens = reference("mixtral")["tokens"]
    assert logits_of(tuned, tokens).tobytes() == logits_of(best, tokens).tobytes()
    assert logits_of(tuned, tokens).tobytes() != logits_of(loaded("mixtral"), tokens).tobytes()
    assert (run / "model" / "tokenizer.json").read_bytes() == (
        FOLDERS / "mixtral/tokenizer.json"
    ).read_bytes()
    assert tensors(run / "model").keys() == tensors(FOLDERS / "mixtral").keys()
    assert called("generate", str(run / "model"), "--prompt", "the", "--tokens", "3")[0] == 0
    assert called("sample", str(run), "--prompt", "the", "--tokens", "3")[0] == 0
    assert called("eval", str(run))[0] == 0 == called("inspect", str(run))[0]


def test_a_run_that_makes_it_worse_says_so_and_keeps_the_folders_weights(tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    asked = ["train", text, "--init", MIXTRAL, "--output", str(run), *TUNE, "--learning-rate", "1"]
    status, out, err = called(*asked)
    assert status == 0, err
    assert f"no step made it better than {MIXTRAL} itself" in out and "the best so far" not in err
    then, now = tensors(FOLDERS / "mixtral"), tensors(run / "model")
    assert {name: now[name].tobytes() for name in now} == {name: then[name].tobytes() for name in then}
    assert open_run(run).settings.learning_rate == 1


def test_the_rate_of_fine_tuning_is_lower_unless_it_is_said(tmp_path: Path) -> None:
    plain, tuned = Settings(), Settings(init=MIXTRAL)
    assert (plain.learning_rate, plain.weight_decay) == (1e-3, 0.1)
    assert (tuned.learning_rate, tuned.weight_decay) == (1e-4, 0)
    said = Settings(init=MIXTRAL, learning_rate=1e-3, weight_decay=0.1)
    said.save(tmp_path)
    assert Settings.load(tmp_path) == said != tuned


def test_a_run_from_a_folder_goes_on_with_the_same_bits(tmp_path: Path, text: str) -> None:
    init = tmp_path / "init"
    shutil.copytree(FOLDERS / "llama", init)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    asked = ["train", text, "--init", str(init), "--trained", "*.attention.*,norm.weight", *TUNE]
    asked += ["--schedule", "constant"]
    status, out, err = called(*asked, "--output", str(whole))
    assert status == 0, err
    assert re.search(r"[\d,]+ of [\d,]+ weights are trained, in \d+ of \d+ tensors", out)
    assert called(*asked, "--output", str(parts), "--steps", "2")[0] == 0
    shutil.rmtree(init)  # the run has all that it needs
    status, out, err = called("inspect", str(parts))
    assert status == 0 and "activations" in out, err
    status, _, err = called("train", "--resume", str(parts), "--steps", "4")
    assert status == 0, err
    assert state(parts) == state(whole)
    trained = [name for name in loaded("llama").parameters if ".attention." in name or name == "norm.weight"]
    moments = [name for name in state(whole) if re.fullmatch(r"optimizers\.0\.\d+\.moments", name)]
    assert len(moments) == len(trained) < len(loaded("llama").parameters)


def test_a_run_that_ends_in_its_first_save_makes_its_model_all_the_same(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the model or the checkpoint cannot be written: the run begins anew, and has both."""
    asked = ["train", text, "--init", MIXTRAL, *TUNE, "--steps", "1", "--output"]

    def fails(*_: object, **__: object) -> None:
        raise OSError("no room")

    for owner, name in ((libmoe.Model, "save_pretrained"), (libmoe, "save_training")):
        run = tmp_path / name
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fails)
            assert called(*asked, str(run))[0] == 1
        assert not (run / "best.safetensors").exists()
        status, _, err = called(*asked, str(run))
        assert status == 0, err
        assert (run / "model" / "config.json").exists() and (run / "best.safetensors").exists()


def test_what_is_not_trained_stays_and_takes_no_memory(tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    asked = [
        "train",
        text,
        "--init",
        MIXTRAL,
        "--trained",
        "*.attention.output.*",
        "--output",
        str(run),
        *TUNE,
    ]
    assert called(*asked)[0] == 0
    then, now = tensors(FOLDERS / "mixtral"), tensors(run / "model")
    moved = {name for name in then if then[name].tobytes() != now[name].tobytes()}
    assert moved == {name for name in then if name.endswith("o_proj.weight")}


def test_gradients_of_what_is_trained_are_as_ever() -> None:
    tokens = reference("mixtral")["tokens"]
    whole, part = loaded("mixtral"), loaded("mixtral")
    trained = train_only(part, "*norm*,*.attention.qkv*")
    for model in (whole, part):
        model.zero_grad()
        output = model.forward(tokens, tokens, tape=True)
        model.backward(output)
    for name, parameter in trained.items():
        assert parameter.grad.tobytes() == whole.parameters[name].grad.tobytes(), name
    assert {
        name for name, p in part.parameters.items() if p.frozen
    } == part.parameters.keys() - trained.keys()
    assert len(train_only(whole, "")) == len(whole.parameters)


def claimed(run: Path) -> Path:
    """A folder as a run leaves it before its first checkpoint."""
    run.mkdir()
    for name in ("log.jsonl", "texts.json"):
        (run / name).write_text("")
    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "nowhere", "--prompt", "x"], "libmoe generate: .*nowhere"),
        (["generate", "FOLDER", "--prompt", "x", "--top-p", "2"], "libmoe generate: .*top_p"),
        (["chat", "BARE"], "has no tokenizer.json"),
        (["generate", "RUN", "--prompt", "x"], "is a run, not a model's folder: use sample"),
        (["eval", "FOLDER"], "name texts"),
        (["eval", "FOLDER", "TEXT", "--weights", "last"], "--weights: is of runs"),
        (["train", "TEXT", "--init", "FOLDER", "--hidden-size", "64"], "hidden_size = 64: the model of init"),
        (["train", "TEXT", "--init", "FOLDER", "--trained", "nothing*"], "no weight is called 'nothing\\*'"),
        (["train", "TEXT", "--init", "BARE"], "has no tokenizer.json; name the model's own"),
        (["train", "TEXT", "--init", "nowhere"], "init = .*nowhere.*: there is no such folder"),
        (["train", "TEXT", "--init", "RUN"], "init = .* is a run, not a model's folder"),
        (["train", "TEXT", "--init", "PACKED"], "init = .*: its weights are packed, and a run keeps whole"),
        (["sample", "FOLDER"], "is a model's folder, not a run: use generate"),
        (["inspect", "nowhere"], "no such file or folder: 'nowhere'"),
        (["eval", "nowhere"], "no such file or folder: 'nowhere'"),
        (["generate", "nowhere", "--prompt", "x"], "no such file or folder: 'nowhere'"),
        (["generate", "nofile.gguf", "--prompt", "x"], "no such file or folder: 'nofile.gguf'"),
        (
            ["chat", "PACKED", "--prepared", "int8"],
            "--prepared: the weights of .* are packed already .* leave it out",
        ),
        (["convert", "PACKED", "again", "--dtype", "f32"], "--dtype: the weights of .* are packed already"),
        (["inspect", "FOLDER", "--plots"], "--plots: is of runs"),
        (["eval", "RUN", "--weight-dtype", "bf16"], "--weight-dtype: is of a model's folder"),
        (["eval", "RUN", "--sequence-length", "512"], "--sequence-length: is of a model's folder"),
        (["generate", "FOLDER", "--prompt", "x\udcff"], "text: byte 0xff at character 1 is not UTF-8"),
        (["chat", "FOLDER", "--system", "\udcff"], "byte 0xff .* is not UTF-8"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, text: str, arguments: list[str], says: str) -> None:
    run = tmp_path / "run"
    Settings().save(claimed(run))
    packed = tmp_path / "packed"
    if "PACKED" in arguments:
        assert called("convert", MIXTRAL, str(packed), "--weights", "int8")[0] == 0
    places = {"FOLDER": MIXTRAL, "BARE": str(FOLDERS / "olmoe"), "TEXT": text, "RUN": str(run)}
    places["PACKED"] = str(packed)
    more = ["--output", str(tmp_path / "out"), *TUNE] if arguments[0] == "train" else []
    status, _, err = called(*(places.get(each, each) for each in arguments), *more)
    assert status == 1
    *_, last = err.splitlines()
    assert re.search(says, last), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "FOLDER", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["generate", "FOLDER", "--prompt", "x", "--top-p", "3"], "top_p"),
        (["generate", "FOLDER", "--prompt", "x", "--seed", "-1"], "seed"),
        (["generate", "FOLDER", "--prompt", "x", "--stop", ""], "stop"),
        (["generate", "BARE", "--prompt", "x"], "has no tokenizer.json"),
        (["chat", "PLAIN"], "has no chat template"),
        (["eval", "FOLDER", "nothing.txt"], "no such file"),
        (["eval", "FOLDER", "EMPTY"], "."),
        (["generate", "FOLDER", "--prompt", "x", "--tokens", "-3"], "expected a whole number above 0"),
        (["generate", "FOLDER", "--prompt", "x", "--greedy", "--temperature", "2"], "not allowed with"),
    ],
)
def test_what_is_wrong_is_found_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(libmoe.Model, "from_pretrained", read)
    shutil.copytree(MIXTRAL, tmp_path / "plain")
    (tmp_path / "plain" / "tokenizer_config.json").unlink()
    (tmp_path / "empty.txt").write_text("")
    places = {"FOLDER": MIXTRAL, "BARE": str(FOLDERS / "olmoe"), "PLAIN": str(tmp_path / "plain")}
    places["EMPTY"] = str(tmp_path / "empty.txt")
    status, _, err = called(*(places.get(each, each) for each in arguments))
    assert status in (1, 2) and re.search(says, err.splitlines()[-1]) and "Traceback" not in err


def test_a_prompt_from_the_standard_input_that_is_no_text() -> None:
    child = command(
        "generate",
        MIXTRAL,
        "--prompt",
        "-",
        stdin=subprocess.PIPE,
        env={"PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"},
    )
    assert child.stdin and child.stdout and child.stderr
    os.write(child.stdin.fileno(), b"\xff\xfe")
    child.stdin.close()
    err = child.stderr.read()
    assert child.wait(60) == 1 and "byte 0xff at character 0 is not UTF-8" in err and "Traceback" not in err
    child.stdout.close()
    child.stderr.close()


def test_eval_says_how_much_it_read(text: str) -> None:
    asked = ["eval", MIXTRAL, text, "--sequence-length", "20"]
    n_tokens = len(libmoe.Tokenizer(MIXTRAL).encode(TEXT, special=False))
    _, out, _ = called(*asked, "--tokens", "50")
    assert f"of 40 of its {n_tokens:,} tokens, in windows of 20" in out
    _, out, _ = called(*asked, "--tokens", "9")
    assert f"of 20 of its {n_tokens:,} tokens; --tokens 9 is less than a window" in out


def test_positions_beyond_the_models_are_said(text: str) -> None:
    said = "libmoe (?:eval|generate): position .* is beyond the 32 that this model is made for"
    _, _, err = called("eval", MIXTRAL, text, "--tokens", "50")
    assert len(re.findall(said, err)) == 1
    asked = ["generate", MIXTRAL, "--prompt", "the cat", "--tokens", "40", "--greedy"]
    child = command(*asked, stderr=subprocess.STDOUT)
    told = child.communicate(timeout=100)[0].splitlines()
    assert child.returncode == 0
    lines = [line for line in told if re.match(said, line)]  # not within the text
    assert len(lines) == 1 and lines[0] != told[0], told


def test_a_generation_that_ends_at_once_says_why(tmp_path: Path) -> None:
    model = loaded("mixtral", inference_only=True)
    first = next(model.generate(model.tokenizer.encode("the cat"), 1, temperature=0))
    folder = tmp_path / "mixtral"
    shutil.copytree(MIXTRAL, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": first}))
    _, out, err = called("generate", str(folder), "--prompt", "the cat", "--weight-dtype", "f32")
    assert out == "the cat\n" and f"token {first} ended the text before it began" in err
    _, _, err = called("generate", MIXTRAL, "--prompt", "the cat", "--tokens", "1", "--greedy")
    assert err.rstrip().endswith("; 1 token written") or "ended the text before it began" in err


def test_convert_says_what_it_leaves_out(tmp_path: Path) -> None:
    status, _, err = called("convert", str(FOLDERS / "glm4_moe"), str(tmp_path / "out"))
    assert status == 0 and re.search(r"libmoe convert: .*2 of the \d+ tensors .*model\.layers\.3\.", err)


def test_help_calls_folders_folders() -> None:
    for name in ("eval", "inspect"):
        assert " FOLDER" in called(name, "--help")[1]
    train = called("train", "--help")[1]
    assert "--init FOLDER" in train and "--trained NAMES" in train


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    status, _, err = called("generate", MIXTRAL, "--prompt", "x")
    assert status == 1 and "pip install 'libmoe[tokenizers]'" in err
    monkeypatch.delitem(sys.modules, "tokenizers")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    status, _, err = called("chat", MIXTRAL)
    assert status == 1 and "pip install 'libmoe[chat]'" in err


def test_settings_know_the_folder(tmp_path: Path) -> None:
    settings = Settings(init=MIXTRAL, trained="*.attention.*")
    settings.save(tmp_path)
    assert Settings.load(tmp_path) == settings
    assert json.loads((tmp_path / "config.json").read_text())["init"] == MIXTRAL


def test_convert_wants_few_bits_for_a_calibration(tmp_path: Path, text: str) -> None:
    output = str(tmp_path / "small")
    status, _, err = called("convert", MIXTRAL, "--output", output, "--calibration", text)
    assert status == 1 and "--calibration: it chooses few bits; say with --weights which" in err
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    status, _, err = called(
        "convert", MIXTRAL, output, "--weights", "int4", "--calibration", str(tmp_path / "bytes")
    )
    assert status == 1 and "is no text in UTF-8" in err
    status, _, err = called("convert", MIXTRAL, output, "--output", output)
    assert status == 2
    for option in ("--resident-limit", "--calibration-tokens"):
        status, _, err = called("convert", MIXTRAL, output, "--weights", "int4", option, "100")
        assert status == 1 and f"{option}: is of the text that --calibration names" in err
    assert not (tmp_path / "small").exists()


def test_convert_packs_by_a_calibration(tmp_path: Path, text: str) -> None:
    """The folder that it writes has the logits of a model that is packed so while it is read."""
    small = tmp_path / "small"
    asked = ["convert", MIXTRAL, str(small), "--weights", "int4", "--calibration", text]
    status, _, err = called(*asked, "--calibration-tokens", "300")
    assert status == 0, err
    assert re.search(r"^calibrated with .*text.txt: 300 tokens in \d+\.\d s$", err, re.MULTILINE)
    model = libmoe.Model.from_pretrained(MIXTRAL, inference_only=True)
    calibration = libmoe.calibrate(model, TEXT, tokens=300)
    assert ("fewer than 32 tokens reached" in err) == bool(calibration.few)
    expected, plain = (
        libmoe.Model.from_pretrained(MIXTRAL, inference_only=True, prepared="int4", calibration=each)
        for each in (calibration, None)
    )
    tokens = reference("mixtral")["tokens"]
    found = logits_of(libmoe.Model.from_pretrained(small, inference_only=True), tokens)
    assert found.tobytes() == logits_of(expected, tokens).tobytes() != logits_of(plain, tokens).tobytes()
    assert (small / "tokenizer.json").exists()
