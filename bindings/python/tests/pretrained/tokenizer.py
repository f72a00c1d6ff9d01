"""A tiny tokenizer with a chat template, in the files that people have beside a model."""
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from .cases import V

SPECIAL = ["<pad>", "<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
LETTERS = "▁abcdefghijklmnopqrstuvwxyz.,!?\n0123456789"
MERGES = [
    "t h",
    "th e",
    "▁ the",
    "▁ a",
    "i n",
    "a n",
    "an d",
    "▁ i",
    "o n",
    "r e",
    "e r",
    "▁ w",
    "o u",
    "▁ h",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True},
        "pad_token": "<pad>",
        "chat_template": TEMPLATE,
        "model_max_length": 64,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def tokenizer() -> Tokenizer:
    """Byte pairs over letters, a space being part of the word behind it; texts begin with <s>."""
    pairs = [(left, right) for left, right in map(str.split, MERGES)]
    pieces = [*SPECIAL, *LETTERS, *(left + right for left, right in pairs)]
    pieces = list(dict.fromkeys(pieces))
    pieces += [f"<{n}>" for n in range(V - len(pieces))]
    made = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, pairs, unk_token="<pad>"))
    made.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL])
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return made
