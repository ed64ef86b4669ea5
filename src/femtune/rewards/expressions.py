r"""Equality of mathematical expressions, by math-verify and sympy, within limits.

    >>> same_expression(r"\sqrt{8}", r"2\sqrt{2}"), same_expression("2.83", r"2\sqrt{2}")
    (True, False)

math-verify parses LaTeX with sympy, which has no limits: 9^{9^{9}} or (a+b+c+d)^{99} would run almost
without end. Its timeouts are signals: they need the main thread, and would make a grade depend on the
machine's load. So no clock is used here. Expressions that could take long are not parsed, and are equal
to none.
"""

from __future__ import annotations

import logging
import re
from cmath import isfinite
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

from femtune.data.grammar.text import bare, remembered

LONGEST = 120  # characters of the longest answer that is parsed

# Commands that sympy handles within milliseconds at sensible sizes: no sums, integrals, limits.
_NAMES = (
    "frac dfrac tfrac cfrac binom dbinom tbinom sqrt pi cdot times div pm le leq ge geq lt gt ne neq in "
    "infty cup cap emptyset varnothing mathbb circ degree overline lfloor rfloor lceil rceil "
    "log ln sin cos tan cot sec csc arcsin arccos arctan "
    "alpha beta gamma delta theta lambda mu phi omega sigma Delta Gamma Omega "
    "left right begin end text mathrm mathbf textbf textit quad displaystyle"
)
_COMMANDS = frozenset(_NAMES.split())
_FUNCTIONS = re.compile(r"\\(?:log|ln|sin|cos|tan|cot|sec|csc|arc)")
RELATION = re.compile(r"[=<>]|\\(?:le|ge|lt|gt|in|neq?)(?![a-z])|\\[lg]eq")


def same_expression(answer: str, gold: str) -> bool:
    """Return True if two expressions, equations, intervals or sets are equal.

    Formulas are equal if they have the same values at fixed test points, to twelve digits. Never raises.
    """
    return _readable(answer) and _readable(gold) and _equal(bare(answer), bare(gold))


# --- limits on what is parsed


def _readable(text: str) -> bool:
    text = bare(text).replace("\\$", "")
    if re.search(r"(?<!\\)[:;]|[%?\n]", text):  # TeX skips what is after a %, math-verify after a colon
        return False
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
    if not RELATION.search(text):
        return True
    high = any(int(power) > 3 for power in re.findall(r"\^\s*\{?\s*(\d+)", text))
    return len(text) <= 60 and not high and not _FUNCTIONS.search(text) and "sqrt" not in text


# --- math-verify


# Test points at which expressions are compared, of both signs, since |x| is not x.
_POINTS = ((0.8314, -1.2934, 2.1705, -0.3771), (-1.6180, 0.5772, -0.9159, 1.3247))
_PRECISION = 1e-12  # relative to the larger value, for decimals and irrational numbers
_ROUNDING = 1e-50  # of a value that is 0, computed to 60 digits


@remembered
def _equal(answer: str, gold: str) -> bool:
    try:
        mine, wanted = _parsed(answer), _parsed(gold)
        if not mine or not wanted:
            return False
        if _is_scalar(mine[0]) and _is_scalar(wanted[0]):
            return _same_values(mine[0], wanted[0])
        if not (_elementary(answer) and _elementary(gold)):
            return False
        # x > 3 is the interval (3, \infty)
        options = {"float_rounding": 10, "timeout_seconds": None, "allow_set_relation_comp": True}
        return bool(_library().verify(wanted, mine, **options))
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
        x, y = (complex(each.doit().evalf(60, subs=values)) for each in (a, b))
        if not (isfinite(x) and isfinite(y)):
            return bool(a == b)
        # 2^{-70} is not 0, while sin^2 x + cos^2 x - 1 is 0 up to rounding
        if not abs(x - y) <= max(_PRECISION * max(abs(x), abs(y)), _ROUNDING):
            return False
    return True


def _elementary(text: str) -> bool:
    """Return True if math-verify may compare the text part by part, with `simplify`."""
    powers = all(int(power) <= 3 for power in re.findall(r"\^\s*\{?\s*(\d+)", text))
    return powers and not _FUNCTIONS.search(text) and text.count("sqrt") <= 4 and ")^" not in text


@remembered
def _parsed(text: str) -> Any:
    library = _library()
    # in a box, all of the text is parsed; otherwise math-verify searches "not 5" for an expression
    of_all = library.LatexExtractionConfig(boxed_match_priority=0)
    # it would take 5m for 5, and 6ab for 6
    with_units = replace(of_all, normalization_config=replace(of_all.normalization_config, units=False))
    boxed = rf"\boxed{{{text}}}"
    return library.parse(boxed, [with_units], fallback_mode="no_fallback", parsing_timeout=None)


@cache
def _library() -> Any:
    import math_verify  # takes half a second, with sympy

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that timeouts are off
    return math_verify
