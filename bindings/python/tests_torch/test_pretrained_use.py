"""Folders between libmoe and transformers: what one writes the other reads, with equal numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import libmoe
from pretrained import generate
from pretrained.cases import CASES
from pretrained_models import FOLDERS, assert_near, logits_of, reference


def in_transformers(name: str, folder: Path, tokens: Any) -> np.ndarray:
    model = generate._eager(generate._class(CASES[name]).from_pretrained(folder, dtype=torch.float64))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(tokens.astype(np.int64)), use_cache=False).logits
    return logits.numpy()


@pytest.mark.parametrize("name", CASES)
def test_a_fine_tuned_model_goes_back(name: str, tmp_path: Path) -> None:
    tokens = reference(name)["tokens"]
    model = libmoe.Model.from_pretrained(FOLDERS / name, weight_dtype="f32")
    optimizer = libmoe.AdamW(model.parameters, learning_rate=3e-3)
    model.backward(model.forward(tokens[:, :-1].copy(), tokens[:, 1:].copy(), training=True, tape=True))
    optimizer.step()
    shard = CASES[name].shard or "50GB"
    model.save_pretrained(tmp_path, dtype="f32", max_shard_size=shard)
    found = logits_of(model, tokens)
    assert np.abs(found - reference(name)["logits"]).max() > 1e-2  # it has learnt something
    assert_near(found, in_transformers(name, tmp_path, tokens), 1e-5, name)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].tokenizer])
def test_tokens_of_texts_and_conversations(name: str) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(FOLDERS / name)
    ours = libmoe.Tokenizer(FOLDERS / name)
    for text in ("the cat and the hat", "in the house.\nthere, 42!", "a"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True)
    talk = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": " the cat? "},
        {"role": "assistant", "content": "the hat."},
        {"role": "user", "content": "here"},
    ]
    for reply in (True, False):
        wanted = theirs.apply_chat_template(talk, add_generation_prompt=reply, return_dict=False)
        assert ours.chat(talk, reply=reply) == wanted


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_defaults_of_generation(penalty: float, tmp_path: Path) -> None:
    """Greedy text with a penalty and an end, as transformers' generate reads the folder."""
    name = "mixtral"
    model = generate._eager(generate._class(CASES[name]).from_pretrained(FOLDERS / name, dtype=torch.float64))
    prompt = reference(name)["prompt/1"]
    config = transformers.GenerationConfig(
        max_new_tokens=12, repetition_penalty=penalty, eos_token_id=[2, 3], pad_token_id=0, do_sample=False
    )
    config.save_pretrained(tmp_path)
    wanted = model.generate(torch.tensor(prompt[None].astype(np.int64)), generation_config=config)
    ours = libmoe.Model.from_pretrained(FOLDERS / name)
    ours.sampling = libmoe.Sampling.from_pretrained(tmp_path)
    assert list(ours.generate(prompt)) == wanted[0, len(prompt) :].tolist()
