r"""Equality of mathematical answers. What has one reading is decided here; math-verify decides the rest.

    >>> same_value("0.5", r"\frac{1}{2}"), same_value("18 eggs", "18"), same_value("7 km", "7 cm")
    (True, True, False)
    >>> same_value("y = 4, x = 3", "x = 3, y = 4"), same_value("3-1", "2-0"), same_value("VI", "IV")
    (True, False, False)

In this order: numbers with units, equal texts, dates, values under names, words and scores, lists,
expressions. docs/answers.md has a table of what is equal.
"""

from __future__ import annotations

import re
from fractions import Fraction

from femtune.data.grammar.dates import is_date_like, read_date
from femtune.data.grammar.numbers import Quantity, as_quantity, spelled, stated_quantity
from femtune.data.grammar.text import DOUBT, bare, folded, plain, remembered, split_parts, unled
from femtune.data.grammar.units import Unit, read_unit
from femtune.rewards.expressions import LONGEST, RELATION, same_expression

MOST_PARTS = 12  # of a list or a system of equations; each part is compared with each


@remembered
def same_value(answer: str, gold: str) -> bool:
    """Return True if an answer equals the correct one: as a number, date, text, list or expression.

    Numbers are compared exactly; decimals and expressions to twelve digits, so that 0.333 is not 1/3.
    A unit after a number, and "x =" before it, are optional. Never raises.
    """
    return _same(unled(bare(answer)), unled(bare(gold)))


def _same(a: str, b: str) -> bool:
    numbers = stated_quantity(a), stated_quantity(b)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0].same(numbers[1]) or _rounded(numbers[0], numbers[1])
    if (spelt := _spelt(a)) == _spelt(b):
        return spelt != ""
    dates = read_date(a), read_date(b)
    if all(dates):
        return dates[0] == dates[1]
    if max(len(a), len(b)) > LONGEST:
        return _same_words(a, b)
    named = _equations(a), _equations(b)
    if named[0] and named[1] and (same := _same_named(named[0], named[1])) is not None:
        return same
    if (named[0] is None) != (named[1] is None):
        return _same_unnamed(a, b, named[0] or named[1] or {})
    return _same_unnamed(a, b, {})


def _rounded(mine: Quantity, gold: Quantity) -> bool:
    """Return True for twelve digits of a fraction whose decimals do not end: 0.333333333333 for 1/3."""
    value = mine.beside(gold)
    if value is None or not (_unending(value) or _unending(gold.value)):
        return False
    return abs(value - gold.value) <= max(abs(value), abs(gold.value)) / 10**12


def _unending(value: Fraction) -> bool:
    """Return True for a number whose decimals do not end: its denominator divides no power of ten."""
    return pow(10, value.denominator.bit_length(), value.denominator) != 0


def _same_unnamed(a: str, b: str, named: dict[str, list[str]]) -> bool:
    """Compare two answers, of which one may have its values under a name."""
    if named and not (RELATION.search(a) and RELATION.search(b)):
        if len(named) > 1:
            return _same_point(named, b if RELATION.search(a) else a)
        [values] = named.values()
        value = ", ".join(values)
        return _same(value, b) if RELATION.search(a) else _same(a, value)
    (a, unit), (b, other) = _split_unit(a), _split_unit(b)
    if not unit.agrees(other):
        return False
    if unit != other:
        return _same(a, b)
    if _is_text(a) or _is_text(b) or (_is_letters(a) and _is_letters(b)):
        return _same_words(a, b)
    lists = _listed(a), _listed(b)
    if lists[0] and lists[1]:
        return _same_lists(*lists[0], *lists[1])
    if any(lists) and (as_quantity(a) or as_quantity(b)):
        return False
    if _is_equation(a) != _is_equation(b):
        return _same_chain(a, b) if _is_equation(a) else _same_chain(b, a)
    return not _differ_by_case(a, b) and not _differ_by_base(a, b) and same_expression(tex(a), tex(b))


def _is_equation(text: str) -> bool:
    return re.search(r"(?<![<>!])=", text) is not None


