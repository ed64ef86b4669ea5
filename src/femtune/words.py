"""Words that messages share: the first few of many, the start of a long text, the nearest name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SHOWN = 5  # of many, those that a message names


def first(items: Sequence[str], between: str = ", ") -> str:
    """The first few, and how many more there are.

    >>> first("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return between.join(items[:SHOWN]) + more


def brief(text: str, length: int = 60) -> str:
    """The start of a text, with dots where it was longer.

    >>> brief("It is so because of that.", length=9)
    'It is so ...'
    """
    return text if len(text) <= length else f"{text[:length]}..."


def near(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as a sentence to append, or "".

    >>> near("ordnial", ["exact", "ordinal"]), near("f1", ["exact", "ordinal"])
    (' Did you mean ordinal?', '')
    """
    found = get_close_matches(name, list(known), 1)
    return f" Did you mean {found[0]}?" if found else ""
