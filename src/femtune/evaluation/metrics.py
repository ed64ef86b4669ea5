"""Measures of a judge, from the votes of its draws on held-out items; each with a 95% interval.

    Item(truth="4", votes=("4", "4", "5"))    a rating of 4, and what three draws gave

How an interval is made: see `intervals`. Where a measure is undefined it is None and the result's
"undefined" says why; it is never NaN.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from femtune.errors import ConfigError, DataError
from femtune.evaluation.bootstrap import (
    CORRELATIONS,
    Floats,
    Ints,
    Statistic,
    bootstrap,
    correlations,
    mean,
    quadratic_kappa,
    ratio,
    summary,
)
from femtune.evaluation.calibration_map import Calibration, apply, check_scale
from femtune.metric_types import EvaluationMetrics

NUM_BINS = 10  # of confidence, for the ECE; Guo et al. 2017 take 15, of far more items
NEVER = 1 << 40  # the index of a vote that was not cast


@dataclass(frozen=True, slots=True)
class Item:
    """One held-out problem: its correct answer and what each draw answered."""

    truth: str  # y*, on the scale
    votes: tuple[str, ...]  # of every draw, in order of keys; "" or anything off the scale: no vote
    group: str = ""  # the judged item or pair; items that share it are resampled together
    cluster: str = ""  # a larger group that is resampled together, if there is one

    @property
    def resampled(self) -> str:
        """Return the name of what is resampled with it; "" is a group of one."""
        return self.cluster or self.group


@dataclass(frozen=True, slots=True)
class Votes:
    """Items as arrays over a scale."""

    counts: Floats  # [items, scale]
    first: Ints  # [items, scale], the index of an answer's first vote; NEVER if there is no vote
    truth: Ints  # [items], a position on the scale
    several: bool  # whether an item was drawn more than once

    @property
    def cast(self) -> npt.NDArray[np.bool_]:
        """True for items with a vote on the scale, [items]."""
        cast: npt.NDArray[np.bool_] = self.counts.sum(axis=1) > 0
        return cast

    @property
    def shares(self) -> Floats:
        """Shares of the votes on the scale, [items, scale]; uniform without votes."""
        counts = np.where(self.cast[:, None], self.counts, 1.0)
        shares: Floats = counts / counts.sum(axis=1, keepdims=True)
        return shares


# --- the measures of each kind of task


def rating_metrics(
    items: Sequence[Item],
    scale: Sequence[str],
    *,
    values: Sequence[float] | None = None,
    calibration: Calibration | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> EvaluationMetrics:
    """Measures of ratings on an ordered scale, each `m` with its interval `m_ci`.

    Of the most frequent vote; of equally frequent ones, the one cast first:
    accuracy        share of items where it is the truth
    within_one      share where it is at most one position of the scale away
    kappa           quadratic-weighted, of positions (Cohen 1968)
    Of the expected value over the votes, calibrated ones where a calibration is given:
    mae, rmse       in units of the scale's values: see `scale_values`
    pearson, spearman, kendall      correlation with the truth, Kendall's as tau-b
    Where there are several draws, also `ece` and `brier`: see `confidence`.

    An item without a vote on the scale is wrong in `accuracy` and `within_one` and left out of the
    rest. kappa and the correlations take three items with a vote; a correlation also takes two
    different ratings and two different predictions, and a resample that lacks them is dropped.

    >>> items = [Item(rating, (rating,)) for rating in "12345"]
    >>> rating_metrics(items, "12345", resamples=0)["spearman"]
    1.0

    Raises ConfigError for an impossible scale and DataError for a truth that is not on it.
    """
    votes = count_votes(items, scale)
    numbers = scale_values(scale, values)
    span = float(np.ptp(numbers))
    unit = (numbers - numbers.min()) / span  # 0 to 1
    probabilities = distributions(items, scale, calibration)
    cast = votes.cast
    truth, winner = votes.truth[cast], most_likely(votes.counts, votes.first)
    off = np.abs(winner - votes.truth)
    # rounded, as 2 and 4 or 3 and 3 must give equal means
    actual, expected = unit.round(12)[truth], (probabilities[cast] @ unit).round(12)
    gaps = np.abs(expected - actual)
    sure = confidence(votes, probabilities)
    why = _why_undefined(actual, expected)

    def statistic(weights: Floats) -> dict[str, Floats]:
        heard = weights[:, cast]
        undefined = np.full(len(weights), np.nan)
        few = len(truth) < 3
        return {
            "accuracy": mean(weights, cast & (off == 0)),
            "within_one": mean(weights, cast & (off <= 1)),
            "kappa": undefined if few else quadratic_kappa(heard, winner[cast], truth),
            "mae": span * mean(heard, gaps),
            "rmse": span * np.sqrt(mean(heard, gaps**2)),
            **(dict.fromkeys(CORRELATIONS, undefined) if few else correlations(heard, expected, actual)),
            **sure(weights),
        }

    return _measures(statistic, [item.resampled for item in items], resamples, seed, why)


def pair_metrics(
    items: Sequence[Item],
    scale: Sequence[str],
    *,
    swapped: Sequence[bool],
    calibration: Calibration | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> EvaluationMetrics:
    """Measures of a choice between two responses, each `m` with its interval `m_ci`.

    The scale is A, B and maybe a tie; `group` is the pair's id, `swapped` tells which items show the
    pair in the other order. An item's answer is its most frequent vote, the first of equals.

    agreement               share of items whose answer is the truth; no vote is wrong
    position_consistency    of pairs with an answer in both orders, share where the same response wins
    first_share             share of A among the answers A and B; far from that of the truths: biased
    Where there are several draws, also `ece` and `brier`: see `confidence`.

    Raises ConfigError for an impossible scale, DataError for a truth off it, for a pair twice in the
    same order, and where `swapped` is not as long as `items`. Position bias: Zheng et al. 2023,
    arXiv 2306.05685, section 3.3.
    """
    votes = count_votes(items, scale)
    winner = most_likely(votes.counts, votes.first)
    both, same = _orders(items, winner, votes.cast, swapped)
    chosen = votes.cast & (winner < 2)
    sure = confidence(votes, distributions(items, scale, calibration))
    why = {
        "position_consistency": "no pair was answered in both orders",
        "first_share": f"no answer is {scale[0]} or {scale[1]}",
    }

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {
            "agreement": mean(weights, votes.cast & (winner == votes.truth)),
            "position_consistency": ratio(weights @ (both & same), weights @ both.astype(float)),
            "first_share": ratio(weights @ (chosen & (winner == 0)), weights @ chosen.astype(float)),
            **sure(weights),
        }

    return _measures(statistic, [item.resampled for item in items], resamples, seed, why)


def choice_metrics(
    items: Sequence[Item],
    scale: Sequence[str],
    *,
    calibration: Calibration | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> EvaluationMetrics:
    """`ece` and `brier` of a choice without order, each with its interval; {} of single draws.

    Raises ConfigError for an impossible scale and DataError for a truth that is not on it.
    """
    sure = confidence(count_votes(items, scale), distributions(items, scale, calibration))
    return _measures(sure, [item.resampled for item in items], resamples, seed, {})


def rater_ceiling(
    ratings: Mapping[str, Sequence[str]],
    scale: Sequence[str],
    *,
    values: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> EvaluationMetrics:
    """Measure how well raters agree with each other: a ceiling for a model, more or less.

    `ratings` are those of each item, in any order; what is off the scale is no rating, and items
    with less than two are left out. {} where none is left. Each rating counts once, intervals are by
    item, and of a rating are taken:

    ceiling_accuracy    the share of the item's other ratings that are equal: the same thing as a
                        model's accuracy where the truth is one rater's
    ceiling_mae         its distance from the mean of the others, in units of the scale's values
    ceiling_spearman    rank correlation with the mean of the others

    A truth that is the mean of many raters is steadier than one rater: a model may then be closer
    to it than these say. One against the mean of the others as in Snow et al. 2008, section 4.1, there
    with Pearson's correlation.

    >>> rater_ceiling({"a": ["1", "1"], "b": ["1", "3"]}, "123", resamples=0)["ceiling_accuracy"]
    0.5

    Raises ConfigError for an impossible scale.
    """
    worth = scale_values(scale, values)
    span = float(np.ptp(worth))
    unit = dict(zip(scale, ((worth - worth.min()) / span).tolist(), strict=True))  # 0 to 1
    given, others, equal, groups = [], [], [], []
    for name, answers in ratings.items():
        known = [unit[answer] for answer in answers if answer in unit]
        for index, rating in enumerate(known if len(known) > 1 else []):
            rest = known[:index] + known[index + 1 :]
            given.append(rating)
            others.append(math.fsum(rest) / len(rest))
            equal.append(rest.count(rating) / len(rest))
            groups.append(f"item {name}")
    if not given:
        return {}
    x, y = np.round(others, 12), np.round(given, 12)
    few = len(set(groups)) < 3

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {
            "ceiling_accuracy": mean(weights, np.array(equal)),
            "ceiling_mae": span * mean(weights, np.abs(x - y)),
            "ceiling_spearman": np.full(len(weights), np.nan)
            if few
            else correlations(weights, x, y)["spearman"],
        }

    reason = "fewer than 3 items with two ratings" if few else "all ratings are the same"
    return _measures(statistic, groups, resamples, seed, {"ceiling_spearman": reason})


def pass_at_k(num_draws: int, num_right: int, k: int) -> float:
    """Probability that at least one of k draws is right: unbiased, of independent draws.

    >>> pass_at_k(num_draws=4, num_right=1, k=2)
    0.5

    Raises ConfigError where these can't be counts. Source: Chen et al. 2021, arXiv 2107.03374, eq. 1.
    """
    if not (0 <= num_right <= num_draws and 1 <= k <= num_draws):
        raise ConfigError(
            f"pass@{k} of {num_draws} draws, {num_right} right: k is from 1 to the number of draws."
        )
    return 1 - math.comb(num_draws - num_right, k) / math.comb(num_draws, k)


# --- items as arrays


def count_votes(items: Sequence[Item], scale: Sequence[str]) -> Votes:
    """Votes and truths over the scale; an answer is matched as text.

    Raises ConfigError for a scale of fewer than two answers, or with one twice; DataError for a truth
    that is not on it.
    """
    position = {answer: index for index, answer in enumerate(scale)}
    if len(position) != len(scale) or len(scale) < 2:
        raise ConfigError(f"the scale is {list(scale)}: give two answers or more, all different.")
    counts = np.zeros((len(items), len(scale)))
    first = np.full((len(items), len(scale)), NEVER, np.int64)
    truth = np.zeros(len(items), np.int64)
    for row, item in enumerate(items):
        if item.truth not in position:
            raise DataError(f"item {row}: its truth {item.truth!r} is not on the scale {list(scale)}.")
        truth[row] = position[item.truth]
        for index, vote in enumerate(item.votes):
            if vote in position:
                counts[row, position[vote]] += 1
                first[row, position[vote]] = min(index, first[row, position[vote]])
    return Votes(counts, first, truth, several=any(len(item.votes) > 1 for item in items))


def distributions(
    items: Sequence[Item], scale: Sequence[str], calibrate: Calibration | None = None
) -> Floats:
    """Return the shares of votes on the scale for each item, or calibrated ones; [items, scale].

    Uniform where there is no vote.

    >>> distributions([Item("1", ("1", "1", "2", "")), Item("2", ("",))], "12").round(2).tolist()
    [[0.67, 0.33], [0.5, 0.5]]

    Raises ConfigError where the calibration is of another scale, and what `count_votes` raises.
    """
    votes = count_votes(items, scale)
    if calibrate is None:
        return votes.shares
    check_scale(calibrate, scale)
    return np.where(votes.cast[:, None], apply(calibrate, votes.shares), votes.shares)


def scale_values(scale: Sequence[str], values: Sequence[float] | None = None) -> Floats:
    """Return the value of each answer: as given, else the answers' numbers, else positions from 0.

    >>> scale_values(["0", "0.5", "1"]).tolist(), scale_values(["bad", "ok"]).tolist()
    ([0.0, 0.5, 1.0], [0.0, 1.0])

    Raises ConfigError where they are not one for each answer, not finite, or all the same.
    """
    numbers = np.array(_as_numbers(scale) if values is None else values, float)
    with np.errstate(all="ignore"):  # a range beyond all floats is refused below
        usable = numbers.shape == (len(scale),) and len(scale) > 0 and 0 < np.ptp(numbers) < math.inf
    if not usable:
        raise ConfigError(
            f"the scale {list(scale)} has the values {numbers.tolist()}: give one finite number "
            "for each answer, not all the same."
        )
    return numbers


def _as_numbers(scale: Sequence[str]) -> list[float]:
    positions = [float(position) for position in range(len(scale))]
    try:
        numbers = [float(answer) for answer in scale]
    except ValueError:
        return positions
    return numbers if all(map(math.isfinite, numbers)) else positions


def most_likely(weights: Floats, first: Ints) -> Ints:
    """The position of each row's largest weight, of equal ones that of the first vote; [items]."""
    largest = weights >= weights.max(axis=1, keepdims=True) - 1e-12
    position: Ints = np.where(largest, first, 2 * NEVER).argmin(axis=1)
    return position


