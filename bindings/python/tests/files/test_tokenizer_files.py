"""What stands beside a model's weights: tokenizer, chat template, defaults of generation."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import libmoe
from libmoe._pieces import pieces, until

FOLDERS = Path(__file__).parents[1] / "pretrained" / "folders"
TALK = [
    {"role": "system", "content": " be kind "},
    {"role": "user", "content": "the cat and the hat?"},
    {"role": "assistant", "content": "in the house."},
    {"role": "user", "content": "here"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a folder's tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDERS / "llama" / name, tmp_path)
    return tmp_path


def test_text_to_tokens_and_back(folder: Path) -> None:
    tokenizer = libmoe.Tokenizer(folder)
    tokens = tokenizer.encode("the cat and the hat")
    assert tokens[0] == tokenizer.token("<s>") == 1
    assert tokenizer.decode(tokens) == "the cat and the hat"
    assert tokenizer.decode(tokens, special=True).startswith("<s>")
    assert tokenizer.encode("the cat", special=False) == tokenizer.encode("the cat")[1:]
    assert libmoe.Tokenizer(folder / "tokenizer.json").encode("a") == tokenizer.encode("a")
    assert (
        "".join(tokenizer.pieces(tokens[5:], tokens[:5]))
        == tokenizer.decode(tokens)[len(tokenizer.decode(tokens[:5])) :]
    )
    assert tokenizer.vocabulary_size == 80


def test_a_conversation_is_what_the_template_says(folder: Path) -> None:
    """The template's text by hand; test_pretrained_use.py of tests_torch has transformers' tokens."""
    tokenizer = libmoe.Tokenizer(folder)
    written = (
        "<s><|system|>be kind<|end|><|user|>the cat and the hat?<|end|>"
        "<|assistant|>in the house.<|end|><|user|>here<|end|>"
    )
    assert tokenizer.chat_template.render(TALK, reply=False) == written
    assert tokenizer.chat(TALK) == tokenizer.encode(written + "<|assistant|>", special=False)


def test_a_template_has_the_language_of_transformers(folder: Path) -> None:
    source = (
        "{% for m in messages %}\n{% if loop.index0 == 1 %}{% continue %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %} {% endfor %}"
        "{{ extra }}{{ strftime_now('%') }}"
    )
    (folder / "chat_template.jinja").write_text(source)
    text = libmoe.Tokenizer(folder).chat_template.render(
        [{"role": "user", "content": "<é>"}, {"role": "user"}], extra="more"
    )
    assert text.split() == ['{"role":', '"user",', '"content":', '"<é>"}', "more%"]


def test_a_named_template_is_the_default_one(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]
    path.write_text(json.dumps(config))
    assert libmoe.Tokenizer(folder).chat_template.render(TALK) == "plain"


def test_what_a_template_refuses_is_said(folder: Path) -> None:
    tokenizer = libmoe.Tokenizer(folder)
    with pytest.raises(libmoe.InvalidArgumentError, match="roles are system, user and assistant"):
        tokenizer.chat([{"role": "tool", "content": "x"}])
    for bad in ("{% for %}", "{{ messages.pop() }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"):
        (folder / "chat_template.jinja").write_text(bad)
        with pytest.raises(libmoe.InvalidArgumentError, match="the chat template refuses"):
            libmoe.Tokenizer(folder).chat(TALK)


@pytest.mark.parametrize(
    ("package", "extra"), [("tokenizers", "libmoe[tokenizers]"), ("jinja2", "libmoe[chat]")]
)
def test_a_package_that_is_missing_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(libmoe.InvalidArgumentError, match=package) as raised:
        libmoe.Tokenizer(folder).chat(TALK)
    assert f"pip install '{extra}'" in str(raised.value)


def test_a_folder_without_them(tmp_path: Path, folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(libmoe.FileError, match="has no tokenizer.json"):
        libmoe.Tokenizer(empty)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(libmoe.InvalidArgumentError, match="has no chat template"):
        libmoe.Tokenizer(folder).chat(TALK)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ({}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7, "top_k": 5}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.9, "min_p": 0.1},
            {"temperature": 0.6, "top_k": 0, "top_p": 0.9, "min_p": 0.1},
        ),
        (
            {"repetition_penalty": 1.2, "eos_token_id": [2, 3], "max_new_tokens": 7, "stop_strings": ["\n"]},
            {
                "temperature": 0.0,
                "repetition_penalty": 1.2,
                "end_tokens": (2, 3),
                "n_tokens": 7,
                "stop": ("\n",),
            },
        ),
        ({"num_beams": 1, "typical_p": 0.5, "suppress_tokens": []}, {"temperature": 0.0}),
        (
            {"num_beams": 4, "do_sample": True, "typical_p": 0.5},
            {"top_k": 50, "not_computed": ("num_beams = 4", "typical_p = 0.5")},
        ),
    ],
)
def test_defaults_of_a_folder(tmp_path: Path, written: dict[str, Any], wanted: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(written))
    assert libmoe.Sampling.from_pretrained(tmp_path) == libmoe.Sampling(**wanted)


def test_end_tokens_of_a_folder_without_defaults(tmp_path: Path) -> None:
    assert libmoe.Sampling.from_pretrained(tmp_path) == libmoe.Sampling(temperature=0.0)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert libmoe.Sampling.from_pretrained(tmp_path).end_tokens == (9,)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": [9, 8]}}))
    assert libmoe.Sampling.from_pretrained(tmp_path).end_tokens == (9, 8)


@pytest.mark.parametrize(
    "written", ["{", "[]", '{"do_sample": true, "temperature": "hot"}', '{"eos_token_id": "x"}']
)
def test_defaults_that_are_none(tmp_path: Path, written: str) -> None:
    (tmp_path / "generation_config.json").write_text(written)
    with pytest.raises(libmoe.InvalidArgumentError, match="generation_config.json"):
        libmoe.Sampling.from_pretrained(tmp_path)


@pytest.mark.parametrize("cut", range(1, 6))
def test_text_up_to_an_end_however_it_comes(cut: int) -> None:
    text = "one two; three. four"
    parts = [text[n : n + cut] for n in range(0, len(text), cut)]
    for ends in (
        ["two"],
        ["; t", "four"],
        ["xyz"],
        ["four!"],
        ["e"],
        [" two; three. f"],
        ["thrice", "three"],
    ):
        places = [text.index(end) for end in ends if end in text]
        assert "".join(until(parts, ends)) == text[: min(places, default=len(text))]


def test_a_letter_that_is_never_whole_is_not_waited_for() -> None:
    coded = "é🙂a".encode()
    written = lambda tokens: bytes(tokens).decode(errors="replace")  # noqa: E731
    assert list(pieces(written, coded)) == ["é", "🙂", "a"]
    assert "".join(pieces(written, coded[:-2])) == "é\N{REPLACEMENT CHARACTER}"


WRONG_TOKENS: dict[str, tuple[Any, str]] = {
    "negative": ([5, -1], "-1 is no token of this tokenizer"),
    "beyond": ([10_000], "10000 is no token of this tokenizer, which has 0 to"),
}


@pytest.mark.parametrize("what", WRONG_TOKENS)
def test_numbers_that_are_no_tokens_are_refused(folder: Path, what: str) -> None:
    tokens, says = WRONG_TOKENS[what]
    coder = libmoe.Tokenizer(folder)
    with pytest.raises(libmoe.InvalidArgumentError, match=says):
        coder.decode(tokens)
    if what == "negative":
        with pytest.raises(libmoe.InvalidArgumentError, match=says):
            list(coder.pieces(tokens))
    else:  # models have more rows than their tokenizers have tokens
        assert "".join(coder.pieces([5, *tokens])) == coder.decode([5])


@pytest.mark.parametrize(
    ("text", "says"),
    [("a\ud800", "surrogate U\\+D800 at character 1"), ("ab\udcff", "byte 0xff at character")],
)
def test_a_text_that_is_no_utf8_is_refused(folder: Path, text: str, says: str) -> None:
    coder = libmoe.Tokenizer(folder)
    for call in (
        lambda: coder.encode(text),
        lambda: coder.chat([{"role": "user", "content": text}]),
        lambda: coder.token(text),
    ):
        with pytest.raises(libmoe.InvalidArgumentError, match=says):
            call()


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("hi", "messages: expected a list of dicts, got str"),
        ({"role": "user", "content": "hi"}, "messages: expected a list of dicts, got dict"),
        (["hi"], r"messages\[0\]: expected a dict with a role, got str"),
        ([{"content": "hi"}], r"messages\[0\]: expected a dict with a role, got one without"),
        (
            [{"role": "user", "content": None}],
            r"messages\[0\]: expected its content to be a str, got NoneType",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "expected its content .* got list"),
    ],
)
def test_what_is_no_conversation_is_said(folder: Path, messages: Any, says: str) -> None:
    with pytest.raises(libmoe.ArgumentTypeError, match=says):
        libmoe.Tokenizer(folder).chat(messages)


def test_a_template_of_parts_has_them(folder: Path) -> None:
    source = (
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    parts = [{"type": "text", "text": "the"}, {"type": "image"}]
    template = libmoe.chat_template.ChatTemplate(source, {})
    assert template.render([{"role": "user", "content": parts}]) == "the"
