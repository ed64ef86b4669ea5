"""The models that a report compares: the base, baselines and each scheme, as means over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from statistics import fmean
from typing import Literal

from femtune.errors import FemtuneError
from femtune.evaluation.bootstrap import Estimate, half_width
from femtune.evaluation.differences import Difference, differences
from femtune.evaluation.evaluate import group_of
from femtune.evaluation.item_scores import Scores, held_out_problems, stored_scores
from femtune.metric_types import EvaluationMetrics, Part, interval, measure
from femtune.reporting.page.record import BY_VOTE, Found, Group, Record

Kind = Literal["base", "baseline", "scheme"]
BASE = "the base"


@dataclass(frozen=True)
class Measure:
    """An evaluation measure that the report shows."""

    name: str  # in metrics.json
    title: str
    is_share: bool = True
    low_is_good: bool = False
    _: KW_ONLY
    least: float = 0.0  # the lowest possible value
    most: float = 1.0

    def text(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self.is_share else f"{value:.3f}"


MEASURES = (
    Measure("accuracy", "accuracy"),
    Measure("majority_accuracy", "accuracy of the vote"),
    Measure("agreement", "agreement with the human"),
    Measure("position_consistency", "same choice in both orders"),
    Measure("spearman", "Spearman correlation", is_share=False, least=-1.0),
    Measure("kappa", "quadratic-weighted kappa", is_share=False, least=-1.0),
    Measure("mae", "mean absolute error", is_share=False, low_is_good=True, most=math.inf),
    Measure("within_one_percent", "number within 1%"),
    Measure(
        "median_relative_error",
        "median relative error",
        is_share=False,
        low_is_good=True,
        most=math.inf,
    ),
    Measure("ece", "calibration error of the vote", is_share=False, low_is_good=True),
    Measure("sound_steps", "sound steps"),
    Measure("answered", "draws with an answer"),
    Measure("forced_share", "draws with a forced answer", low_is_good=True),
    Measure("truncated_share", "truncated draws", low_is_good=True),
)
# a measure that always has this value is left out
USUAL = {"answered": 1.0, "forced_share": 0.0, "truncated_share": 0.0}


KEPT = Measure("kept_share", "problems with a kept rationale")
COVERED = Measure("covered_share", "problems with a right rationale, remembered ones included")
# of schemes that compute log-probabilities of answers after rationales: see answer_rules.py
ANSWERS = (
    Measure("expected_right", "probability of the correct answer after a draw's rationale"),
    Measure("reasons_share", "right draws whose rationale leads to the answer"),
    Measure(
        "reasons_logprob",
        "what rationales add to log p(y* | x), nats",
        is_share=False,
        least=-math.inf,
        most=math.inf,
    ),
)
LOSS = Measure(
    "loss", "loss of the M-step, nats a token", is_share=False, low_is_good=True, most=math.inf
)
# of the likelihood bound: see evaluation/likelihood_bound.py
POSTERIOR = (
    Measure(
        "bound", "bound on the log-likelihood, nats", is_share=False, least=-math.inf, most=math.inf
    ),
    Measure("ess_share", "effective share of hinted draws"),
    Measure(
        "leak_logprob",
        "what hints give away, nats",
        is_share=False,
        low_is_good=True,
        least=-math.inf,
        most=math.inf,
    ),
)
BOUNDS = {
    measure.name: (measure.least, measure.most)
    for measure in (*MEASURES, KEPT, COVERED, *ANSWERS, LOSS, *POSTERIOR)
}


@dataclass(frozen=True)
class Contender:
    """One line of the comparison."""

    label: str
    kind: Kind
    evaluations: tuple[
        EvaluationMetrics, ...
    ]  # one per seed; for the base, one per run that measured it
    iteration: int  # the lowest shown iteration among its runs
    group: Group

    def estimate(self, measure: str) -> Estimate | None:
        return pooled(self.evaluations, measure)

    @property
    def num_seeds(self) -> int:
        return len(self.evaluations)

    @property
    def num_problems(self) -> int:
        return max(int(metrics.get("num_problems") or 0) for metrics in self.evaluations)


@dataclass(frozen=True)
class Point:
    """A measure at one iteration."""

    iteration: int
    estimate: Estimate
    num_seeds: int


def pooled(evaluations: Sequence[Mapping[str, object]], name: str) -> Estimate | None:
    """Return one run's measure with its own interval, or the mean of several with Student's interval.

    Returns None if a run lacks the measure: a mean of the others would be biased upwards. Equal values,
    such as those of a greedy base, keep the interval over problems. Student's interval is clipped.
    """
    numbers = [value for each in evaluations if (value := measure(each, name)) is not None]
    if not numbers or len(numbers) < len(evaluations) or not all(map(math.isfinite, numbers)):
        return None
    if len({*numbers}) == 1:
        return Estimate(numbers[0], interval(evaluations[0], name))
    middle, half = fmean(numbers), half_width(numbers)
    least, most = BOUNDS.get(name, (-math.inf, math.inf))
    return Estimate(middle, (max(least, middle - half), min(most, middle + half)))


def contenders(found: Found) -> list[Contender]:
    """Return the base, the baselines and the schemes that have an evaluation."""
    made = []
    schemes = [group for group in found.schemes if any(run.evaluations() for run in group.runs)]
    for group in schemes[:1]:
        bases = [run.evaluations()[0] for run in group.runs if 0 in run.evaluations()]
        if bases:
            made.append(Contender(BASE, "base", tuple(bases), 0, group))
    for group in found.groups:
        # a ladder has the base as a run of its own too
        if group.is_baseline and not (made and group.runs[0].scheme == "base"):
            made += _baselines(group)
    for group in schemes:
        shown = [_shown(run) for run in group.runs if any(run.evaluations())]  # beyond the base's, 0
        if shown:
            iteration = min(number for number, _ in shown)
            made.append(Contender(group.label, "scheme", tuple(m for _, m in shown), iteration, group))
    return made


def compare_all(found: Found) -> Sequence[Difference]:
    """Return each line's difference to the base and to the best one, of those with stored draws.

    Runs whose draws can't be read are left out: the report says so where it shows draws.
    """
    scores: dict[str, dict[int, Scores]] = {}
    groups: dict[str, str] = {}
    for group in found.groups:
        for run in group.runs:
            if not run.evaluations() or not (run.root / "eval.parquet").exists():
                continue
            try:
                shown = run.shown_iteration
                rows = stored_scores(run.root, shown, by_vote=run.scheme in BY_VOTE)
                problems = held_out_problems(run.root).items()
                base = {} if run.is_baseline or not shown else stored_scores(run.root, 0)
            except FemtuneError:
                continue
            groups |= {name: group_of(problem) for name, problem in problems}
            for name, own in rows.items():
                label = f"{group.label}, {name}" if name else group.label
                is_base = run.scheme == "base" or (not shown and not run.is_baseline)
                scores.setdefault(BASE if is_base else label, {})[run.seed] = own
            for own in base.values():
                scores.setdefault(BASE, {}).setdefault(run.seed, own)
    return differences(scores, groups, BASE)


def _shown(run: Record) -> tuple[int, EvaluationMetrics]:
    number = run.shown_iteration
    return number, run.evaluations()[number]


def _baselines(group: Group) -> list[Contender]:
    """Return a baseline's lines from its last evaluation; a regression has several."""
    by_name: dict[str, list[EvaluationMetrics]] = {}
    for run in group.runs:
        measured = [each for each in run.history if each.get("evaluation") or each.get("evaluations")]
        for metrics in measured[-1:]:
            kinds = metrics.get("evaluations")
            if isinstance(kinds, dict):
                for kind, own in kinds.items():
                    by_name.setdefault(f"{group.label}, {kind}", []).append(own)
            else:
                by_name.setdefault(group.label, []).append(metrics["evaluation"])
    return [Contender(label, "baseline", tuple(own), 0, group) for label, own in by_name.items()]


def course(group: Group, name: str, part: Part = "evaluation") -> list[Point]:
    """Return a measure by iteration, from the evaluation, or from "e_step" or "m_step"."""
    numbers = sorted({m["iteration"] for run in group.runs for m in run.history if m.get(part)})
    points = []
    for number in numbers:
        own = [
            m[part]
            for run in group.runs
            for m in run.history
            if m["iteration"] == number and m.get(part)
        ]
        estimate = pooled(own, name)
        if estimate is not None:
            points.append(Point(number, estimate, len(own)))
    return points


def best(found: Sequence[Contender], kind: Kind, measure: str = "accuracy") -> Contender | None:
    """Return the contender of a kind with the highest measure; the first one on a tie."""
    known = [(own.value, each) for each in found if each.kind == kind if (own := each.estimate(measure))]
    return max(known, key=lambda pair: pair[0] or 0.0)[1] if known else None
