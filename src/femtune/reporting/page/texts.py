"""What models and data say, made safe to show: nothing invisible, nothing that turns the line around.

Escaping for HTML is the template's, for all text alike; here is what HTML would let through.
"""

from __future__ import annotations

import re
from typing import Any

from femtune._util.text import INVISIBLE, escaped

MAX_LENGTH = 3000  # characters that are shown of a text

_USER_INFO = re.compile(r"//[^/@\s]+@")


def visible(text: str) -> str:
    r"""Return a text whose invisible characters are written as escapes.

    >>> visible("red \x1b[31m, and \u202eturned")
    'red \\x1b[31m, and \\u202eturned'
    """
    return str(INVISIBLE.sub(lambda found: escaped(found[0]), text.replace("\r\n", "\n")))


def cut(text: str, length: int = MAX_LENGTH) -> tuple[str, int]:
    """The start of a text, visible, and how many characters are left out.

    >>> cut("It is so because of that.", length=8)
    ('It is so', 17)
    """
    return visible(text[:length]), max(0, len(text) - length)


def name(text: Any, length: int = 48) -> str:
    """A short text on one line: a label, a title.

    >>> name("one\\ntwo"), name("abcdef", 4)
    ('one two', 'abc…')
    """
    line = " ".join(visible(str(text)[: 4 * length]).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def setting(value: Any) -> str:
    """A setting's value as text, without who logs in to an address."""
    text = "–" if value in (None, [], "") else str(value)
    return _USER_INFO.sub("//…@", text)


def percent(share: float, digits: int = 1) -> str:
    """
    >>> percent(0.745)
    '74.5%'
    """
    return f"{100 * share:.{digits}f}%"


def signed(number: float) -> str:
    """
    >>> signed(-0.051), signed(-0.001)
    ('−0.05', '0.00')
    """
    return "0.00" if abs(number) < 0.005 else f"{number:+.2f}".replace("-", "−")


def count(number: float, noun: str = "", nouns: str = "") -> str:
    """
    >>> count(1234), count(1, "run"), count(0, "try", "tries")
    ('1,234', '1 run', '0 tries')
    """
    word = noun if number == 1 else nouns or (noun and noun + "s")
    return f"{number:,.0f} {word}".rstrip()


def seconds(number: float) -> str:
    """
    >>> seconds(3.21), seconds(190), seconds(7300)
    ('3.2 s', '3 min 10 s', '2 h 1 min')
    """
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def listed(words: list[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
