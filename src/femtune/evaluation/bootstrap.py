"""Measures of weighted items, and their bootstrap intervals.

An interval is a percentile bootstrap's (Efron & Tibshirani 1993, section 13.3): items are drawn with
replacement, a group of them as one, and the 2.5% and 97.5% points of the measure are taken. A resample
is a row of weights, how often each item was drawn, and a measure is written once, for weights: with
all weights 1 it gives the value, with a matrix [resamples, items] all resamples at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# From weights [resamples, items] to measures [resamples], NaN where one is undefined.
Statistic = Callable[[Floats], Mapping[str, Floats]]

WEIGHTS_AT_ONCE = 1 << 18  # of a block of resamples: 2 MB, so that it stays in a cache
PAIRS_AT_ONCE = 512  # columns of the matrix of concordance, which is as square as the items are many


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure and its 95% interval; None where undefined."""

    value: float | None
    ci: tuple[float, float] | None


# --- measures; weights are [resamples, items], results [resamples]


def ratio(upper: Floats, lower: Floats) -> Floats:
    """Elementwise, NaN where the lower is 0."""
    quotient: Floats = np.divide(upper, lower, out=np.full(upper.shape, np.nan), where=lower > 0)
    return quotient


def mean(weights: Floats, values: npt.NDArray[Any]) -> Floats:
    """Weighted mean; NaN of no weight."""
    return ratio(weights @ values.astype(float), weights.sum(axis=1))


def quadratic_kappa(weights: Floats, a: Ints, b: Ints) -> Floats:
    """Cohen's kappa of positions a and b [items] with disagreement (a - b)^2; NaN where all are equal.

    1 - observed / expected disagreement, the latter of independent a and b with the same margins:
    E (a - b)^2 = E a^2 + E b^2 - 2 E a E b. Source: Cohen 1968. It is 0 where only one is constant.
    """
    n = weights.sum(axis=1)
    observed = n * (weights @ (a - b).astype(float) ** 2)
    chance = n * (weights @ (a**2 + b**2).astype(float)) - 2 * (weights @ a) * (weights @ b)
    return 1 - ratio(observed, chance)


CORRELATIONS = ("pearson", "spearman", "kendall")


def correlations(weights: Floats, x: Floats, y: Floats) -> dict[str, Floats]:
    """Pearson's, Spearman's and Kendall's (tau-b) of x and y [items >= 1]; NaN where either is constant.

    All three need only how often each x occurs with each y; as votes and truths are on a scale,
    those pairs are few.
    """
    x_values, rows = np.unique(x, return_inverse=True)
    y_values, columns = np.unique(y, return_inverse=True)
    _, shown, pairs = np.unique(
        rows * len(y_values) + columns, return_index=True, return_inverse=True
    )  # distinct (x, y), an item of each, and the pair of each item
    across, down, together = (_grouped(weights, index) for index in (rows, columns, pairs))
    rows, columns = rows[shown], columns[shown]

    def product_moment(x: Floats, y: Floats) -> Floats:
        """Return the correlation of centered x [resamples, distinct x] and y [resamples, distinct y]."""
        covariance = (together * x[:, rows] * y[:, columns]).sum(axis=1)
        return ratio(covariance, np.sqrt(_dot(across, x**2) * _dot(down, y**2)))

    total = weights.sum(axis=1) ** 2
    untied = (total - _dot(across, across)) * (total - _dot(down, down))  # twice the pairs, of each
    found = {
        "pearson": product_moment(_centred(across, x_values), _centred(down, y_values)),
        "spearman": product_moment(_midranks(across), _midranks(down)),
        "kendall": ratio(_twice_concordance(together, rows, columns), np.sqrt(untied)),
    }
    varied = ((across > 0).sum(axis=1) > 1) & ((down > 0).sum(axis=1) > 1)
    return {name: np.where(varied, value.clip(-1, 1), np.nan) for name, value in found.items()}


def _grouped(weights: Floats, index: Ints) -> Floats:
    """Weight of each group, [resamples, groups]; `index` is the group of each item, none is empty."""
    order = index.argsort(kind="stable")
    starts = np.searchsorted(index[order], np.arange(index.max() + 1))
    sums: Floats = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def _centred(counts: Floats, values: Floats) -> Floats:
    """Values less their mean, [resamples, distinct]."""
    centred: Floats = values - mean(counts, values)[:, None]
    return centred


