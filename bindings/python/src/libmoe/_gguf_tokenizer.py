"""Tokenizers of GGUF files, built for the package ``tokenizers`` from the files' keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ._gguf import keys_of
from .chat_template import ChatTemplate
from .errors import InvalidArgumentError

_NORMAL, _UNKNOWN, _CONTROL, _OWN = 1, 2, 3, 4  # types of tokens
_IDS = ("bos", "eos", "unknown", "seperator", "padding")  # as the keys spell them
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token")

# How a text is cut before pairs are merged, by tokenizer.ggml.pre: regular expressions one after the other,
# then bytes; "" stands for GPT-2's own.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "olmo", "jina-en", "phi-2"), ("",)),
    **dict.fromkeys(("refact", "starcoder", "smollm", "granite"), (r"\p{N}", "")),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), (_LLAMA3,)
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (_QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
    "deepseek-v3": (r"\p{N}{1,3}", r"[一-龥\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3),
}
_NFC = ("qwen2", "deepseek-r1-qwen", "olmo")  # composed first
_WHOLE = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe")  # words that are tokens are not merged from bytes
_BEGIN = (*_WHOLE,)  # texts begin with a token where the file does not say it


def coder_of(path: str) -> Any:
    """Return the tokenizer of a GGUF file.

    Raises
    ------
    InvalidArgumentError
        The file has none, or one of a kind that is not known: the text says what would do.
    """
    keys = keys_of(path)
    kind = keys.get("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            coder = _byte_pairs(keys, path)
        elif kind == "llama":
            coder = _sentence_pieces(keys)
        else:
            raise _unsupported(path, "model", kind)
        _add_tokens(coder, keys)
        _add_ends(coder, keys, kind)
    except InvalidArgumentError:
        raise
    except Exception as error:  # the package raises plain Exception
        raise InvalidArgumentError(
            f"tokenizer of {path!r}: its keys make none ({error}); give libmoe.Tokenizer a tokenizer.json"
        ) from None
    return coder


def _unsupported(path: str, key: str, value: Any) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"tokenizer of {path!r}: tokenizer.ggml.{key} = {value!r} is not known; take the tokenizer.json of "
        "the model's folder: model.tokenizer = libmoe.Tokenizer(path), or give tokens in place of text"
    )


def _vocabulary(keys: Mapping[str, Any]) -> dict[str, int]:
    return {token: number for number, token in enumerate(keys["tokenizer.ggml.tokens"])}


def _byte_pairs(keys: Mapping[str, Any], path: str) -> Any:
    """Pairs of bytes, merged in the order that the file lists."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = keys.get("tokenizer.ggml.pre", "default")
    if name not in _CUTS:
        raise _unsupported(path, "pre", name)
    merges = [tuple(pair.split(" ", 1)) for pair in keys.get("tokenizer.ggml.merges", [])]
    coder = Tokenizer(models.BPE(_vocabulary(keys), merges, ignore_merges=name in _WHOLE))
    if name in _NFC:
        coder.normalizer = normalizers.NFC()
    cuts = [
        pre_tokenizers.Split(Regex(cut), "isolated")
        if cut
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
        for cut in _CUTS[name]
    ]
    if _CUTS[name][-1]:
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    coder.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    coder.decoder = decoders.ByteLevel()
    return coder


def _sentence_pieces(keys: Mapping[str, Any]) -> Any:
    """Pieces that are merged in the order of their scores; what is in none is written in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(keys)
    unknown = _token(keys, "unknown")
    begins = bool(keys.get("tokenizer.ggml.add_space_prefix", True))
    coder = Tokenizer(
        models.BPE(
            vocabulary,
            list(_merges(vocabulary, keys)),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = normalizers.Replace(" ", "▁")
    coder.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space] if begins else [space])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    coder.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if begins else steps)
    return coder


def _merges(vocabulary: Mapping[str, int], keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the pairs that make a token, those of the highest score first."""
    scores = keys["tokenizer.ggml.scores"]
    types = keys.get("tokenizer.ggml.token_type") or [_NORMAL] * len(scores)
    found = []
    for token, number in vocabulary.items():
        if types[number] not in (_NORMAL, _OWN):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[number], number, vocabulary[left], left, right))
    for _, _, _, left, right in sorted(found):
        yield left, right


def _token(keys: Mapping[str, Any], name: str) -> str | None:
    """Return the text of a token that a key names by its number."""
    number, tokens = keys.get(f"tokenizer.ggml.{name}_token_id"), keys.get("tokenizer.ggml.tokens", [])
    return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else None


def _add_tokens(coder: Any, keys: Mapping[str, Any]) -> None:
    """Keep together what the file calls a token whatever stands around it."""
    from tokenizers import AddedToken

    tokens, types = keys["tokenizer.ggml.tokens"], keys.get("tokenizer.ggml.token_type", [])
    special = [token for token, kind in zip(tokens, types) if kind in (_CONTROL, _UNKNOWN)]
    own = [token for token, kind in zip(tokens, types) if kind == _OWN]
    coder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    coder.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])


def _add_ends(coder: Any, keys: Mapping[str, Any], kind: str) -> None:
    """Have texts begin and end as the file says."""
    from tokenizers import processors

    begins = kind == "llama" or keys.get("tokenizer.ggml.pre") in _BEGIN
    first = _token(keys, "bos") if keys.get("tokenizer.ggml.add_bos_token", begins) else None
    last = _token(keys, "eos") if keys.get("tokenizer.ggml.add_eos_token", False) else None
    ends = {token: coder.token_to_id(token) for token in (first, last) if token is not None}
    if not ends:
        return
    around = [*([first] if first is not None else []), "$A", *([last] if last is not None else [])]
    coder.post_processor = processors.TemplateProcessing(
        single=around, pair=[*around, *(each.replace("$A", "$B") for each in around)],
        special_tokens=list(ends.items()),
    )  # fmt: skip


def template_of(path: str) -> ChatTemplate:
    """Return the chat template of a GGUF file.

    Raises
    ------
    InvalidArgumentError
        It has none.
    """
    keys = keys_of(path)
    source = keys.get("tokenizer.chat_template")
    if not isinstance(source, str):
        raise InvalidArgumentError(
            f"{path!r} has no tokenizer.chat_template: its model may know no conversations; let it continue "
            "a text (generate)"
        )
    return ChatTemplate(source, _special(keys))


def _special(keys: Mapping[str, Any]) -> dict[str, str]:
    found = {ours: _token(keys, theirs) for ours, theirs in zip(_NAMES, _IDS)}
    return {name: token for name, token in found.items() if token is not None}


def end_tokens(keys: Mapping[str, Any]) -> list[int]:
    """Return the tokens that end a text: of texts, of turns, of messages."""
    found = (keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return sorted({number for number in found if isinstance(number, int)})


def files_beside(path: str) -> tuple[dict[str, bytes], str]:
    """Return tokenizer and defaults of a GGUF file as a folder's files, and say what could not be made."""
    keys, said = keys_of(path), ""
    special = _special(keys)
    texts = {
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                **special,
                **({"chat_template": template_of(path).source} if "tokenizer.chat_template" in keys else {}),
            },
            indent=2,
            ensure_ascii=False,
        ),
        "generation_config.json": json.dumps({"eos_token_id": end_tokens(keys)}, indent=2),
    }
    try:
        texts["tokenizer.json"] = coder_of(path).to_str(pretty=True)
    except (InvalidArgumentError, ImportError) as error:
        said = f"tokenizer.json is not written: {error}"
    return {name: (text + "\n").encode() for name, text in texts.items()}, said
