"""Text helpers for messages: shortened lists and texts, the nearest name, times.

Also the one definition of invisible characters, for terminal, report, browser and Markdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from difflib import get_close_matches

import regex

SHOWN = 5  # names that a message lists before "and N more"

# What has no print, or changes how other characters are read: controls, marks of direction, halves of
# surrogate pairs, what is private or unassigned, separators of lines, fillers, tags. Newline, tab and
# the first selectors of variants, which emoji need, do not count. `regex` knows Unicode's properties;
# the standard library has no Default_Ignorable_Code_Point.
_INVISIBLE = r"[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}--[\n\t\ufe00-\ufe0f]]"
# Joiners shape scripts and emoji, and these signs of numbers are seen: pages draw both.
_DRAWN = r"[\u200c\u200d\p{Prepended_Concatenation_Mark}]"

INVISIBLE = regex.compile(f"[{_INVISIBLE}--{_DRAWN}]", regex.V1)  # on a page
_IN_TERMINAL = regex.compile(_INVISIBLE, regex.V1)  # terminals disagree on the width of joiners


def first(items: Sequence[str], between: str = ", ") -> str:
    """Join the first few items, and say how many more there are.

    >>> first("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return between.join(items[:SHOWN]) + more


def brief(text: str, length: int = 60) -> str:
    """Return the start of a text, with dots if it is longer.

    >>> brief("It is so because of that.", length=9)
    'It is so ...'
    """
    return text if len(text) <= length else f"{text[:length]}..."


def near(name: str, known: Iterable[str]) -> str:
    """Return a suggestion as a sentence to append, or "" if no known name is close.

    >>> near("ordnial", ["exact", "ordinal"]), near("f1", ["exact", "ordinal"])
    (' Did you mean ordinal?', '')
    """
    found = get_close_matches(name, list(known), 1)
    return f" Did you mean {found[0]}?" if found else ""


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that occurs more than once, or None.

    >>> repeated(["a", "b", "c", "b"]), repeated(["a", "b"])
    ('b', None)
    """
    return next((name for name, number in Counter(names).items() if number > 1), None)


def span(seconds: float) -> str:
    """Format a time in seconds for readers, in the largest unit that fits.

    humanize has no such form as "2.5 h", which a column of a table needs.

    >>> span(4.2), span(600), span(9000), span(400000)
    ('4.2 s', '10.0 min', '2.5 h', '4.6 days')
    """
    for most, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < most:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def visible(text: str) -> str:
    r"""Escape what a terminal would act on or not show.

    Control characters except newline and tab become symbols. Other invisible characters become their
    code points: direction marks, zero-width characters, tags, lone surrogates.

    >>> print(visible("\x1b[2J \u202egnp.exe é 日本!"))
    ␛[2J \u202egnp.exe é 日本!
    """
    return str(_IN_TERMINAL.sub(lambda found: _sign(found[0]), text))


def escaped(char: str) -> str:
    r"""Return a character's number, as a string of Python's has it.

    >>> print(escaped("\x1b"), escaped("\u202e"), escaped("\U000e0041"))
    \x1b \u202e \U000e0041
    """
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _sign(char: str) -> str:
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return chr(0x2400 + code) if code < 0x20 else "␡"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number_text(number: float) -> str:
    """Return a cell's number as text; whole ones that Python writes without an exponent lack the point.

    >>> number_text(4.0), number_text(4), number_text(4.5), number_text(1e16)
    ('4', '4', '4.5', '1e+16')
    """
    whole = isinstance(number, float) and number.is_integer() and abs(number) < 1e16
    return str(int(number) if whole else number)


def without_exponent(number: float) -> str:
    """Return a number as a scheme's name has it, without an exponent.

    >>> without_exponent(0.5), without_exponent(1e-07), without_exponent(100.0)
    ('0.5', '0.0000001', '100')
    """
    return f"{Decimal(repr(number)).normalize():f}"
