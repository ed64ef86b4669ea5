"""Measures of distributions over answers, made from votes and from probabilities, side by side.

    {"by_votes": {"accuracy": 0.61, "log_likelihood": -1.2, ...}, "by_probabilities": {...}}

Both are of the same draws and of all items, so that they can be compared. An item without a vote has a
uniform distribution; it is wrong in `accuracy`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from femtune.data.tasks.frames import frame
from femtune.estep.answer_probs import AnswerLogprobs, closed_set
from femtune.evaluation.aggregate import Shares, likeliest, mean_shares
from femtune.evaluation.bootstrap import Floats, Statistic, bootstrap, correlations, mean, summary
from femtune.evaluation.calibration_map import Calibration, apply
from femtune.evaluation.evaluate import as_item, group_of
from femtune.evaluation.metrics import calibration_errors, scale_values
from femtune.evaluation.scored_answers import Scored, of_draws
from femtune.metric_types import BothWays, EvaluationMetrics
from femtune.runs.draws import by_problem
from femtune.types import Draw, Problem

Chunks = Iterable[tuple[Sequence[Draw], Mapping[str, float]]]  # draws, and their seconds


@dataclass(frozen=True)
class Judged:
    """A distribution over the answers of a problem, beside its correct answer."""

    problem: Problem
    shares: Shares
    answer: str  # the one that is given; "" for none
    chance: float  # the probability of the correct answer, for the log-likelihood


def side_by_side(
    problems: Mapping[str, Problem],
    stored: Chunks,
    scored: Scored,
    calibration: Calibration | None = None,
) -> BothWays:
    """Measures by votes and by probabilities, of stored draws; see `distribution_metrics`.

    "calibrated" is added under a calibration: the same measures of what it maps. {} where nothing was
    scored.
    """
    votes, probabilities = [], []
    for chunk, _ in stored:
        for problem_id, draws in by_problem(chunk):
            problem = problems[problem_id]
            if closed_set(problem):
                votes.append(judged_by_votes(problem, draws))
                probabilities.append(judged_by_probabilities(problem, of_draws(scored, draws)))
    if not scored:
        return {}
    made: BothWays = {
        "by_votes": distribution_metrics(votes),
        "by_probabilities": distribution_metrics(probabilities),
    }
    if calibration is not None:
        raw = votes if calibration.of == "votes" else probabilities
        made["calibrated"] = distribution_metrics([_mapped(each, calibration) for each in raw])
    return made


def judged_by_votes(problem: Problem, draws: Sequence[Draw]) -> Judged:
    """Make shares of votes; for the log-likelihood, one more vote is spread evenly over the answers."""
    answers = closed_set(problem)
    counts = Counter(filter(None, as_item(problem, draws).votes))
    total = counts.total()
    shares = {a: counts[a] / total if total else 1 / len(answers) for a in answers}
    winner = counts.most_common(1)[0][0] if counts else ""
    chance = (counts[problem.answer] + 1 / len(answers)) / (total + 1)
    return Judged(problem, shares, winner, chance)


def judged_by_probabilities(problem: Problem, found: Sequence[AnswerLogprobs]) -> Judged:
    """Make the mean of the probabilities after several rationales; uniform of none."""
    answers = closed_set(problem)
    shares = mean_shares(found)
    if shares is None:
        return Judged(problem, dict.fromkeys(answers, 1 / len(answers)), "", 1 / len(answers))
    return Judged(problem, shares, likeliest(shares), shares[problem.answer])


def _mapped(judged: Judged, calibration: Calibration) -> Judged:
    row = apply(calibration, np.array([[*judged.shares.values()]]))[0].tolist()
    shares = dict(zip(judged.shares, row, strict=True))
    answer = judged.answer and likeliest(shares)
    return Judged(judged.problem, shares, answer, shares[judged.problem.answer])


def distribution_metrics(judged: Sequence[Judged]) -> EvaluationMetrics:
    """Measures of distributions, each `m` with its bootstrap interval `m_ci`.

    accuracy            share of problems whose likeliest answer is the correct one
    log_likelihood      mean log-probability of the correct answer, nats; of votes, with one more vote
                        spread evenly over the answers, as a share may be 0
    ece, brier          see `metrics.confidence`; of all problems
    mae                 of ratings: mean distance of the expected rating from the correct one
    pearson, spearman, kendall      of ratings: correlation of the expected rating with the correct one
    """
    sizes = [len(each.shares) for each in judged]
    p = np.zeros((len(judged), max(sizes, default=1)))  # fewer choices: the rest has no chance
    for row, each in enumerate(judged):
        p[row, : sizes[row]] = [*each.shares.values()]
    truth = np.array([[*each.shares].index(each.problem.answer) for each in judged], np.int64)
    right = np.array([each.answer == each.problem.answer for each in judged])
    with np.errstate(divide="ignore"):
        chances = np.log(np.array([each.chance for each in judged]))
    errors = calibration_errors(p, truth)
    is_possible = bool(np.isfinite(chances).all())
    known = frame(judged[0].problem) if judged else None
    same_scale = len({(*each.shares,) for each in judged}) == 1
    is_rating = known is not None and known.form == "rating"
    ratings = _of_ratings(judged, p) if is_rating and same_scale else None

    def statistic(weights: Floats) -> dict[str, Floats]:
        none = np.full(len(weights), np.nan)
        return {
            "accuracy": mean(weights, right),
            "log_likelihood": mean(weights, chances) if is_possible else none,
            **errors(weights),
            **(ratings(weights) if ratings else {}),
        }

    why = {"log_likelihood": "a correct answer has no chance"}
    same = "all ratings or all predictions are the same"
    why |= dict.fromkeys(("pearson", "spearman", "kendall"), same)
    found = summary(bootstrap(statistic, [group_of(each.problem) for each in judged]), why)
    return cast(EvaluationMetrics, found)


def _of_ratings(judged: Sequence[Judged], p: Floats) -> Statistic:
    worth = scale_values([*judged[0].shares])
    actual = worth[[[*each.shares].index(each.problem.answer) for each in judged]].round(12)
    expected = (p @ worth).round(12)

    def statistic(weights: Floats) -> dict[str, Floats]:
        gaps = mean(weights, np.abs(expected - actual))
        return {"mae": gaps, **correlations(weights, expected, actual)}

    return statistic