def _same_point(named: dict[str, list[str]], other: str) -> bool:
    """Return True for "x = 3, y = 5" and (3, 5); other names than x, y and z have no order."""
    point = _listed(other)
    if point is None or point[0] != "()" or [*sorted(named)] != [*"xyz"][: len(named)]:
        return False
    values = [named[name] for name in sorted(named)]
    same_size = len(values) == len(point[1]) and all(len(each) == 1 for each in values)
    return same_size and all(_same(each[0], one) for each, one in zip(values, point[1], strict=True))


def _same_chain(chain: str, value: str) -> bool:
    """Return True if the sides of "2 + 3 = 5" are equal, and the last of them is the other answer."""
    sides = chain.split("=")
    *before, last = sides if len(sides) <= MOST_PARTS else ["", ""]
    computed = [side for side in before if re.search(r"\d", side)]  # m + n = 256 + 37 = 293
    return same_expression(tex(last), tex(value)) and all(
        _same(side, last) for side in computed or before
    )


# --- text


_SPACING = re.compile(
    r"\\[,;:! ]|\\quad|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\s|(?<!~)~(?!~)"
)
_SIGNS = {
    **{"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "×": r"\times ", "·": r"\cdot "},
    **{"÷": r"\div ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "°": r"^\circ ", "²": "^2", "³": "^3"},
}
_SIGN = re.compile("|".join(_SIGNS))
_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\(([^()]*)\)|√\(([^()]*)\)|√(\w+)")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(pi|sin|cos|tan|ln|log)(?![A-Za-z])")


def tex(text: str) -> str:
    r"""Write signs and names of functions as TeX: π as \pi, sqrt(2) as \sqrt{2}."""
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3] or ''}}}", folded(text))
    return _FUNCTION.sub(r"\\\1 ", _SIGN.sub(lambda sign: _SIGNS[sign[0]], text)).strip()


def _spelt(text: str) -> str:
    """Normalize LaTeX: drop spacing, unify variants of a sign, unwrap words from their command."""
    text = bare(text)
    if _is_word(text):
        return " ".join(text.split())
    spaced = " ".join(_SPACING.sub(" ", re.sub(r"\\[dtc]frac", r"\\frac", tex(text))).split())
    return re.sub(r"(?<!\d) | (?!\d)", "", spaced)  # 1 2 is not read as 12


_MATH_WORD = r"(?:sqrt|arcsin|arccos|arctan)\b"
_WORD = re.compile(rf"(?<![\\A-Za-z])(?!{_MATH_WORD})[A-Za-z]{{4,}}(?![A-Za-z]*\}})|\\text\{{[^{{}}]*\w")
_AMOUNT = r"[+-]?\\?[$€£¥]?\s?[+-]?\d+(?:\.\d*)?\s?\\?%?"
_SCORE = re.compile(rf"{_AMOUNT}(?:\s*[-–—:]\s*{_AMOUNT})+", re.ASCII)


def _is_text(text: str) -> bool:
    """Return True for what is compared as text alone: words, dates, scores (3-1), doubts (5 or 6)."""
    if is_date_like(text) or _SCORE.fullmatch(folded(text)) or DOUBT.search(text):
        return True
    return _is_word(text) or _WORD.search(text) is not None


def _is_word(text: str) -> bool:
    """Return True for one or more words (even, Evelyn), False for variables, points and products."""
    words = text.split()
    return bool(words) and all(len(w) > 1 and w.isalpha() and w[1:].islower() for w in words)


def _is_letters(text: str) -> bool:
    """Return True for letters alone: IV and VI, LAMP and PALM are no products."""
    return len(text) > 1 and text.replace(" ", "").isalpha()


def _same_words(a: str, b: str) -> bool:
    """Compare two texts; case counts for letters that may be variables, spaces not around a dash."""
    if _is_letters(a) and _is_letters(b) and not (_is_word(a) and _is_word(b)):
        return " ".join(a.split()) == " ".join(b.split())
    one, other = (re.sub(r"\s*([-–—:])\s*", lambda m: m[1].replace("–", "-"), plain(t)) for t in (a, b))
    return one == other != ""


def _differ_by_case(a: str, b: str) -> bool:
    """Return True if one has a letter or sign that the other one has only in the other case."""
    mine, theirs = ({*re.findall(r"\\?[A-Za-z]+", text)} for text in (a, b))
    return bool({name.casefold() for name in mine - theirs} & {name.casefold() for name in theirs})


