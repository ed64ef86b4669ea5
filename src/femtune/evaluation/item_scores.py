"""Scores of single items, from stored evaluations, to compare models on the same items.

    iteration-000/scores.json   {"ls score": {"hs-1": 1.0, "hs-2": 0.0}}: baselines of several rows

`paired` has the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from femtune._util.parsing import Unreadable, read_json
from femtune.data.problems import load_problems
from femtune.errors import RunError
from femtune.evaluation.answer_metrics import judged_by_probabilities
from femtune.evaluation.evaluate import as_item, group_of, is_right, vote_is_right
from femtune.evaluation.paired import RESAMPLES, PairedDifference, paired_difference
from femtune.evaluation.scored_answers import Scored, of_draws
from femtune.runs.draws import by_problem, drawn
from femtune.types import Draw, Problem

FILE = "scores.json"

Scores = Mapping[str, float]  # by problem
BySeed = Mapping[int, Scores]


def item_scores(
    draws: Sequence[Draw], problems: Mapping[str, Problem], *, by_vote: bool = False
) -> dict[str, float]:
    """Return the score of each problem: the share of its draws that are right; without an answer, 0.

    With `by_vote` it is 1 if the most frequent answer is right, else 0. The mean is an evaluation's
    `accuracy`, or `majority_accuracy`. Problems without a draw, and draws of other problems, are left
    out.
    """
    found: dict[str, float] = {}
    for problem_id, own in by_problem(draws):
        if problem_id not in problems:
            continue
        hits = [is_right(draw) for draw in own]
        item = as_item(problems[problem_id], own)
        found[problem_id] = float(vote_is_right(item, hits)) if by_vote else fmean(hits)
    return found


def probability_scores(
    draws: Sequence[Draw], problems: Mapping[str, Problem], scored: Scored
) -> dict[str, float]:
    """Return 1 for each problem whose likeliest answer over its draws is right, else 0.

    The mean is the `accuracy` of `side_by_side` by probabilities.
    """
    found = [
        judged_by_probabilities(problems[problem_id], of_draws(scored, own))
        for problem_id, own in by_problem(draws)
    ]
    return {each.problem.id: float(each.answer == each.problem.answer) for each in found}


def stored_scores(
    root: Path, iteration: int, *, by_vote: bool = False, kind: str = "eval"
) -> dict[str, dict[str, float]]:
    """Return the scores of an iteration's held-out evaluation, by row; "" names the only row.

    `kind` "eval_demos" is the base's with worked examples. Returns {} for a run that does not have
    them, such as one of an older femtune. Raises RunError for a damaged file.
    """
    folder = root / f"iteration-{iteration:03}"
    if (folder / FILE).exists():
        try:
            rows: dict[str, dict[str, float]] = read_json(folder / FILE)
        except Unreadable as error:
            raise RunError(f"{folder / FILE} {error}. See `femtune verify {root}`.") from error
        return rows
    if not (root / "eval.parquet").exists() or not (folder / kind).is_dir():
        return {}
    problems = held_out_problems(root)
    scores: dict[str, float] = {}
    for chunk in drawn(folder / kind):  # a problem's draws are in one chunk
        scores |= item_scores(chunk, problems, by_vote=by_vote)
    return {"": scores}


def held_out_problems(root: Path) -> dict[str, Problem]:
    """Return a run's held-out problems by id."""
    return {problem.id: problem for problem in load_problems(root / "eval.parquet")}


def compare_scores(
    a: BySeed, b: BySeed, groups: Mapping[str, str], *, resamples: int = RESAMPLES
) -> PairedDifference | None:
    """Return the paired difference of two rows over all items of all seeds that both have.

    Seeds may hold out different items. A row of one seed, such as a deterministic one, is compared with
    each seed of the other that has the same items. An item counts in each of its seeds, and all of
    that is one cluster: `groups` names a problem's, "" is its own. Returns None if nothing is shared.
    """
    pairs = [(own, other) for own, other in _seeds(a, b) if own.keys() == other.keys() and own]
    if not pairs:
        return None
    first = [own[name] for own, _ in pairs for name in own]
    second = [other[name] for own, other in pairs for name in own]
    names = [groups.get(name) or f"problem {name}" for own, _ in pairs for name in own]
    found = paired_difference(first, second, names, resamples=resamples)
    by_seed = [fmean(own.values()) - fmean(other.values()) for own, other in pairs]
    return replace(
        found,
        num_items=len({name for own, _ in pairs for name in own}),
        seed_spread=stdev(by_seed) if len(by_seed) > 1 else None,
    )


def _seeds(a: BySeed, b: BySeed) -> list[tuple[Scores, Scores]]:
    """Return the scores of both rows for each seed; a row's only seed stands beside all of the other."""
    if len(a) == 1 or len(b) == 1:
        return [(own, other) for own in a.values() for other in b.values()]
    return [(a[seed], b[seed]) for seed in sorted({*a} & {*b})]


def compare_iterations(root: Path, iteration: int, other: int = 0) -> PairedDifference | None:
    """Return the held-out difference between two iterations of a run, by default to the base.

    Returns None where one of them was not evaluated.
    """
    a, b = (stored_scores(root, number).get("") for number in (iteration, other))
    if not a or not b or a.keys() != b.keys():
        return None
    groups = {name: group_of(problem) for name, problem in held_out_problems(root).items()}
    return compare_scores({0: a}, {0: b}, groups)


def describe_difference(found: PairedDifference) -> str:
    """Return a difference in words: "+0.120 (0.051 to 0.189), p = 0.001".

    >>> describe_difference(paired_difference([1, 1, 1, 0], [1, 1, 1, 0]))
    '+0.000 (0.000 to 0.000), p = 1.000'
    """
    p = f"p = {found.p_value:.3f}" if found.p_value >= 0.001 else "p < 0.001"
    return f"{found.difference:+.3f} ({found.low:.3f} to {found.high:.3f}), {p}"
