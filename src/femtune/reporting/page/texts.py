"""Model and data texts made safe to show: no invisible characters, no bidirectional overrides.

The template escapes all text for HTML; this module handles what HTML would let through.
"""

from __future__ import annotations

import re
from typing import Any

from femtune._util.text import INVISIBLE, escaped

MAX_LENGTH = 3000  # characters shown of a text

_USER_INFO = re.compile(r"//[^/@\s]+@")


def visible(text: str) -> str:
    r"""Return a text whose invisible characters are written as escapes.

    >>> visible("red \x1b[31m, and \u202eturned")
    'red \\x1b[31m, and \\u202eturned'
    """
    return str(INVISIBLE.sub(lambda found: escaped(found[0]), text.replace("\r\n", "\n")))


def cut(text: str, length: int = MAX_LENGTH) -> tuple[str, int]:
    """Return the start of a text, made visible, and the number of characters left out.

    >>> cut("It is so because of that.", length=8)
    ('It is so', 17)
    """
    return visible(text[:length]), max(0, len(text) - length)


def name(text: Any, length: int = 48) -> str:
    """Return a short text on one line, for a label or a title.

    >>> name("one\\ntwo"), name("abcdef", 4)
    ('one two', 'abc…')
    """
    line = " ".join(visible(str(text)[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def setting(value: Any) -> str:
    """Return a setting's value as text, without credentials in URLs."""
    text = "–" if value in (None, [], "") else str(value)
    return _USER_INFO.sub("//…@", text)


def percent(share: float, digits: int = 1) -> str:
    """Return a share as a percentage.

    >>> percent(0.745)
    '74.5%'
    """
    return f"{100 * share:.{digits}f}%"


def signed(number: float) -> str:
    """Return a number with its sign, and values near 0 without one.

    >>> signed(-0.051), signed(-0.001)
    ('−0.05', '0.00')
    """
    return "0.00" if abs(number) < 0.005 else f"{number:+.2f}".replace("-", "−")


def count(number: float, noun: str = "", nouns: str = "") -> str:
    """Return a number with a noun, in singular or plural.

    >>> count(1234), count(1, "run"), count(0, "try", "tries")
    ('1,234', '1 run', '0 tries')
    """
    word = noun if number == 1 else nouns or (noun and noun + "s")
    return f"{number:,.0f} {word}".rstrip()


def seconds(number: float) -> str:
    """Return a duration as text.

    >>> seconds(3.21), seconds(190), seconds(7300)
    ('3.2 s', '3 min 10 s', '2 h 1 min')
    """
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def listed(words: list[str]) -> str:
    """Return words as a list in English.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
