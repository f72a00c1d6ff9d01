"""Names of arguments that are not known: answered with the nearest ones, and with what others call them."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any, TypeVar, cast

from ._names import OTHERS
from .errors import ArgumentTypeError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
# Arguments that had another name once: their values are taken as before.
RENAMED = {"normalize": "router_normalize"}


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return which of the known names may be meant: what others call so, or the most alike ones."""
    choices = list(known)
    plain = name.lower().replace("-", "_")
    for meant in (OTHERS.get(plain.replace("_", ""), []), [plain]):
        found = [ours for ours in meant if ours in choices and ours != name]
        if found:
            return found
    alike = difflib.get_close_matches(plain, choices, n=3, cutoff=0.7)
    return (
        alike or [ours for ours in choices if len(ours) > 3 and len(plain) > 3 and _within(ours, plain)][:3]
    )


def _within(one: str, other: str) -> bool:
    return one in other or other in one


def unknown(owner: str, names: Iterable[str], known: Iterable[str]) -> str:
    """Return what to say about names that are not known, each with its suggestion."""
    choices, wrong = list(known), list(names)
    near = {name: nearest(name, choices) for name in wrong}
    # A long list hides the answer.
    hints = [f"choose from {choices}"] if len(choices) < 12 or not all(near.values()) else []
    for name, meant in near.items():
        if meant:
            asked = f"for {name!r} " if len(wrong) > 1 else ""
            hints.append(f"{asked}did you mean {' or '.join(meant)}?")
    return f"{owner}: unknown names {wrong}; {'; '.join(hints)}"


def require_known(
    owner: str, given: Iterable[str], known: Iterable[str], error: type[Exception] = ArgumentTypeError
) -> None:
    """Refuse names that are not known, all of them at once."""
    choices = list(known)
    wrong = [name for name in given if name not in choices]
    if wrong:
        raise error(unknown(owner, wrong, choices))


def renamed(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Return arguments by their present names."""
    choices = set(known)
    return {
        RENAMED[name] if name in RENAMED and name not in choices and RENAMED[name] in choices else name: value
        for name, value in given.items()
    }


def keywords(decorated: Decorated) -> Decorated:
    """Have a function, or the public methods of a class, answer unknown keyword arguments with a suggestion.

    Python's own TypeError says which name is wrong, and not which one is right.
    """
    if isinstance(decorated, type):
        for name, method in list(vars(decorated).items()):
            if isinstance(method, FunctionType) and (name in ("__init__", "__call__") or name[0] != "_"):
                setattr(decorated, name, _answering(method, "" if name == "__init__" else f".{name}"))
            elif isinstance(method, classmethod) and name[0] != "_":
                setattr(decorated, name, classmethod(_answering(method.__func__, f".{name}")))
        return decorated
    return cast(Decorated, _answering(decorated, decorated.__name__.lstrip("_"), method=False))


def _class_of(value: Any) -> type:
    """Return the class of an object, or a class itself."""
    return value if isinstance(value, type) else type(value)


def _answering(function: Any, owner: str, *, method: bool = True) -> Any:
    """Wrap it; of a method, the owner is what stands behind the name of the object's class."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function
    known = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    known.pop("self", None)
    known.pop("cls", None)
    if not known:
        return function
    names = frozenset(known)

    @functools.wraps(function)
    def answering(*positional: Any, **given: Any) -> Any:
        for name in given:
            if name not in names:
                given = renamed(given, known)
                called = _class_of(positional[0]).__name__ if method and positional else ""
                require_known(called + owner, given, known)
                break
        return function(*positional, **given)

    return answering
