"""Compare two models on the same items: the difference, its interval, and a p-value.

    paired_difference(judge, base, groups)    # scores [seeds, items], in the same order of items
    holm([0.01, 0.04, 0.03])                  # p-values, corrected for how many are compared

Both models answer the same items, and most items are easy or hard for both. So the difference of their
means is known better than either mean: two intervals may overlap where the difference is clear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from femtune.errors import ConfigError, DataError
from femtune.evaluation.bootstrap import WEIGHTS_AT_ONCE, Floats, numbered, resample

RESAMPLES = 10_000
NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """A difference of two mean scores on the same items, in units of the score."""

    difference: float
    """Mean of a, less that of b, over seeds and items."""
    low: float
    high: float
    """Bounds of the interval of the difference. It leaves out 0 exactly where p_value < 1 - level."""
    p_value: float
    """Two-sided, of no difference; to be corrected by `holm` where several are compared."""
    num_items: int
    num_groups: int
    """Number of clusters, which are resampled; `num_items` without groups."""
    seed_spread: float | None
    """Standard deviation of the difference over seeds; None for one seed. Not in the interval."""


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """Return the mean of a less the mean of b, with the interval and p-value of a paired bootstrap.

    `a` and `b` hold a score for each item, [items] or [seeds, items], in the same order of items; the
    caller scores an unanswered item as 0. They have as many seeds, or one of them has one. An item's
    difference is that of its means over seeds. `groups` names each item's cluster (post, prompt, rater):
    the items of one are drawn together, and "" is a cluster of one item. So interval and p-value are
    about other items for these models. How much training again would change is `seed_spread`.

    The interval is the percentile bootstrap's, expanded for few clusters by Student's t (Hesterberg
    2015, arXiv 1411.5279). The number of clusters in it is our choice: of those with a difference, as
    others tell nothing, and effective where their sizes n differ, (sum n)^2 / sum n^2 (Kish 1965,
    "Survey Sampling"). The p-value is 1 less the level at which the interval meets 0, and at least
    the least of a sign test, 2^(1 - clusters). c of B resamples beyond 0 are a share (c + 1) / (B + 1)
    (Davison & Hinkley 1997, "Bootstrap Methods and their Application", chapter 4).

    >>> paired_difference([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).difference
    0.8

    Raises DataError where scores are missing or not finite, or where the shapes do not fit, and
    ConfigError for an impossible level.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level is a share between 0 and 1, got {level}: 0.95 is usual.")
    first, second = _scores(a, "a"), _scores(b, "b")
    names = [""] * first.shape[1] if groups is None else groups
    _check_shapes(first, second, len(names))
    by_seed = first.mean(axis=1) - second.mean(axis=1)
    # rounded, as 2/3 - 1/3 and 1/3 must be equal: a sum of them is compared with 0
    gaps: Floats = (first.mean(axis=0) - second.mean(axis=0)).round(12)
    group, num_groups = numbered(names)
    sums: Floats = np.bincount(group, gaps, num_groups).astype(float).round(12)
    sizes = np.bincount(group, minlength=num_groups).astype(float)
    difference = float(gaps.mean().round(12))
    found = np.sort(_resampled(sums, sizes, resamples, seed))
    p_value = _p_value(found, sums, sizes)
    low, high = _interval(found, _effective(sizes[sums != 0]), level)
    if p_value >= 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return PairedDifference(
        difference=difference,
        low=min(low, difference),
        high=max(high, difference),
        p_value=p_value,
        num_items=len(gaps),
        num_groups=num_groups,
        seed_spread=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many there are, in the same order.

    Rejecting those below 0.05 has a chance of at most 5% of any false alarm among all, however they
    depend on each other. Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]

    Raises DataError for a value that is no probability.
    """
    given = np.asarray(p_values, float)
    if not ((given >= 0) & (given <= 1)).all():
        raise DataError(f"a p-value is from 0 to 1, got {list(p_values)}.")
    order = given.argsort(kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty(len(given))
    adjusted[order] = stepped.clip(max=1.0)
    return [float(p) for p in adjusted]


def _scores(values: npt.ArrayLike, name: str) -> Floats:
    """Return scores as [seeds, items]. Raises DataError."""
    scores: Floats = np.atleast_2d(np.asarray(values, float))  # None becomes NaN
    if scores.ndim > 2 or scores.size == 0:
        raise DataError(f"{name} has shape {scores.shape}: give scores as [items] or [seeds, items].")
    if missing := int((~np.isfinite(scores)).sum()):
        raise DataError(
            f"{missing} of {scores.size} scores of {name} are missing or not finite: score an "
            "unanswered item as 0, in both."
        )
    return scores


def _check_shapes(a: Floats, b: Floats, num_names: int) -> None:
    if a.shape[1] != b.shape[1] or a.shape[1] != num_names:
        raise DataError(
            f"a has {a.shape[1]} items, b has {b.shape[1]}, and there are groups of {num_names}: all "
            "three must be of the same items."
        )
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise DataError(
            f"a has {len(a)} seeds and b has {len(b)}: compare seeds that both have, or one with all."
        )


def _resampled(sums: Floats, sizes: Floats, resamples: int, seed: int) -> Floats:
    """Return the difference in each resample of clusters, from their sums and sizes."""
    rng = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // len(sums))
    parts = []
    for start in range(0, resamples, at_once):
        times = resample(rng, min(at_once, resamples - start), len(sums))
        parts.append((times @ sums) / (times @ sizes))
    found: Floats = np.concatenate(parts).round(12)
    return found


def _effective(sizes: Floats) -> float:
    """Return Kish's effective number of clusters of these sizes; 0 of none."""
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def _p_value(found: Floats, sums: Floats, sizes: Floats) -> float:
    """Return the two-sided p-value of no difference, from sorted resamples."""
    differing = sums != 0
    effective = _effective(sizes[differing])
    if effective < 2:
        return 1.0
    fewer = min((found <= 0).sum(), (found >= 0).sum())
    expanded = -NORMAL.inv_cdf(min(0.5, (fewer + 1) / (len(found) + 1)))
    nominal = _normal_of_t(expanded / math.sqrt(effective / (effective - 1)), effective - 1)
    p_value = 2 * NORMAL.cdf(-nominal)
    return float(min(1.0, max(p_value, 2.0 ** (1 - int(differing.sum())))))


def _interval(found: Floats, effective: float, level: float) -> tuple[float, float]:
    """Return the expanded percentile interval; of too few clusters, the range of the resamples."""
    tail = 0.0
    if effective >= 2:
        t = _t_of_normal(NORMAL.inv_cdf((1 + level) / 2), effective - 1)
        tail = NORMAL.cdf(-t * math.sqrt(effective / (effective - 1)))
    # the resample that is outside as rarely as the p-value counts: it counts the value itself as one
    place = max(0, math.ceil(tail * (len(found) + 1)) - 2)
    return float(found[place]), float(found[-1 - place])


def _normal_of_t(t: float, df: float) -> float:
    """Return the standard normal's value with the tail of Student's t of df >= 1.

    For df >= 5 and p >= 0.001 to 0.03. Of fewer it is too near 0, so that p is too large, not too
    small. Source: Wallace 1959, "Bounds on normal approximations to Student's and the chi-square
    distributions". scipy has it exactly, but belongs to an extra.
    """
    return (8 * df + 1) / (8 * df + 3) * math.sqrt(df * math.log1p(t * t / df))


def _t_of_normal(z: float, df: float) -> float:
    """Return Student's t of df >= 1 with the tail of a standard normal's value: the inverse."""
    return math.sqrt(df * math.expm1((z * (8 * df + 3) / (8 * df + 1)) ** 2 / df))
