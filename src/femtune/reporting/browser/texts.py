"""Text as a page shows it: escaped, with special characters visible and search hits marked.

Models may write anything: tags, escape sequences, bidirectional overrides, invisible characters.
A page shows all of these as visible text.
"""

from __future__ import annotations

import math
import re

import regex
from markupsafe import Markup, escape

from femtune._util.text import INVISIBLE

_STRANGE = regex.compile(rf"(?!\r\n)({INVISIBLE.pattern})\1*", regex.V1)  # each run of the same one


def visible(text: str) -> Markup:
    """Return the text escaped, each invisible character as its code.

    >>> visible("<b>\\x1b[2J")
    Markup('&lt;b&gt;<span class="odd">U+001B</span>[2J')
    """
    made, end = [], 0
    for found in _STRANGE.finditer(text):
        made += [escape(text[end : found.start()]), _code(found)]
        end = found.end()
    return Markup("").join([*made, escape(text[end:])])


def _code(found: regex.Match[str]) -> Markup:
    num = found.end() - found.start()
    times = f" ×{num:,}" if num > 1 else ""
    return Markup('<span class="odd">U+{:04X}{}</span>').format(ord(found[1]), times)


def shown(value: object) -> object:
    """Make a template's value visible, unless it is Markup already."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def marked(text: str, needle: str) -> Markup:
    """Return a visible text with each occurrence of the needle marked, regardless of case."""
    if not needle:
        return visible(text)
    made, end = [], 0
    for found in re.finditer(re.escape(needle), text, re.IGNORECASE):
        made += [visible(text[end : found.start()]), Markup("<mark>{}</mark>").format(visible(found[0]))]
        end = found.end()
    return Markup("").join([*made, visible(text[end:])])


def number(value: int) -> str:
    """Format 12345 as 12,345."""
    return f"{value:,}"


def decimal(value: float | None, digits: int = 1) -> str:
    """Format a number with a true minus sign; an unknown one as a dash."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign.

    >>> signed(0.5), signed(-1)
    ('+0.5', '−1.0')
    """
    return ("+" if value > 0 else "") + decimal(value, digits)


def cut(text: str, length: int) -> str:
    """Return the first characters, with an ellipsis if there are more."""
    return text if len(text) <= length else text[:length] + "…"