def _orders(
    items: Sequence[Item], winner: Ints, cast: npt.NDArray[np.bool_], swapped: Sequence[bool]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the pairs with an answer in both orders, one item each, and where both orders agree."""
    if len(swapped) != len(items):
        raise DataError(f"{len(items)} items, but {len(swapped)} orders: give one for each.")
    response = np.where(np.array(swapped, bool) & (winner < 2), 1 - winner, winner)
    seen: dict[tuple[str, bool], int] = {}
    for row, (item, other_way) in enumerate(zip(items, swapped, strict=True)):
        if item.group and seen.setdefault((item.group, bool(other_way)), row) != row:
            raise DataError(f"pair {item.group!r} is there twice in the same order: ids are unique.")
    both, same = np.zeros(len(items), bool), np.zeros(len(items), bool)
    for (group, other_way), row in seen.items():
        twin = seen.get((group, True))
        if not other_way and twin is not None and cast[row] and cast[twin]:
            both[row], same[row] = True, response[row] == response[twin]
    return both, same


# --- measures of weighted items; weights are [resamples, items], results [resamples]


def confidence(votes: Votes, probabilities: Floats) -> Statistic:
    """A statistic of how well probabilities [items, scale] are calibrated; of single draws, of nothing.

    ece     expected calibration error: mean of |confidence - accuracy| over ten bins of confidence of
            equal width, weighted by items; confidence is that in the most likely answer, accuracy the
            share where it is the truth. Biased upwards in small samples, and more so in resamples:
            its interval lies high (Guo et al. 2017, arXiv 1706.04599, eq. 3).
    brier   mean over items of the sum over answers of (p - [it is the truth])^2, from 0 to 2
            (Brier 1950)

    Items without a vote are left out.
    """
    if not votes.several:
        return lambda weights: {}
    cast = votes.cast
    p = probabilities[cast]
    errors = calibration_errors(p, votes.truth[cast], most_likely(p, votes.first[cast]))
    return lambda weights: errors(weights[:, cast])


def calibration_errors(p: Floats, truth: Ints, top: Ints | None = None) -> Statistic:
    """`ece` and `brier`, as `confidence` has them, of probabilities p [items, scale] of all items.

    `top` are the positions of the most likely answers, the first of equals by default.
    """
    top = p.argmax(axis=1) if top is None else top
    rows = np.arange(len(p))
    sure = p[rows, top]
    bins = np.maximum(np.ceil((sure * NUM_BINS).round(9)).astype(int) - 1, 0)  # (0.8, 0.9] is one
    excess = np.zeros((len(p), NUM_BINS))
    excess[rows, bins] = sure - (top == truth)
    squares = ((p - np.eye(p.shape[1])[truth]) ** 2).sum(axis=1)

    def statistic(weights: Floats) -> dict[str, Floats]:
        error = np.abs(weights @ excess).sum(axis=1)
        return {"ece": ratio(error, weights.sum(axis=1)), "brier": mean(weights, squares)}

    return statistic


def _measures(
    statistic: Statistic, groups: Sequence[str], resamples: int, seed: int, why: Mapping[str, str]
) -> EvaluationMetrics:
    """Return measures with their bootstrap intervals; `why` are reasons where one is undefined."""
    found = summary(bootstrap(statistic, groups, resamples, seed), why)
    return typing.cast(EvaluationMetrics, found)


def _why_undefined(ratings: Floats, predictions: Floats) -> dict[str, str]:
    """Return why measures may be undefined, by measure; ratings with a vote only."""
    if len(ratings) == 0:
        return {}  # summary's own
    if len(ratings) < 3:
        reason = "fewer than 3 items with a vote"
    elif np.ptp(ratings) == 0:
        reason = "all ratings are the same"
    else:
        reason = "all predictions are the same"
    return dict.fromkeys(("kappa", *CORRELATIONS), reason)
