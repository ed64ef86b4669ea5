"""Words that messages share: the first few of many, the start of a long text, the nearest name.

And what of a text a terminal may be given.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from difflib import get_close_matches

SHOWN = 5  # of many, those that a message names

_MAY_ACT = re.compile(r"[^\n\t -~]")  # anything but plain ASCII


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


def span(seconds: float) -> str:
    """A time for people.

    >>> span(4.2), span(600), span(9000), span(400000)
    ('4.2 s', '10.0 min', '2.5 h', '4.6 days')
    """
    for most, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < most:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def visible(text: str) -> str:
    r"""A text that a terminal can only show: what would act on it, or not be seen, is written out.

    Control characters but for newline and tab become symbols, and all that has no print, marks of
    direction, of no width, tags, and halves of surrogate pairs among them, becomes its number.

    >>> print(visible("\x1b[2J \u202egnp.exe é 日本!"))
    ␛[2J \u202egnp.exe é 日本!
    """
    return _MAY_ACT.sub(lambda found: _sign(found[0]), text)


def _sign(char: str) -> str:
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return chr(0x2400 + code) if code < 0x20 else "␡"
    # selectors of variants have no width, and can carry a hidden text
    is_selector = 0xE0100 <= code <= 0xE01EF
    if not is_selector and (char.isprintable() or unicodedata.category(char) == "Zs"):
        return char
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def without_exponent(number: float) -> str:
    """Return a number as a scheme's name has it, without an exponent.

    >>> without_exponent(0.5), without_exponent(1e-07), without_exponent(100.0)
    ('0.5', '0.0000001', '100')
    """
    return f"{Decimal(repr(number)).normalize():f}"