def _midranks(counts: Floats) -> Floats:
    """Ranks less their mean, equal values sharing theirs, [resamples, distinct]; exact in floats."""
    ranks: Floats = counts.cumsum(axis=1) - counts / 2 - counts.sum(axis=1, keepdims=True) / 2
    return ranks


def _twice_concordance(weights: Floats, x: Ints, y: Ints) -> Floats:
    """2 (concordant - discordant) pairs of items, of weighted distinct (x, y); Kendall 1945."""
    score = np.zeros(len(weights))
    for start in range(0, len(x), PAIRS_AT_ONCE):
        few = slice(start, start + PAIRS_AT_ONCE)
        signs = np.sign(x[:, None] - x[few]) * np.sign(y[:, None] - y[few])
        score += _dot(weights @ signs.astype(float), weights[:, few])
    return score


def _dot(a: Floats, b: Floats) -> Floats:
    """Return the sum of products for each resample."""
    products: Floats = np.einsum("ij,ij->i", a, b)
    return products


# --- intervals


def bootstrap(
    statistic: Statistic, groups: Sequence[str], resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Each measure of a statistic, with its percentile bootstrap 95% interval.

    `groups` names every item's; items of a group are drawn together, "" is a group of one. Resamples
    in which a measure is undefined are dropped; there is no interval where under half of them remain,
    nor of a single group. The same seed gives the same intervals.

    >>> heads = np.array([1.0, 0.0, 1.0, 1.0])
    >>> bootstrap(lambda weights: {"share": mean(weights, heads)}, [""] * 4)["share"]
    Estimate(value=0.75, ci=(0.25, 1.0))
    """
    group, num_groups = numbered(groups)
    rng = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // max(1, len(group)))
    parts: list[Mapping[str, Floats]] = []
    for start in range(0, resamples if num_groups > 1 else 0, at_once):
        times = resample(rng, min(at_once, resamples - start), num_groups)
        parts.append(statistic(times[:, group]))
    return {
        name: _estimate(float(value[0]), [part[name] for part in parts], resamples)
        for name, value in statistic(np.ones((1, len(group)))).items()
    }


def numbered(groups: Sequence[str]) -> tuple[Ints, int]:
    """Return each item's group as a number [items], and how many groups there are; "" stands alone."""
    numbers: dict[str | int, int] = {}
    group = np.array([numbers.setdefault(name or n, len(numbers)) for n, name in enumerate(groups)], int)
    return group, len(numbers)


def resample(rng: np.random.Generator, rows: int, size: int) -> Floats:
    """Return how often each of `size` items is drawn in `size` draws with replacement, [rows, size]."""
    drawn = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
    times = np.bincount(drawn.ravel(), minlength=rows * size)
    return times.reshape(rows, size).astype(float)


def _estimate(value: float, parts: Sequence[Floats], resamples: int) -> Estimate:
    if not math.isfinite(value):
        return Estimate(None, None)
    found = np.concatenate([*parts, np.zeros(0)])
    found = found[np.isfinite(found)]
    if len(found) == 0 or 2 * len(found) < resamples:
        return Estimate(value, None)
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(value, (float(low), float(high)))


def summary(estimates: Mapping[str, Estimate], why: Mapping[str, str]) -> dict[str, Any]:
    """Estimates as they are stored: `m`, `m_ci`, and under "undefined" why a measure is None."""
    made: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    for name, estimate in estimates.items():
        made[name] = estimate.value
        if estimate.ci is not None:
            made[f"{name}_ci"] = list(estimate.ci)
        if estimate.value is None:
            undefined[name] = why.get(name, "no vote on the scale")
    return made | ({"undefined": undefined} if undefined else {})


# Two-sided 95% quantiles of Student's t by degrees of freedom; beyond 10 seeds the normal one is near.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def half_width(values: Sequence[float]) -> float:
    """Half the 95% interval of a mean over seeds, by Student's t."""
    if len(values) < 2:
        return math.nan
    return _T.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values))
