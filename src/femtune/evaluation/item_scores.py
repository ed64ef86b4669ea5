"""A score from 0 to 1 for each problem of an evaluation, whose mean is the evaluation's accuracy.

What compares two models on the same problems takes these: see `paired`.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from femtune.evaluation.answer_metrics import judged_by_probabilities
from femtune.evaluation.evaluate import Stored, as_item, is_right, wins_vote
from femtune.evaluation.scored_answers import Scored, of_draws
from femtune.runs.draws import by_problem
from femtune.types import Problem

Scores = dict[str, float]  # by id of the problem


def draw_scores(stored: Stored) -> Scores:
    """Return the share of each problem's draws that are right: its part in `accuracy`."""
    return {
        name: fmean(map(is_right, draws)) for chunk, _ in stored for name, draws in by_problem(chunk)
    }


def vote_scores(problems: Mapping[str, Problem], stored: Stored) -> Scores:
    """Return 1 for problems whose most frequent answer is right: its part in `majority_accuracy`."""
    return {
        name: float(wins_vote([*map(is_right, draws)], as_item(problems[name], draws).votes))
        for chunk, _ in stored
        for name, draws in by_problem(chunk)
    }


def probability_scores(problems: Mapping[str, Problem], stored: Stored, scored: Scored) -> Scores:
    """Return 1 for problems whose likeliest answer over its draws is right: see `side_by_side`."""
    found = {
        name: judged_by_probabilities(problems[name], of_draws(scored, draws))
        for chunk, _ in stored
        for name, draws in by_problem(chunk)
    }
    return {name: float(each.answer == each.problem.answer) for name, each in found.items()}
