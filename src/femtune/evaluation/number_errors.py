"""How far answers that are free numbers are off, as shares and a median.

A mean of distances would say nothing: a single answer of 10^11 decides it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from femtune.evaluation.bootstrap import Floats, bootstrap, mean, summary

CLOSE = 0.01  # the relative error of an answer that is within 1%


def relative_error(given: float | None, wanted: float) -> float | None:
    """Return |y - y*| / |y*|, infinite if only y* is 0; None without a number y.

    >>> relative_error(99.0, 100.0), relative_error(1.0, 0.0), relative_error(0.0, 0.0)
    (0.01, inf, 0.0)
    """
    if given is None:
        return None
    if given == wanted:
        return 0.0
    return abs(given - wanted) / abs(wanted) if wanted else math.inf


def number_metrics(errors: Sequence[Sequence[float | None]], groups: Sequence[str]) -> dict[str, object]:
    """Measure the relative errors of each problem's draws; None is a draw without a number.

    within_one_percent      mean share of a problem's draws at most 1% off, with a number at all
    median_relative_error   over the draws with a number, of all problems; None if it is infinite

    Each has its bootstrap interval over `groups`, one name for each problem.

    >>> number_metrics([[0.0, 1e9], [None]], ["", ""])["within_one_percent"]
    0.25
    """
    close = np.array([sum(e is not None and e <= CLOSE for e in own) / len(own) for own in errors])
    flat = [(e, row) for row, own in enumerate(errors) for e in own if e is not None]
    values = np.array([error for error, _ in flat], float)
    order = values.argsort(kind="stable")
    values, rows = values[order], np.array([row for _, row in flat], int)[order]

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {
            "within_one_percent": mean(weights, close),
            "median_relative_error": _weighted_median(weights[:, rows], values),
        }

    reason = "no draw gave a number" if not flat else "most correct answers are 0, and most draws differ"
    return summary(bootstrap(statistic, groups), {"median_relative_error": reason})


def _weighted_median(weights: Floats, values: Floats) -> Floats:
    """Return the lower median of rising values, each as often as its weight; NaN without weight."""
    if not len(values):
        return np.full(len(weights), np.nan)
    total = weights.cumsum(axis=1)
    middle = (total >= total[:, -1:] / 2).argmax(axis=1)
    median: Floats = np.where(total[:, -1] > 0, values[middle], np.nan)
    return median
