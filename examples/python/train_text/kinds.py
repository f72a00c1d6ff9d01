"""Kinds of bytes: a rough reading of text, to see what the experts specialise in."""

import string

import numpy as np
from numpy.typing import NDArray

from train_text.text import Bytes

# Every byte is of the first kind that lists it.
_LISTED = {
    "lower case": string.ascii_lowercase,
    "upper case": string.ascii_uppercase,
    "digit": string.digits,
    "underscore": "_",
    "newline": "\n\r",
    "indentation": "",  # blanks with nothing but blanks before them on their line
    "space": " \t",
    "quote": "\"'`",
    "bracket": "()[]{}<>",
    "operator": "=+-*/%&|^~@!",
    "punctuation": ".,:;?#\\$",
}
KINDS = [*_LISTED, "other"]


def kinds(text: Bytes) -> NDArray[np.intp]:
    """Index into KINDS of every byte of `text` [N] -> [N]."""
    table = np.full(256, KINDS.index("other"), np.intp)
    for kind, listed in _LISTED.items():
        table[list(listed.encode())] = KINDS.index(kind)
    found = table[text]
    blank = found == KINDS.index("space")
    place = np.arange(len(text))
    last_solid = np.maximum.accumulate(np.where(blank, 0, place))  # the latest byte that is no blank
    found[blank & (found[last_solid] == KINDS.index("newline"))] = KINDS.index("indentation")
    return found
