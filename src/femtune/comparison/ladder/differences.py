"""Paired differences between rungs, on the same held-out problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from femtune.comparison.ladder.store import Rung
from femtune.comparison.ladder.verdict import ALPHA
from femtune.errors import RunError
from femtune.evaluation.paired import PairedDifference, holm, paired_difference


@dataclass(frozen=True)
class Against:
    """A rung's accuracy less that of another one, with Holm's correction over all that are shown."""

    name: str
    difference: float
    low: float  # of the interval that leaves out 0 exactly where p_value is below 5%
    high: float
    p_value: float  # adjusted


def scores_of(rung: Rung, ids: Sequence[str]) -> list[float]:
    """Return a rung's scores in the order of problems. Raises RunError if one is missing."""
    if missing := [name for name in ids if name not in rung.scores]:
        raise RunError(
            f"rung {rung.name} has no score of {len(missing)} held-out problems, such as {missing[0]}. "
            "Give the same data, or another --output-dir."
        )
    return [rung.scores[name] for name in ids]


def all_pairs(
    rungs: Sequence[Rung], ids: Sequence[str], groups: Sequence[str]
) -> dict[tuple[str, str], PairedDifference]:
    """Compare each rung with each cheaper one in the order given: (later, earlier)."""
    scores = {rung.name: scores_of(rung, ids) for rung in rungs}
    return {
        (b.name, a.name): paired_difference(scores[b.name], scores[a.name], groups)
        for a, b in combinations(rungs, 2)
    }


def against(
    name: str, rungs: Sequence[Rung], ids: Sequence[str], groups: Sequence[str]
) -> list[Against]:
    """Compare all other rungs with one, at the levels of Holm's procedure.

    The smallest of m p-values is compared with 5% / m, the next one with 5% / (m - 1), and so on; from
    the first one that is above, the level stays. Each interval is of its level.
    """
    own = next(rung for rung in rungs if rung.name == name)
    others = [rung for rung in rungs if rung.name != name]
    base, scores = scores_of(own, ids), {rung.name: scores_of(rung, ids) for rung in others}
    first = {rung: paired_difference(scores[rung], base, groups) for rung in scores}
    adjusted = dict(zip(first, holm([each.p_value for each in first.values()]), strict=True))
    made: dict[str, Against] = {}
    left, stopped = len(first), False
    for rung in sorted(first, key=lambda each: first[each].p_value):
        found = paired_difference(scores[rung], base, groups, level=1 - ALPHA / left)
        made[rung] = Against(rung, found.difference, found.low, found.high, adjusted[rung])
        stopped = stopped or adjusted[rung] >= ALPHA
        left -= not stopped
    return [made[rung] for rung in first]
