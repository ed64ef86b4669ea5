r"""When two mathematical answers say the same: numbers exactly, the rest by math-verify.

    >>> same_value("0.5", r"\frac{1}{2}"), same_value(r"\sqrt{8}", r"2\sqrt{2}")
    (True, True)
    >>> same_value("2.83", r"2\sqrt{2}")
    False

math-verify reads LaTeX into sympy, which knows no bounds: 9^{9^{9}} or (a+b+c+d)^{99} keep it busy for
ever. Its own timeouts are signals, which only the main thread can have, and by which a grade would hang
on how busy the machine is. So there is no clock here: what could take long is not read, and is the same
only where its text is.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from math import prod
from typing import Any

from femtune.data.answer_format import bare
from femtune.data.answers import as_fraction, plain, remembered

LONGEST = 120  # characters of an answer that is read

# What sympy takes at most milliseconds for, in sensible sizes: no sums, integrals, limits.
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
_NAMED = re.compile(r"\s*[A-Za-z]\s*=(?!.*=)")  # x = 5 is 5
_SPACING = re.compile(r"\\[,;:! ]|\\quad|\\left|\\right|\\displaystyle|[\s~]")
_WORD = re.compile(r"\\(?:text|textbf|textit|mathrm)\{([^{}]*)\}")
_BASE = re.compile(r"\d_(\{\d+\}|\d)")  # 1024_5


def same_value(answer: str, gold: str) -> bool:
    """Whether an answer is the gold one: as a number, as text, or as an expression, as sympy finds.

    Numbers are compared exactly, and decimals with expressions to twelve digits: 0.333 is no third.
    Formulas are the same that have the same values where they are tried. Lists are the same in any
    order, (a, b) and [a, b] are not; a unit after a number, and "x =" before it, may be left out. Never
    raises.
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
    if all(bases) and bases[0] != bases[1]:  # math-verify drops them
        return False
    return _readable(answer) and _readable(gold) and _equal(bare(answer), bare(gold))


def _spelt(text: str) -> str:
    """LaTeX without spacing, variants of one sign as one, and words without their command."""
    text = bare(text)
    if named := _WORD.fullmatch(text):
        text = named[1]
    if _is_word(text):
        return " ".join(text.split())
    spaced = " ".join(_SPACING.sub(" ", re.sub(r"\\[dtc]frac", r"\\frac", text)).split())
    return re.sub(r"(?<!\d) | (?!\d)", "", spaced)  # 1 2 is not 12


def _is_word(text: str) -> bool:
    """Whether it is a word or several, as even or Evelyn, and no variable, point or product of them."""
    words = text.split()
    return bool(words) and all(len(w) > 1 and w.isalpha() and w[1:].islower() for w in words)


def _bracket(text: str) -> str:
    """What it begins with: {1, 2} is not (1, 2), while 1, 2 may be either."""
    return text.removeprefix("\\").replace("[", "(")[:1]


def _other_case(answer: str, gold: str) -> bool:
    """Whether the answer has a letter or sign that gold has in the other case only: X for x."""
    mine, theirs = ({*re.findall(r"\\?[A-Za-z]+", text)} for text in (answer, gold))
    return bool({name.casefold() for name in mine - theirs} & {name.casefold() for name in theirs})


# --- what is safe to read


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
    """Whether numbers stand side by side: math-verify reads 3 4 and 3(4) as 3 + 4."""
    if "}{" in text and not re.search("frac|binom|begin", text):
        return True
    parted = re.sub(r"\}\s*\{", "},{", text)
    return bool(re.search(r"\d(?:\\[,;:! ]|\\quad|\\left|\\right|[\s~(){}])+\d", parted))


def _small_powers(text: str) -> bool:
    """Whether no power, multiplied out, has over some thousand digits or terms."""
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
    """What TeX takes as an argument: a group in braces, a command, or a letter."""
    if not text.startswith("{"):
        return text[:1]
    depth = 0
    for place, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[: place + 1]
    return text


def _soluble(text: str) -> bool:
    """Whether it is no equation or inequality, or one of low degree, which sympy may solve."""
    if not _RELATION.search(_NAMED.sub("", text)):
        return True
    high = any(int(power) > 3 for power in re.findall(r"\^\s*\{?\s*(\d+)", text))
    return len(text) <= 60 and not high and not _FUNCTIONS.search(text) and "sqrt" not in text


# --- math-verify


# Values for variables, by which expressions are compared: of both signs, as |x| is no x.
_POINTS = ((0.8314, -1.2934, 2.1705, -0.3771), (-1.6180, 0.5772, -0.9159, 1.3247))
_PRECISION = 1e-12  # of the larger, where decimals or irrational numbers are compared


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
    """Whether it is a number or a formula of one, and no set, point, matrix or equation."""
    from sympy import Expr, MatrixBase, MatrixExpr  # type: ignore[import-untyped]

    return isinstance(expression, Expr) and not isinstance(expression, MatrixBase | MatrixExpr)


def _same_values(a: Any, b: Any) -> bool:
    """Whether two formulas have the same values: sympy's `simplify` would prove it, in its own time."""
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if len(symbols) > len(_POINTS[0]):
        return False
    for point in _POINTS if symbols else ((),):
        values = dict(zip(symbols, point, strict=False))
        x, y = (complex(each.doit().evalf(30, subs=values)) for each in (a, b))
        if not abs(x - y) <= max(_PRECISION * max(abs(x), abs(y)), 1e-20):  # so that nan is not
            return False
    return True


def _elementary(text: str) -> bool:
    """Whether math-verify may compare it part by part, with `simplify`."""
    powers = all(int(power) <= 3 for power in re.findall(r"\^\s*\{?\s*(\d+)", text))
    return powers and not _FUNCTIONS.search(text) and text.count("sqrt") <= 4 and ")^" not in text


def _parsed(text: str) -> Any:
    library = _library()
    # in a box, all of it is read: else math-verify looks for an expression in "not 5"
    of_all = [library.LatexExtractionConfig(boxed_match_priority=0)]
    return library.parse(rf"\boxed{{{text}}}", of_all, fallback_mode="no_fallback", parsing_timeout=None)


@cache
def _library() -> Any:
    import math_verify  # takes half a second, with sympy

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that there is no timeout
    return math_verify
