"""Calls that are wrong on purpose, which types would say before; hence ``Any``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import libmoe as package
from arrays import normal

libmoe: Any = package
blocks: Any = libmoe.blocks
MOE: Any = dict(n_experts=4, top_k=2, intermediate_size=8)
X: Any = normal(3, 8)
IDS: Any = np.zeros((1, 3), np.int32)


def layer(**options: Any) -> Any:
    return libmoe.Layer(**{"hidden_size": 8, "intermediate_size": 16, "n_experts": 4, "top_k": 2, **options})


def model(**options: Any) -> Any:
    return libmoe.Model(
        **{"hidden_size": 8, "n_layers": 1, "n_heads": 2, "vocabulary_size": 9, "moe": MOE, **options}
    )


def refused(call: Callable[[], object], text: str, kind: type[Exception] = TypeError) -> None:
    with pytest.raises(kind) as error:
        call()
    assert re.search(text, str(error.value)), str(error.value)
    assert isinstance(error.value, libmoe.MoeError)
