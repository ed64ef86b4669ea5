r"""Numbers in answers, exact: decimals, fractions, mixed numbers, powers of ten, and units.

>>> as_quantity(r"3\frac{1}{2} \text{ kilometers}")
Quantity(value=Fraction(7, 2), unit=Unit(name='km', rest=''))
>>> as_fraction("3 1/2"), as_fraction("1,234.5"), as_fraction("75%"), as_fraction("3,5")
(Fraction(7, 2), Fraction(2469, 2), Fraction(75, 1), None)

A number has one reading or none. 1,234 is read with a comma of thousands; 3,5 may be 3.5, or 3 and 5.
Percent is a unit: 75% is 75 percent, and 75 with its unit left out, but not 0.75.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from femtune.data.grammar.text import bare, folded, remembered, unbracketed, unled
from femtune.data.grammar.units import Unit, read_unit

LONGEST = 400  # characters; int() of thousands of digits is slow, and refused in the end


class Quantity(NamedTuple):
    """A number and its unit."""

    value: Fraction
    unit: Unit

    def same(self, other: Quantity) -> bool:
        """Return True for the same number, of the same unit or of one that is left out."""
        return self.value == other.value and self.unit.agrees(other.unit)


# 1,234,567, the same grouped as in India, 12,34,567, and 1234567
_WHOLE = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|[1-9]\d?(?:,\d{2})+,\d{3}(?!\d)|\d+)"
_CURRENCY = r"(?:US\$|[$€£¥₹]|(?:USD|EUR|GBP|JPY|INR|Rs) )"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?) ?(?P<currency>{_CURRENCY}?) ?(?P<inner_sign>(?<=[$€£¥₹])[+-]|) ?(?:"
    r"(?P<ten>10)\^(?P<ten_power>[+-]\d{1,3})(?!\d)"
    r"|(?:(?P<mixed>\d+) +)?(?P<top>\d+) ?/ ?(?P<bottom>\d+)(?![\d.,/])"
    rf"|(?P<decimal>(?:{_WHOLE}(?:\.\d*)?|\.\d+))(?:e(?P<e>[+-]?\d{{1,3}})(?!\d))?"
    r"(?P<tens> ?[x*×·] ?10\^(?P<power>[+-]?\d{1,3})(?!\d))?"
    r")(?P<large>(?: (?:hundred|thousand|million|billion|trillion|dozen))?)(?P<unit>.*)",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_LARGE = {
    **{"": 1, "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6},
    **{"billion": 10**9, "trillion": 10**12},
}


@remembered
def as_quantity(answer: str) -> Quantity | None:
    """Return the number and unit that an answer is, or None."""
    if len(answer) > LONGEST:
        return None
    text = spelled(unled(bare(answer)))
    inner = unbracketed(text)
    match = _NUMBER.fullmatch(inner if "," not in inner else text)  # (1,234) may be a point
    if match is None:
        return None
    value, unit = _value(match), _unit(match)
    return None if value is None or unit is None else Quantity(value, unit)


def _value(match: re.Match[str]) -> Fraction | None:
    times = _LARGE[match["large"].strip().lower()] * (
        -1 if "-" in match["sign"] + match["inner_sign"] else 1
    )
    if match["ten"]:
        return times * Fraction(10) ** int(match["ten_power"])
    if match["decimal"]:
        power = int(match["e"] or 0) + int(match["power"] or 0)
        return times * Fraction(match["decimal"].replace(",", "")) * Fraction(10) ** power
    top, bottom = int(match["top"]), int(match["bottom"])
    if bottom == 0 or (match["mixed"] and not 0 < top < bottom):
        return None
    return times * (int(match["mixed"] or 0) + Fraction(top, bottom))


def _unit(match: re.Match[str]) -> Unit | None:
    """Return the unit of a number, of which a currency may stand before it."""
    unit = read_unit(match["unit"])
    if unit is None or not match["currency"]:
        return unit
    currency = read_unit(match["currency"])
    if currency is None or unit.name in ("", currency.name):
        return currency and Unit(currency.name, unit.rest)
    rate = re.fullmatch(r"\s*(?:per |an? |each |/).+", match["unit"])
    return read_unit(f"{match['currency']} {match['unit'].strip()}") if rate else None


def as_fraction(answer: str) -> Fraction | None:
    """Return the exact number that an answer is, or None; of units, only percent and a currency."""
    found = as_quantity(answer)
    return found.value if found and found.unit in _OPTIONAL else None


_OPTIONAL = {Unit(name) for name in ("", "%", *"$€£¥₹")}


# --- TeX and characters

_ARG = r"\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))"
_FRACTION = re.compile(rf"\\[dtc]?frac{_ARG}{_ARG}")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SUPERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SPELLINGS = (
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\!\s*|(?<=\d)\{,\}(?=\d)"), lambda m: "," if "{" in m[0] else ""),
    (re.compile(r"(?<=\d)(?:\\,|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))"), ","),
    (_TEXT, r" \1"),
    (_FRACTION, lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} "),
    (re.compile(r"\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|\\degree"), "°"),
    (re.compile(r"\\times|\\cdot"), "×"),
    (re.compile(r"(?<=10)[⁻⁺]?[⁰¹²³⁴-⁹]+"), lambda m: "^" + m[0].translate(_SUPERS)),
    (re.compile(r"\^\s*\{\s*([+-]?\d+)\s*\}"), r"^\1"),
    (re.compile(r"(?<=[^\W\d_])[²³]"), lambda m: "^" + m[0].translate(_SUPERS)),
    (re.compile(r"[¼-¾⅐-⅞]"), lambda m: f" {unicodedata.normalize('NFKC', m[0])} ".replace("⁄", "/")),
    (re.compile(r"\\[,;: ]|\\quad|\\left(?=\()|\\right(?=\))|(?<=\S)~(?=\S)|\s"), " "),
)


def spelled(text: str) -> str:
    """Return a number's text without TeX: plain fractions, powers, spaces and units."""
    for pattern, by in _SPELLINGS:
        text = pattern.sub(by, text)
    return re.sub(" +", " ", folded(text)).strip()
