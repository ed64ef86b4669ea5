"""Right equations in rationales: what a reader can check where no truth is known of the steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
_EQUATION = re.compile(rf"(?<![\d.])({_NUMBER})\s*([-+*/x×÷])\s*({_NUMBER})\s*=\s*({_NUMBER})")


def equations(text: str) -> Iterator[tuple[bool, list[Fraction]]]:
    """Yield whether each equation of two numbers is right, to two decimals, and its two numbers.

    >>> [right for right, _ in equations("2 + 3 = 5, so 5 x 2 = 11 and 7 / 3 = 2.33")]
    [True, False, True]
    """
    for one, sign, other, value in _EQUATION.findall(text):
        a, b, found = map(_number, (one, other, value))
        if sign in "/÷" and b == 0:
            yield False, [a, b]
            continue
        by_sign = {"+": a + b, "-": a - b, "*": a * b, "x": a * b, "×": a * b}
        exact = by_sign[sign] if sign in by_sign else a / b
        yield abs(exact - found) <= Fraction(1, 200), [a, b]


def right_share(texts: Iterable[str]) -> tuple[float | None, int]:
    """Return the share of right equations of all texts, and the number of equations."""
    found = [right for text in texts for right, _ in equations(text)]
    return (sum(found) / len(found) if found else None), len(found)


def right_rationales(texts: Iterable[tuple[str, str]]) -> tuple[float | None, int]:
    """Return the share of rationales whose equations are all right and use numbers of the problem.

    Of each (problem, rationale), those with an equation count; numbers from earlier equations may be
    used, too.
    """
    num = good = 0
    for problem, text in texts:
        known = {_number(each) for each in re.findall(_NUMBER, problem)}
        found = list(equations(text))
        num += bool(found)
        right = bool(found)
        for (is_right, used), value in zip(found, _values(text), strict=True):
            right = right and is_right and all(each in known for each in used)
            known.add(value)
        good += right
    return (good / num if num else None), num


def _values(text: str) -> Iterator[Fraction]:
    for *_, value in _EQUATION.findall(text):
        yield _number(value)


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace("$", ""))
