"""Text of tokens as they come: whole letters, and no text beyond one that ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

Written = Callable[[Sequence[int]], str]
"""What writes tokens as text."""

WHOLE = 4  # tokens, after which a letter that is not whole yet will never be: UTF-8 has 4 bytes at most
SEEN = 32  # tokens before another that decide how it is written


def pieces(written: Written, tokens: Iterable[int], after: Sequence[int] = ()) -> Iterator[str]:
    """Text of tokens as they come, whole letters where they can be; it continues the tokens `after`."""
    # How a token is written depends on those before it: with or without a space, as part of a letter.
    seen, fresh = list(after)[-SEEN:], list[int]()
    for token in tokens:
        fresh.append(token)
        text = _continued(written, seen, fresh)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(fresh) < WHOLE:
            continue  # a letter that is not whole yet
        yield text
        seen, fresh = [*seen, *fresh][-SEEN:], []
    if fresh:
        yield _continued(written, seen, fresh)


def _continued(written: Written, seen: list[int], fresh: list[int]) -> str:
    """Text of the fresh tokens where they stand."""
    before, whole = written(seen), written([*seen, *fresh])
    return whole[len(before) :] if whole.startswith(before) else written(fresh)


def until(texts: Iterable[str], ends: Sequence[str]) -> Iterator[str]:
    """Text as it comes, up to the first of the texts that end it; what may be its beginning waits."""
    waiting = ""
    for text in texts:
        waiting += text
        places = [place for place in (waiting.find(end) for end in ends) if place >= 0]
        if places:
            if min(places):
                yield waiting[: min(places)]
            return
        held = _beginning(waiting, ends)
        ready, waiting = waiting[: len(waiting) - held], waiting[len(waiting) - held :]
        if ready:
            yield ready
    if waiting:
        yield waiting


def _beginning(text: str, ends: Sequence[str]) -> int:
    """Return how many letters at the end of the text begin one of the ends."""
    most = min(len(text), max(map(len, ends), default=1) - 1)
    return next((n for n in range(most, 0, -1) if any(end.startswith(text[-n:]) for end in ends)), 0)


class Ending:
    """Whether one of several texts has been written by the tokens so far."""

    def __init__(self, written: Written, ends: Sequence[str]) -> None:
        self._written, self._ends = written, ends
        self._kept = 2 * WHOLE + WHOLE * max(map(len, ends), default=0)  # tokens that can hold one of them
        self._recent: list[int] = []

    def reached(self, token: int) -> bool:
        """Add a token, and return whether an end is there."""
        if not self._ends:
            return False
        self._recent = [*self._recent, token][-self._kept :]
        text = self._written(self._recent)
        return any(end in text for end in self._ends)
