"""Addition with a written scratchpad, digit by digit from the right.

    What is 48 + 37?                                prompt x

    8 + 7 + 0 = 15: write 5, carry 1.               rationale z: two digits and the carry
    4 + 3 + 1 = 8: write 8, carry 0.
    Answer: 85                                      answer y: the last carry, then the digits written

Source: the experiment of STaR, section 4.1 (arXiv 2203.14465), whose scratchpad is shorter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from femtune.errors import ConfigError
from femtune.types import Problem

_STEP = re.compile(
    r"(?P<a>[0-9]) \+ (?P<b>[0-9]) \+ (?P<c>[01]) = (?P<sum>[0-9]{1,2})"
    r": write (?P<write>[0-9]), carry (?P<carry>[01])\."
)


def rows(
    num_problems: int,
    *,
    seed: int = 0,
    difficulty: tuple[int, int] = (1, 4),
    noise: float = 0.0,
) -> list[dict[str, Any]]:
    """Return sums of two numbers, all with different prompts.

    `difficulty` is the smallest and largest number of digits, each equally likely while sums of it are
    left. `noise` is the probability that one digit of an answer is replaced by another, never with a
    leading zero; the column `truth` keeps the sum.

    >>> rows(10, seed=0)[0]  # doctest: +NORMALIZE_WHITESPACE
    {'id': 'sums-0-0', 'prompt': 'What is 68 + 20?', 'answer': '88', 'world': 'sums',
     'evidence': [68, 20], 'truth': '88'}

    Raises ConfigError if there are too few sums, or for values out of range.
    """
    low, high = difficulty
    if not 1 <= low <= high:
        raise ConfigError(f"difficulty is {difficulty}: it must be 1 <= low <= high digits.")
    if not 0 <= noise <= 1:
        raise ConfigError(f"noise is {noise}: it must be from 0 to 1.")
    rng = random.Random(f"sums {seed}")
    errs = random.Random(f"sums noise {seed}")
    made: dict[str, dict[str, Any]] = {}
    for _ in range(100 * num_problems):  # far more than needed, unless the sums are exhausted
        if len(made) == num_problems:
            break
        digits = rng.randint(low, high)
        a, b = (rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for _ in "ab")
        answer = _misread(str(a + b), errs) if errs.random() < noise else str(a + b)
        prompt = f"What is {a} + {b}?"
        row = {"id": f"sums-{seed}-{len(made)}", "prompt": prompt, "answer": answer}
        more = {"world": "sums", "evidence": [a, b], "truth": str(a + b)}
        made.setdefault(prompt, row | more)
    if len(made) < num_problems:
        message = f"found only {len(made)} different sums of {difficulty} digits"
        raise ConfigError(f"{message}, {num_problems} are needed: raise difficulty or ask for fewer.")
    return list(made.values())


def check(problem: Problem, rationale: str, answer: str) -> list[bool]:
    """Return whether each step is valid, in order, and last, whether the answer is what was written.

    A valid step takes the digits at its place and the carry that the step before wrote (0 at first);
    its sum, digit and carry are right. A missing or surplus step counts as one invalid step, so the list
    has max(digits, steps) + 1 entries.

    >>> problem = Problem("p", "What is 48 + 37?", "85", {"evidence": [48, 37]})
    >>> rationale, answer = solve(problem).split("\\nAnswer: ")
    >>> check(problem, rationale, answer)
    [True, True, True]
    >>> check(problem, rationale.replace("carry 1", "carry 0"), "85")
    [False, False, True]
    """
    places = _places(problem)
    steps = rationale.strip().splitlines()
    sound, written, carry = [], "", "0"
    for place in range(max(len(places), len(steps))):
        match = _STEP.fullmatch(steps[place]) if place < len(steps) else None
        if match is None:
            sound.append(False)
            carry = ""  # unknown, so the next step can't be valid
            continue
        a, b, total = int(match["a"]), int(match["b"]), int(match["sum"])
        right_place = place < len(places) and (a, b) == places[place]
        right_sum = match["c"] == carry and a + b + int(match["c"]) == total
        right_digits = (int(match["carry"]), int(match["write"])) == divmod(total, 10)
        sound.append(right_place and right_sum and right_digits)
        written, carry = match["write"] + written, match["carry"]
    ended = len(steps) >= len(places) and carry != ""
    return [*sound, ended and answer == _join(written, carry)]


def solve(problem: Problem) -> str:
    """Return the completion with the right sum, including the answer line."""
    return write_completion(problem)


def write_completion(problem: Problem, slips: Mapping[int, int] | None = None) -> str:
    """Write scratchpad and answer; `slips` adds errors to sums, by place, with 0 at the right.

    >>> print(write_completion(Problem("p", "What is 48 + 37?", "85", {"evidence": [48, 37]}), {0: 1}))
    8 + 7 + 0 = 16: write 6, carry 1.
    4 + 3 + 1 = 8: write 8, carry 0.
    Answer: 86
    """
    lines, written, carry = [], "", 0
    for place, (a, b) in enumerate(_places(problem)):
        total = max(0, min(19, a + b + carry + (slips or {}).get(place, 0)))
        line = f"{a} + {b} + {carry} = {total}"
        carry, digit = divmod(total, 10)
        written = f"{digit}{written}"
        lines.append(f"{line}: write {digit}, carry {carry}.")
    return "\n".join([*lines, f"Answer: {_join(written, str(carry))}"])


def _places(problem: Problem) -> list[tuple[int, int]]:
    """Return the pairs of digits of the two terms, from the right."""
    a, b = (str(term) for term in problem.columns["evidence"])
    width = max(len(a), len(b))
    pairs = zip(reversed(a.zfill(width)), reversed(b.zfill(width)), strict=True)
    return [(int(x), int(y)) for x, y in pairs]


def _join(written: str, carry: str) -> str:
    return f"1{written}" if carry == "1" else written


def _misread(total: str, rng: random.Random) -> str:
    place = rng.randrange(len(total))
    digits = "123456789" if place == 0 else "0123456789"
    other = rng.choice(digits.replace(total[place], ""))
    return f"{total[:place]}{other}{total[place + 1 :]}"
