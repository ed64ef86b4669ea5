"""Differences between several models, on the same held-out items: see `paired`.

    base -> star   +0.170 (0.105 to 0.235), p < 0.001, adjusted 0.004

Each row is compared with the base and with the row of the best accuracy. The best is found by the same
items, so a p-value against it is adjusted for all pairs of rows, not for those that are shown alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from femtune.evaluation.item_scores import BySeed, compare_scores
from femtune.evaluation.paired import RESAMPLES, PairedDifference, holm

BASE = "base"


@dataclass(frozen=True)
class Difference:
    """The accuracy of a row less that of another, and its p-value adjusted for how many are compared."""

    row: str
    to: str
    found: PairedDifference
    p_adjusted: float

    def to_data(self) -> dict[str, Any]:
        """Return the difference in the form of compare.json."""
        return {"row": self.row, "to": self.to, **asdict(self.found), "p_adjusted": self.p_adjusted}


def differences(
    scores: Mapping[str, BySeed],
    groups: Mapping[str, str],
    base: str = BASE,
    *,
    resamples: int = RESAMPLES,
) -> list[Difference]:
    """Return each row's difference to the base, then to the row of the best mean.

    `scores` are those of each row by seed and problem; `groups` names each problem's cluster.
    """
    order = sorted(scores, key=lambda name: name != base)  # stable: the base first

    def compared(pairs: Sequence[tuple[str, str]]) -> list[Difference]:
        known = [
            (row, to, found)
            for row, to in pairs
            if (found := compare_scores(scores[row], scores[to], groups, resamples=resamples))
        ]
        p_values = holm([found.p_value for _, _, found in known])
        return [Difference(*each, p) for each, p in zip(known, p_values, strict=True)]

    made = compared([(name, base) for name in order[1:]]) if base in scores else []
    if len(order) < 2:
        return made
    best = max(order, key=lambda name: fmean(fmean(own.values()) for own in scores[name].values()))
    if best == base:
        return made
    pairs = [(a, b) if b == best else (b, a) for a, b in combinations(order, 2)]
    return made + [each for each in compared(pairs) if each.to == best and each.row != base]


def difference_table(found: Sequence[Difference]) -> tuple[list[str], list[list[str]]]:
    """Return titles and cells as text, with a row for each difference."""
    spread = any(each.found.seed_spread is not None for each in found)
    titles = ["accuracy less that of", "", "difference", "95% interval", "p, adjusted"]
    cells = [
        [
            each.row,
            each.to,
            f"{each.found.difference:+.3f}",
            f"{each.found.low:+.3f} to {each.found.high:+.3f}",
            f"{each.p_adjusted:.3f}" if each.p_adjusted >= 0.001 else "< 0.001",
            *([_spread(each.found)] if spread else []),
        ]
        for each in found
    ]
    return titles + ["spread over seeds"] * spread, cells


def _spread(found: PairedDifference) -> str:
    return "–" if found.seed_spread is None else f"±{found.seed_spread:.3f}"
