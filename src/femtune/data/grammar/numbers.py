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

from femtune.data.grammar.dates import MONTHS
from femtune.data.grammar.number_words import WORD, in_digits
from femtune.data.grammar.text import DOUBT, bare, folded, remembered, unbracketed, unled
from femtune.data.grammar.units import Unit, factor, read_unit

LONGEST = 400  # characters; int() of thousands of digits is slow, and refused in the end


class Quantity(NamedTuple):
    """A number and its unit."""

    value: Fraction
    unit: Unit

    def same(self, other: Quantity) -> bool:
        """Return True for the same number, of the same unit or of one that is left out.

        Units that are exact parts of each other are converted: 1.5 km is 1500 m.
        """
        return (mine := self.beside(other)) is not None and mine == other.value

    def beside(self, other: Quantity) -> Fraction | None:
        """Return the number in the other one's unit; None if the units differ."""
        if self.unit.agrees(other.unit):
            return self.value
        times = factor(self.unit.name, other.unit.name)
        rests = Unit("", self.unit.rest), Unit("", other.unit.rest)
        return self.value * times if times and rests[0].agrees(rests[1]) else None


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
    text = in_digits(spelled(unled(bare(answer))))
    inner = unbracketed(text)
    match = _NUMBER.fullmatch(inner if "," not in inner else text)  # (1,234) may be a point
    if match is None:
        return None
    value, unit = _value(match), _unit(match)
    if value is None or unit is None:
        return _several(text)
    return Quantity(value, unit)


_TWICE = re.compile(r"(?P<one>[^()]+) \((?P<other>[^()]+)\)")  # fifteen (15)
_AND = re.compile(r"(?:,? and |, ?| )(?=\d)")


def _several(text: str) -> Quantity | None:
    """Return the number of "15 (fifteen)", or the sum of "1 hour and 30 minutes"; else None."""
    if (twice := _TWICE.fullmatch(text)) is not None:
        one, other = as_quantity(twice["one"]), as_quantity(twice["other"])
        return one if one and other and one.same(other) else None
    parts = _AND.split(text)
    found = [as_quantity(part) for part in parts] if 2 <= len(parts) <= 4 else []
    total: Quantity | None = None
    for each in found:
        if each is None or each.unit.rest:
            return None
        if total is not None:
            # parts become smaller: 5 feet 6 inches, but not 30 minutes 2 hours, nor 1 hour 90 minutes
            size = factor(total.unit.name, each.unit.name)
            if size is None or not (size > 1 and 0 <= each.value < size):
                return None
            each = Quantity(total.value * size + each.value, each.unit)
        total = each
    return total


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


_SAID = re.compile(
    r"(?<![\w.,/:^])(?:US)?[$€£¥₹]?[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?"
    r"(?P<after>[\w.,/:^-]*\w)?(?P<unit>(?: [^\W\d_]+){0,2})"
)
_VERB = re.compile(
    r"=|\b(?:is|are|was|were|has|have|had|costs?|earns?|equals?|gets?|gives?|makes?|needs?|takes?|total\w*"
    r"|walks?|will|would)\b",
    re.IGNORECASE,
)
# what a sum or a variable is before its "=": 3 boxes * 4, c
_SUM = re.compile(
    r"(?:\S?\d[\d.,]*%?(?: [^\W\d_]+){0,2} ?[-+*/x×÷·] ?)+\S?\d[\d.,]*%?(?: [^\W\d_]+){0,2} ?$"
    r"|\b[^\W\d_] ?$",
    re.IGNORECASE,
)
_SO = re.compile(r"\b(?:so|thus|therefore|hence)\b,?", re.IGNORECASE)
# a limit, a doubt or a date
_UNSURE = re.compile(
    rf"{DOUBT.pattern}|\b(?:about|above|almost|approximately|around|below|between|each other"
    r"|fewer|greater|larger|less|minus|more than|nearly|over|roughly|smaller|than|under|up to|was in"
    rf"|year|at (?:least|most)|{'|'.join(MONTHS)})\b",
    re.IGNORECASE,
)
# another number in words, or a part of one: 3 of the 14
_MORE = re.compile(rf"\b(?:{WORD}|half|twice|dozen)\b|\d of\b|\bof (?:the |all )?\S?\d", re.IGNORECASE)
_UNIT_ENDS = re.compile(
    r" (?:after|altogether|and|as|at|away|by|during|each|every|for|from|in|into|left|long|more|on|per|so"
    r"|than|that|to|together|when|which|while|with)\b.*",
    re.IGNORECASE,
)


