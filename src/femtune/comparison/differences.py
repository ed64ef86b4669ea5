"""Differences between the rows of a comparison, from the runs' stored evaluations."""

from __future__ import annotations

from collections.abc import Mapping

from femtune.comparison.compare import Job
from femtune.evaluation.differences import BASE, Difference, differences
from femtune.evaluation.evaluate import group_of
from femtune.evaluation.item_scores import BySeed, Scores, held_out_problems, stored_scores
from femtune.metric_types import History
from femtune.runs.checkpoints import best_of


def stored_differences(histories: Mapping[Job, History]) -> list[Difference]:
    """Return each row's difference to the base, then to the best row; of rows with stored scores.

    A row that kept nothing in a seed has no difference, as it has no mean.
    """
    return differences(*_scores(histories))


def _scores(histories: Mapping[Job, History]) -> tuple[dict[str, BySeed], dict[str, str]]:
    """Return the scores of each row by seed and problem, and the cluster of each problem."""
    found: dict[str, dict[int, Scores]] = {}
    groups: dict[str, str] = {}
    empty = {job.scheme for job, history in histories.items() if "nothing_kept" in history[-1]}
    for job, history in histories.items():
        if job.scheme in empty or not (job.output_dir / "eval.parquet").exists():
            continue
        iteration = best_of(history) if job.iterates else history[-1]["iteration"]
        rows = stored_scores(job.output_dir, iteration, by_vote=job.scheme == "votes")
        for name, own in rows.items():
            found.setdefault(name or job.scheme, {})[job.seed] = own
        if not job.is_baseline:
            for own in stored_scores(job.output_dir, 0).values():
                found.setdefault(BASE, {}).setdefault(job.seed, own)
        problems = held_out_problems(job.output_dir).items()
        groups |= {name: group_of(problem) for name, problem in problems}
    return {**found}, groups
