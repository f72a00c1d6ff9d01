"""Which weights of a model are trained: the others have neither moments nor memory for gradients."""

from __future__ import annotations

import fnmatch

import numpy as np

import libmoe

from .errors import UserError


def chosen(model: libmoe.Model, patterns: str) -> dict[str, libmoe.Parameter]:
    """Return the parameters whose names fit one of the patterns, which commas divide; all without any.

    Raises
    ------
    UserError
        A pattern fits none.
    """
    every = model.parameters
    listed = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    if not listed:
        return every
    fitting: set[str] = set()
    for pattern in listed:
        found = fnmatch.filter(every, pattern)
        if not found:
            some = ", ".join(list(every)[:4])
            raise UserError(f"trained: no weight is called {pattern!r}; names are such as {some}, ...")
        fitting.update(found)
    return {name: parameter for name, parameter in every.items() if name in fitting}


def release(model: libmoe.Model, trained: dict[str, libmoe.Parameter]) -> None:
    """Let go of the gradients' memory of what is not trained.

    Backward adds these gradients all the same; they share one array, in which nobody reads.
    """
    names = [name for name in model.parameters if name not in trained]
    largest = max((model.parameters[name].data.size for name in names), default=0)
    waste = np.zeros(largest, np.float32)
    for name in names:
        data = model.parameters[name].data.copy()
        model.bind(name, data, waste[: data.size].reshape(data.shape))
