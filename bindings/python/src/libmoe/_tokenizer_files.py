"""Files of the package ``tokenizers``, opened."""

from __future__ import annotations

import os
from typing import Any

from ._gguf import is_gguf
from ._gguf_tokenizer import coder_of
from .errors import FileError, InvalidArgumentError


def opened(path: str, *, without: str) -> Any:
    """Return the file's tokenizer, or that of a GGUF file, without what is for batches of short texts.

    Truncation, padding, and dropout of merges are off.

    Parameters
    ----------
    path : str
    without : str
        What can be done without the package.

    Raises
    ------
    InvalidArgumentError
        The package is missing, or the file is none of its.
    FileError
        There is no such file, or it cannot be read.
    """
    try:
        import tokenizers
    except ImportError:
        raise InvalidArgumentError(
            f"tokenizer {path!r}: the package tokenizers is not installed; "
            f"pip install 'libmoe[tokenizers]', or {without}"
        ) from None
    if os.path.isdir(path):
        raise InvalidArgumentError(
            f"tokenizer: {path!r} is a folder: name the file in it, often tokenizer.json"
        )
    if not os.path.isfile(path):
        raise FileError(f"tokenizer: no such file: {path!r}")
    if is_gguf(path):
        return _quiet(coder_of(path))
    try:
        # Read here: the package opens no path that is not UTF-8.
        with open(path, encoding="utf-8") as file:
            coder = tokenizers.Tokenizer.from_str(file.read())
    except OSError as error:
        raise FileError(f"tokenizer {path!r}: {error.strerror}") from None
    except Exception as error:  # the package raises plain Exception
        raise InvalidArgumentError(
            f"tokenizer {path!r}: {error}; a file that tokenizers.Tokenizer.save wrote is wanted"
        ) from None
    return _quiet(coder)


def _quiet(coder: Any) -> Any:
    """Switch off what a file switches on for a batch of short texts."""
    coder.no_truncation()
    coder.no_padding()
    if getattr(coder.model, "dropout", None):
        coder.model.dropout = None  # another text's tokens each time
    return coder