def _differ_by_base(a: str, b: str) -> bool:
    """Return True for numbers in different bases (1024_5), which math-verify ignores."""
    bases = [re.findall(r"\d_(\{\d+\}|\d)", text) for text in (a, b)]
    return all(bases) and bases[0] != bases[1]


# --- values under names

_BETWEEN = re.compile(r"[,;\n]|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b")
_NAMED = re.compile(
    r"(?P<name>\\?[A-Za-z]+(?:_\{?\w+\}?)?'?|[A-Za-z]\([A-Za-z]\))\s*=(?P<value>[^=<>]+)"
)


def _equations(text: str) -> dict[str, list[str]] | None:
    """Return the values by name of "x = 3, y = 4", or of "x = 3 or x = 4"; None for other texts."""
    if "=" not in text:
        return None
    found: dict[str, list[str]] = {}
    name = ""
    spaced = _SPACING.sub(lambda space: "\n" if space[0] == "\n" else " ", text)
    parts = [part.strip() for part in _parts(spaced, _BETWEEN)]
    for part in filter(None, parts):
        match = _NAMED.fullmatch(part)
        if match is None and ("=" in part or not name):
            return None
        name = match["name"] if match else name
        found.setdefault(name, []).append((match["value"] if match else part).strip())
    return found if len(parts) <= MOST_PARTS else None


def _same_named(mine: dict[str, list[str]], theirs: dict[str, list[str]]) -> bool | None:
    """Compare values by name; None where a value may hold another's name (x = y and y = x)."""
    if mine.keys() == theirs.keys():
        return all(_same_unordered(mine[name], theirs[name]) for name in mine)
    values = [value for given in (mine, theirs) for each in given.values() for value in each]
    return False if any(as_quantity(value) for value in values) else None


# --- units after expressions

_UNIT = re.compile(
    r"(?P<value>.*[\w)}\]])(?P<unit>\s*\\?%|\s*\\(?:text|mathrm)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?"
    r"|\s*\^\s*\{?\\circ\s*\}?|°|(?<=[\d)}iπ])\s+[A-Za-z]{2,}.*)",
    re.DOTALL,
)


def _split_unit(text: str) -> tuple[str, Unit]:
    """Split an expression and the unit after it: 9π and square inches."""
    match = _UNIT.fullmatch(text)
    unit = read_unit(f" {spelled(match['unit'])}") if match else None
    return (match["value"], unit) if match and unit else (text, Unit(""))


# --- lists

_COMMA = re.compile(r"[,;]")
_COMMA_OR_AND = re.compile(r"[,;]|\\text\s*\{\s*and\s*\}|\band\b")


def _parts(text: str, between: re.Pattern[str]) -> list[str]:
    """Split a text outside brackets, but not at the commas of thousands."""
    hidden = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "\0", text)
    return [part.replace("\0", ",") for part in split_parts(hidden, between)]


def _listed(text: str) -> tuple[str, list[str]] | None:
    """Return the brackets of a list ("" without any) and its parts; None for what is no list."""
    text = _SPACING.sub(" ", text).replace("\\{", "{").replace("\\}", "}").strip()
    whole = len(text) > 2 and text[0] in "([{" and text[-1] in ")]}" and _closes_last(text)
    parts = _parts(text[1:-1], _COMMA) if whole else _parts(text, _COMMA_OR_AND)
    parts = [part.strip() for part in parts if part.strip()]
    if not 2 <= len(parts) <= MOST_PARTS:
        return None
    return text[0] + text[-1] if whole else "", parts


def _closes_last(text: str) -> bool:
    """Return True if the first bracket of a text closes at its end."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return place == len(text) - 1
    return False


def _same_lists(brackets: str, a: list[str], other: str, b: list[str]) -> bool:
    """Compare lists: sets and lists without brackets in any order, points and intervals in theirs."""
    if len(a) != len(b):
        return False
    if {brackets, other} <= {"", "{}"}:
        return _same_unordered(a, b)
    if "{}" in (brackets, other) or (brackets != other and brackets and other):
        return False
    return all(_same(x, y) for x, y in zip(a, b, strict=True))


def _same_unordered(a: list[str], b: list[str]) -> bool:
    left = list(b)
    for value in a:
        found = next((place for place, one in enumerate(left) if _same(value, one)), None)
        if found is None:
            return False
        del left[found]
    return not left
