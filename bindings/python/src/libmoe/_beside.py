"""What stands beside a model's weights in a folder and goes with it: tokenizer, defaults of generation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import FileError

FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Keys of a config.json that say nothing about which model it is.
_OF_FILES = (
    "dtype",
    "torch_dtype",
    "quantization_config",
    "transformers_version",
    "_name_or_path",
    "use_cache",
)


def model_in(folder: Path) -> Any:
    """Return what config.json says of the model in a folder, to be compared; None where there is none."""
    try:
        return _model(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None


def _model(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _model(value) for key, value in config.items() if key not in _OF_FILES}


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the texts of a folder's files by name."""
    texts = {}
    for name in FILES:
        path = folder / name
        try:
            if path.is_file():
                texts[name] = path.read_bytes()
        except OSError as error:
            raise FileError(f"{str(path)!r}: {error.strerror}") from None
    return texts


def put(folder: Path, files: Mapping[str, bytes], *, replaces: bool) -> None:
    """Write files into a folder, each whole; those that are there already stay unless it `replaces` them."""
    for name, text in files.items():
        here = folder / name
        try:
            if replaces or not here.exists():
                _write(here, text)
        except OSError as error:
            raise FileError(f"{str(here)!r}: {error.strerror}") from None


def _write(path: Path, text: bytes) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.write_bytes(text)
        unfinished.replace(path)
    except BaseException:  # Ctrl-C, too, leaves nothing behind
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def left_behind(folder: Path, files: Collection[str]) -> str:
    """Say which files in a folder are of the model that was there before, all but these."""
    names = [name for name in FILES if name not in files and (folder / name).exists()]
    if not names:
        return ""
    return (
        f"{str(folder)!r} held another model, of which {', '.join(names)} stay beside the new weights: take "
        "out what is not theirs"
    )
