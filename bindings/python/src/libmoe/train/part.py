"""Which weights of a model are trained: the others have neither gradients nor moments."""

from __future__ import annotations

import fnmatch

import libmoe

from .errors import UserError


def train_only(model: libmoe.Model, patterns: str) -> dict[str, libmoe.Parameter]:
    """Freeze all but the parameters whose names fit one of the patterns, which commas divide; return these.

    Without any pattern all are trained.

    Raises
    ------
    UserError
        A pattern fits none.
    """
    names = list(model.parameters)
    fitting: set[str] = set()
    for pattern in [each.strip() for each in patterns.split(",") if each.strip()] or ["*"]:
        found = fnmatch.filter(names, pattern)
        if not found:
            some = ", ".join(names[:4])
            raise UserError(f"trained: no weight is called {pattern!r}; names are such as {some}, ...")
        fitting.update(found)
    model.freeze(*(name for name in names if name not in fitting))
    return {name: model.parameters[name] for name in names if name in fitting}