def number_said(sentence: str) -> str:
    """Return the one number of a sentence and what it counts, after the last "=" if there is any; or "".

    >>> number_said("Tom has 5 - 2 = 3 apples left."), number_said("Tom has 14 marbles, and Ann 15.")
    ('3 apples', '')
    """
    if _UNSURE.search(sentence) or not _VERB.search(sentence) or len(sentence) > LONGEST:
        return ""
    if re.search(r"\\(?![$%])", sentence):  # a formula or a box
        return ""
    *before, concluded = _SO.split(spelled(sentence.rstrip(" .!")))
    *others, said = concluded.split("=")
    if any(re.search(r"\d", part) and "=" not in part for part in before):
        return ""  # a number, and what follows from it
    if others and re.search(r"\d", _SUM.sub("", others[0])):
        return ""  # a number beside the sum
    if any(re.search(r"[^\W\d_]{2}", other) for other in others[1:]):
        return ""  # two sums
    found = [*_SAID.finditer(said)]
    if len(found) != 1 or found[0]["after"] or _MORE.search(said) or len(re.findall(r"\d+", said)) > 2:
        return ""
    unit = found[0]["unit"]
    number = found[0][0].removesuffix(unit)
    return (number + _UNIT_ENDS.sub("", unit)).strip()


@remembered
def stated_quantity(answer: str) -> Quantity | None:
    """Return the number that an answer is, or the only one that it states as a sentence; or None.

    >>> stated_quantity("Tom has 14 marbles left.").value, stated_quantity("Chapter 3")
    (Fraction(14, 1), None)
    """
    if (found := as_quantity(answer)) is not None:
        return found
    is_sentence = len(re.findall(r"[^\W\d_]{2,}", answer)) >= 3 and len(answer) <= LONGEST
    said = number_said(bare(answer)) if is_sentence else ""
    return as_quantity(said) if said else None


def as_fraction(answer: str) -> Fraction | None:
    """Return the exact number that an answer is, or None; of units, only percent and a currency.

    Words are no number here, so that a scale of labels may be one, two, three.
    """
    found = as_quantity(answer) if any(map(str.isnumeric, answer)) else None
    return found.value if found and found.unit in _OPTIONAL else None


_OPTIONAL = {Unit(name) for name in ("", "%", *"$€£¥₹")}


# --- TeX and characters

_ARG = r"\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))"
_FRACTION = re.compile(rf"\\[dtc]?frac{_ARG}{_ARG}")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SUPERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_REPEATING = re.compile(
    r"(?<![\d.,])(?P<start>\d+)\.(?P<fixed>\d*?)(?:\\(?:overline|bar)\s*\{(?P<under>\d{1,12})\}"
    r"|(?P<part>\d{1,12}?)(?P=part){2,}(?:\.\.\.|…|\\[lc]?dots))"
)


def _as_fraction(match: re.Match[str]) -> str:
    """Write a repeating decimal as a fraction: 0.333... as 3/9."""
    part, fixed = match["under"] or match["part"], match["fixed"]
    digits = match["start"] + fixed
    bottom = (10 ** len(part) - 1) * 10 ** len(fixed)
    return f" {int(digits + part) - int(digits)}/{bottom} "


_SPELLINGS = (
    (_REPEATING, _as_fraction),
    # 5k may be 5 times k
    (re.compile(r"(?<![\w.,])([$€£]\d[\d,]*(?:\.\d+)?|\d+\.\d+)k\b"), r"\1 thousand"),
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
