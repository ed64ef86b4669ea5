"""Chance of a right answer by guessing, where the answers are a closed set: ratings, pairs, choices.

A filter that looks at answers alone keeps lucky guesses too. With four attempts at a pair it keeps 94%.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from femtune.data.tasks.frames import frame
from femtune.types import Problem, Scheme


def guessed_share(answers: Iterable[str], attempts: int = 1) -> float:
    """Return the share of problems that are solved by guesses which follow the answers' frequencies.

    With s the share of an answer, sum over answers of s (1 - (1 - s)^attempts): all guesses at a problem
    have the same chance, that of its own answer.

    >>> guessed_share(["A", "B"], 4), guessed_share("12345", 4)
    (0.9375, 0.5904)
    """
    counts = Counter(answers)
    total = counts.total()
    shares = [count / total for count in counts.values()]
    return round(math.fsum(share * (1 - (1 - share) ** attempts) for share in shares), 12)


def is_closed(problems: Sequence[Problem]) -> bool:
    """True if the problems' answers are a closed set: ratings, pairs or choices."""
    return bool(problems) and all(
        (known := frame(problem)) is not None and bool(known.scale) for problem in problems
    )


def plain_attempts(scheme: Scheme) -> int:
    """Return how often a scheme asks a problem without a hint; 0 where a near miss may be kept too."""
    if scheme.accept_at != 1:
        return 0
    return sum(stage.draws for stage in scheme.stages if stage.prompt_kind == "plain")


def binomial_interval(hits: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share.

    >>> [round(end, 3) for end in binomial_interval(5, 10)]
    [0.237, 0.763]
    """
    if not total:
        return 0.0, 1.0
    z, share = 1.959964, hits / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
