r"""Equality of mathematical answers: exact for numbers, by math-verify for all else.

    >>> same_value("0.5", r"\frac{1}{2}"), same_value(r"\sqrt{8}", r"2\sqrt{2}")
    (True, True)
    >>> same_value("2.83", r"2\sqrt{2}")
    False

math-verify parses LaTeX with sympy, which has no limits: 9^{9^{9}} or (a+b+c+d)^{99} would run almost
without end. Its timeouts are signals: they need the main thread, and would make a grade depend on the
machine's load. So no clock is used here. Expressions that could take long are not parsed; they are
equal only if their texts are.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from math import prod
from typing import Any

from femtune.data.answer_format import bare
from femtune.data.answers import as_fraction, plain, remembered

LONGEST = 120  # characters of the longest answer that is parsed

# Commands that sympy handles within milliseconds at sensible sizes: no sums, integrals, limits.
_NAMES = (
    "frac dfrac tfrac cfrac binom dbinom tbinom sqrt pi cdot times div pm le leq ge geq lt gt in "
    "infty cup cap emptyset varnothing mathbb circ degree overline lfloor rfloor lceil rceil "
    "log ln sin cos tan cot sec csc arcsin arccos arctan "
    "alpha beta gamma delta theta lambda mu phi omega sigma Delta Gamma Omega "
    "left right begin end text mathrm mathbf textbf textit quad displaystyle"
)
_COMMANDS = frozenset(_NAMES.split())
_FUNCTIONS = re.compile(r"\\(?:log|ln|sin|cos|tan|cot|sec|csc|arc)")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|lt|gt|in)(?![a-z])|\\[lg]eq")
_NAMED = re.compile(r"\s*[A-Za-z]\s*=(?!.*=)")  # x = 5 is read as 5
_SPACING = re.compile(r"\\[,;:! ]|\\quad|\\left|\\right|\\displaystyle|[\s~]")
_WORD = re.compile(r"\\(?:text|textbf|textit|mathrm)\{([^{}]*)\}")
_BASE = re.compile(r"\d_(\{\d+\}|\d)")  # a number in a base: 1024_5


def same_value(answer: str, gold: str) -> bool:
    """Return True if an answer equals the correct one: as a number, as text, or as an expression.

    Numbers are compared exactly; decimals and expressions to twelve digits, so that 0.333 is not 1/3.
    Formulas are equal if they have the same values at fixed test points. The order of a list does not
    matter, but that of (a, b) and [a, b] does. A unit after a number, and "x =" before it, are optional.
    Never raises.
    """
    y, wanted = (as_fraction(re.sub(r"\\([$%])", r"\1", text)) for text in (answer, gold))
    if y is not None and wanted is not None:
        return y == wanted
    a, b = _spelt(answer), _spelt(gold)
    if a == b or (_is_word(a) and _is_word(b) and plain(a) == plain(b)):
        return a != ""
    if _is_word(b) or {_bracket(a), _bracket(b)} >= {"{", "("} or _other_case(a, b):
        return False
    bases = [_BASE.findall(text) for text in (a, b)]
    if all(bases) and bases[0] != bases[1]:  # math-verify ignores the bases
        return False
    return _readable(answer) and _readable(gold) and _equal(bare(answer), bare(gold))


def _spelt(text: str) -> str:
    """Normalize LaTeX: drop spacing, unify variants of a sign, unwrap words from their command."""
    text = bare(text)
    if named := _WORD.fullmatch(text):
        text = named[1]
    if _is_word(text):
        return " ".join(text.split())
    spaced = " ".join(_SPACING.sub(" ", re.sub(r"\\[dtc]frac", r"\\frac", text)).split())
    return re.sub(r"(?<!\d) | (?!\d)", "", spaced)  # 1 2 is not read as 12


def _is_word(text: str) -> bool:
    """Return True for one or more words (even, Evelyn), False for variables, points and products."""
    words = text.split()
    return bool(words) and all(len(w) > 1 and w.isalpha() and w[1:].islower() for w in words)


def _bracket(text: str) -> str:
    """Return the opening bracket: {1, 2} is not (1, 2), while 1, 2 may be either."""
    return text.removeprefix("\\").replace("[", "(")[:1]


def _other_case(answer: str, gold: str) -> bool:
    """Return True if the answer has a letter or sign that the correct one has only in the other case."""
    mine, theirs = ({*re.findall(r"\\?[A-Za-z]+", text)} for text in (answer, gold))
    return bool({name.casefold() for name in mine - theirs} & {name.casefold() for name in theirs})


# --- limits on what is parsed


def _readable(text: str) -> bool:
    text = bare(text).replace("\\$", "")
    sizes = [len(digits) for digits in re.findall(r"\d+", text)]
    if not text or len(text) > LONGEST or "$" in text.strip("$") or max(sizes, default=0) > 30:
        return False
    if not {*re.findall(r"\\([A-Za-z]+)", text)} <= _COMMANDS or len(_FUNCTIONS.findall(text)) > 3:
        return False
    if ("binom" in text or "!" in text.replace("\\!", "")) and not _small_factorials(text, sizes):
        return False
    return not _juxtaposed(text) and _small_powers(text) and _soluble(text)


def _small_factorials(text: str, sizes: list[int]) -> bool:
    plain_ones = not re.search(r"[^\d\s\\]\s*!|!\s*!", text.replace("\\!", ""))
    return plain_ones and max(sizes, default=0) <= 3 and "^" not in text


def _juxtaposed(text: str) -> bool:
    """Return True if numbers stand side by side: math-verify reads 3 4 and 3(4) as 3 + 4."""
    if "}{" in text and not re.search("frac|binom|begin", text):
        return True
    parted = re.sub(r"\}\s*\{", "},{", text)
    return bool(re.search(r"\d(?:\\[,;:! ]|\\quad|\\left|\\right|[\s~(){}])+\d", parted))


def _small_powers(text: str) -> bool:
    """Return True if no power expands to more than some thousand digits or terms."""
    terms, of_brackets = 1 + len(re.findall(r"[+-]|\\pm", text)), []
    for found in re.finditer(r"\^", text):
        power = _argument(text[found.end() :].lstrip())
        after = text[found.end() :].lstrip()[len(power) :].lstrip(" }")
        digits = "".join(re.findall(r"\d", power))
        symbolic = bool(re.search(r"(?<!\\)\b[A-Za-z]\b", text))
        if "^" in power or after.startswith("^") or len(digits) > (2 if symbolic else 4):
            return False
        if text[: found.start()].rstrip().endswith((")", "}", "]")):
            of_brackets.append(max(1, int(digits or 1)))
    roots = re.findall(r"\\sqrt\s*\[([^]]*)", text)
    return (
        prod(of_brackets) <= 100
        and terms ** sum(of_brackets) <= 10_000
        and all(len(index.strip()) <= 2 for index in roots)
    )


def _argument(text: str) -> str:
    """Return the argument that TeX would take: a group in braces, else one character."""
    if not text.startswith("{"):
        return text[:1]
    depth = 0
    for place, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[: place + 1]
    return text


def _soluble(text: str) -> bool:
    """Return True unless the text is an equation or inequality that sympy may solve only slowly."""
    if not _RELATION.search(_NAMED.sub("", text)):
        return True
    high = any(int(power) > 3 for power in re.findall(r"\^\s*\{?\s*(\d+)", text))
    return len(text) <= 60 and not high and not _FUNCTIONS.search(text) and "sqrt" not in text


# --- math-verify


# Test points at which expressions are compared, of both signs, since |x| is not x.
_POINTS = ((0.8314, -1.2934, 2.1705, -0.3771), (-1.6180, 0.5772, -0.9159, 1.3247))
_PRECISION = 1e-12  # relative to the larger value, for decimals and irrational numbers


@remembered
def _equal(answer: str, gold: str) -> bool:
    library = _library()
    try:
        mine, wanted = (_parsed(_NAMED.sub("", text)) for text in (answer, gold))
        if not mine or not wanted:
            return False
        if _is_scalar(mine[0]) and _is_scalar(wanted[0]):
            return _same_values(mine[0], wanted[0])
        if not (_elementary(answer) and _elementary(gold)):
            return False
        return bool(library.verify(wanted, mine, float_rounding=10, timeout_seconds=None))
    except Exception:  # of antlr, sympy and whatever they call
        return False


def _is_scalar(expression: Any) -> bool:
    """Return True for a number or a scalar formula, False for a set, point, matrix or equation."""
    from sympy import Expr, MatrixBase, MatrixExpr  # type: ignore[import-untyped]  # sympy has no types

    return isinstance(expression, Expr) and not isinstance(expression, MatrixBase | MatrixExpr)


def _same_values(a: Any, b: Any) -> bool:
    """Return True if two formulas agree at the test points; a proof by `simplify` may take too long."""
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if len(symbols) > len(_POINTS[0]):
        return False
    for point in _POINTS if symbols else ((),):
        values = dict(zip(symbols, point, strict=False))
        x, y = (complex(each.doit().evalf(30, subs=values)) for each in (a, b))
        if not abs(x - y) <= max(_PRECISION * max(abs(x), abs(y)), 1e-20):  # unequal for nan
            return False
    return True


def _elementary(text: str) -> bool:
    """Return True if math-verify may compare the text part by part, with `simplify`."""
    powers = all(int(power) <= 3 for power in re.findall(r"\^\s*\{?\s*(\d+)", text))
    return powers and not _FUNCTIONS.search(text) and text.count("sqrt") <= 4 and ")^" not in text


def _parsed(text: str) -> Any:
    library = _library()
    # in a box, all of the text is parsed; otherwise math-verify searches "not 5" for an expression
    of_all = [library.LatexExtractionConfig(boxed_match_priority=0)]
    return library.parse(rf"\boxed{{{text}}}", of_all, fallback_mode="no_fallback", parsing_timeout=None)


@cache
def _library() -> Any:
    import math_verify  # takes half a second, with sympy

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that timeouts are off
    return math_verify
