"""What an E-step kept, by group; and weights that put back what it thinned out.

The filter keeps what the model gets right, which is the easy and the middling: a judge that is trained
on that drifts to the most frequent human score. `kept_by` and `kept_scores` show it, `balance_factors`
corrects the answers' part of it: weights by y*, as in inverse-propensity weighting.

A share is of problems with an accepted draw, 0 to 1; its interval is Wilson's of 95%, which takes the
problems as independent.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from femtune.data.tasks.frames import frame
from femtune.evaluation.bootstrap import Floats, bootstrap, mean, ratio, summary
from femtune.evaluation.metrics import scale_values
from femtune.metric_types import EStepMetrics, KeptBy, KeptScores, KeptShare
from femtune.runs.draws import by_problem
from femtune.schemes.filters import weigh
from femtune.types import Balance, Draw, Problem, Rule

Outcome = tuple[Problem, bool]  # a problem, and whether a draw of it was accepted

MAX_GROUPS = 12  # of a kind: 1 to 10 and 0 to 10 are scales that are in use
MAX_FACTOR = 5.0  # a rare answer's few rationales must not be most of what is learned
_Z = 1.959964  # of 95%, two-sided


def outcomes(folder: Path, problems: Mapping[str, Problem]) -> list[Outcome]:
    """The problems that a folder of draws asked, and whether each was solved; reads two columns."""
    solved: dict[str, bool] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(pa.memory_map(str(path)), columns=["problem_id", "reason"])
        ids, reasons = (column.to_pylist() for column in table.columns)
        for problem_id, reason in zip(ids, reasons, strict=True):
            solved[problem_id] = solved.get(problem_id, False) or reason == ""
    return [(problems[problem_id], kept) for problem_id, kept in solved.items()]


# --- kept shares


def kept_metrics(asked: Sequence[Outcome]) -> EStepMetrics:
    """Return what was kept by group and by score, as it is stored; without what does not apply."""
    made: EStepMetrics = {}
    if by := kept_by(asked):
        made["kept_by"] = by
    if scores := kept_scores(asked):
        made["kept_scores"] = scores
    return made


def kept_by(asked: Sequence[Outcome]) -> KeptBy:
    """Return each group's `kept_share`, its interval and `num_problems`, by kind of group.

    answer      the human's, y*
    length      of ratings: a quarter of the problems each, by words of what is judged
    preferred   of pairs: whether the human preferred the longer text
    source      the column of that name, else `policy`, `attribute` and `rater`, where they are there

    Of a kind the rarest groups are one, "others", so that there are 12 at most. A kind of a single
    group is left out, and so is one whose "others" are most of the problems.
    """
    problems = [problem for problem, _ in asked]
    made: KeptBy = {}
    for kind, names in _kinds(problems).items() if problems else ():
        groups: dict[str, list[bool]] = defaultdict(list)
        for name, (_, kept) in zip(_merged(names), asked, strict=True):
            groups[name].append(kept)
        if len(groups) > 1 and 2 * len(groups.get("others", ())) <= len(asked):
            made[kind] = {name: _share(groups[name]) for name in sorted(groups, key=_place)}
    return made


def _share(kept: Sequence[bool]) -> KeptShare:
    share, ci = sum(kept) / len(kept), list(wilson(sum(kept), len(kept)))
    return {"kept_share": share, "kept_share_ci": ci, "num_problems": len(kept)}


def wilson(hits: int, num: int) -> tuple[float, float]:
    """The 95% interval of a share, `hits` of `num` > 0.

    >>> [round(end, 3) for end in wilson(0, 10)], [round(end, 3) for end in wilson(5, 10)]
    ([0.0, 0.278], [0.237, 0.763])

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    middle = (hits + _Z**2 / 2) / (num + _Z**2)
    half = _Z / (num + _Z**2) * math.sqrt(hits * (num - hits) / num + _Z**2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _kinds(problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Return the group of each problem, by kind of group."""
    kinds = {"answer": [problem.answer for problem in problems]}
    frames = [frame(problem) for problem in problems]
    if all(known and known.form == "rating" for known in frames):
        kinds["length"] = _quarters([known.length for known in frames if known])
    if all(known and known.form == "pair" for known in frames):
        kinds["preferred"] = [_preferred(problem) for problem in problems]
    columns = {name for problem in problems for name in problem.columns}
    for name in ["source"] if "source" in columns else ["policy", "attribute", "rater"]:
        if name in columns:
            kinds[name] = [str(problem.columns.get(name) or "none") for problem in problems]
    return kinds


def _quarters(lengths: Sequence[float]) -> list[str]:
    """The quarter that each length is in, named by the lengths that it holds; equal ones share one."""
    values = np.array(lengths)
    quarter = np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values)
    held = {number: values[quarter == number] for number in {*quarter.tolist()}}
    names = {number: f"{own.min():g} to {own.max():g} words" for number, own in held.items()}
    return [names[number] for number in quarter.tolist()]


def _preferred(problem: Problem) -> str:
    known = frame(problem)
    if known is None or problem.answer not in known.scale[:2]:
        return "neither"
    longer = known.length if problem.answer == known.scale[1] else -known.length
    return "the longer" if longer > 0 else "the shorter" if longer < 0 else "of two as long"


def _merged(names: Sequence[str]) -> list[str]:
    counts = Counter(names).most_common()
    rare = {name for name, _ in counts[MAX_GROUPS - 1 :]} if len(counts) > MAX_GROUPS else set()
    return ["others" if name in rare else name for name in names]


def _place(name: str) -> tuple[bool, float, str]:
    """By the number that a name begins with, then by name; "others" comes last."""
    try:
        number = float(name.split()[0])
    except (ValueError, IndexError):
        number = math.inf
    return name == "others", number, name


# --- the shift of human scores


def kept_scores(asked: Sequence[Outcome]) -> KeptScores:
    """Return, for ratings, the human scores of all problems and of kept ones; elsewhere {}.

    score_mean, score_sd            of all problems; in units of the scale's values
    kept_score_mean, kept_score_sd  of those that are kept
    mode, mode_share, kept_mode_share   the most frequent score, and how frequent it is
    mean_shift, sd_shift, mode_shift    kept less all: a falling spread and a rising mode are a drift to
                                        the middle

    Each with its bootstrap interval by item (see `bootstrap.bootstrap`).
    """
    frames = [frame(problem) for problem, _ in asked]
    if not asked or not all(known and known.form == "rating" for known in frames):
        return {}
    scale = next(known.scale for known in frames if known)
    worth = dict(zip(scale, scale_values(scale).tolist(), strict=True))
    scores = np.array([worth[problem.answer] for problem, _ in asked])
    kept = np.array([solved for _, solved in asked], float)
    mode = Counter(problem.answer for problem, _ in asked).most_common(1)[0][0]
    at_mode = scores == worth[mode]

    def statistic(weights: Floats) -> dict[str, Floats]:
        made = {}
        for name, now in (("", weights), ("kept_", weights * kept)):
            middle = mean(now, scores)
            made[f"{name}score_mean"] = middle
            # of the squares less that of the mean, which rounding may take below 0
            made[f"{name}score_sd"] = np.sqrt(np.maximum(mean(now, scores**2) - middle**2, 0))
            made[f"{name}mode_share"] = ratio(now @ at_mode.astype(float), now.sum(axis=1))
        for name, measure in (("mean", "score_mean"), ("sd", "score_sd"), ("mode", "mode_share")):
            made[f"{name}_shift"] = made[f"kept_{measure}"] - made[measure]
        return made

    groups = [known.item for known in frames if known]
    why = dict.fromkeys(statistic(np.ones((1, len(scores)))), "no problem was kept")
    return cast(KeptScores, {"mode": mode, **summary(bootstrap(statistic, groups), why)})


# --- balance


@dataclass(frozen=True)
class Weighed:
    """Weights that a rule gives an E-step's draws, by human answer."""

    num_problems: Mapping[str, int]
    num_examples: Mapping[str, int]
    weight: Mapping[str, float]


def weighed(chunks: Iterable[Sequence[Draw]], problems: Mapping[str, Problem], rule: Rule) -> Weighed:
    """Examples and their total weight by human answer; holds one chunk at a time."""
    num_problems: Counter[str] = Counter()
    num_examples: Counter[str] = Counter()
    weight: dict[str, float] = defaultdict(float)
    for draws in chunks:
        for problem_id, scoring in by_problem(draws):
            answer, examples = problems[problem_id].answer, weigh(rule, scoring)
            num_problems[answer] += 1
            num_examples[answer] += len(examples)
            weight[answer] += math.fsum(example.weight for example in examples)
    return Weighed(num_problems, num_examples, weight)


@dataclass(frozen=True)
class Factors:
    """Factors by which each human answer's examples are multiplied."""

    by_answer: Mapping[str, float]
    clipped: tuple[str, ...] = ()  # answers whose factor is the most that there is

    def metrics(self) -> EStepMetrics:
        """As it is stored: `balance`, factors by answer, and `balance_clipped` where there are any.

        Of more than 50 answers, the least and the largest factor alone.
        """
        shown = dict(self.by_answer)
        if len(shown) > 50:
            shown = {"least": min(shown.values()), "largest": max(shown.values())}
        made: EStepMetrics = {"balance": shown} if shown else {}
        if self.clipped:
            made["balance_clipped"] = list(self.clipped)
        return made


def balance_factors(found: Weighed, balance: Balance, max_factor: float = MAX_FACTOR) -> Factors:
    """Factors by which the weight of each human answer becomes what `balance` says.

    data        its share of the problems: each example by the inverse of its answer's acceptance
    uniform     the same for every answer that was kept at all
    none        as it is: no factors

    The mean weight stays what it was. No factor is above `max_factor`; what that cuts off goes to the
    other answers alike. An answer of which nothing was kept can't be put back.

    >>> found = Weighed({"1": 50, "3": 50}, {"1": 10, "3": 30}, {"1": 10.0, "3": 30.0})
    >>> {y: round(factor, 3) for y, factor in balance_factors(found, "data").by_answer.items()}
    {'1': 2.0, '3': 0.667}

    Source: Horvitz & Thompson 1952, doi 10.1080/01621459.1952.10483446.
    """
    weight = {answer: found.weight[answer] for answer in sorted(found.weight, key=_place)}
    weight = {answer: total for answer, total in weight.items() if total > 0}
    if balance == "none" or not weight:
        return Factors({})
    wanted = {answer: found.num_problems[answer] if balance == "data" else 1 for answer in weight}
    raw = {answer: wanted[answer] / weight[answer] for answer in weight}
    clipped: set[str] = set()
    while True:
        left = math.fsum(weight.values()) - max_factor * math.fsum(weight[a] for a in clipped)
        scale = left / math.fsum(wanted[answer] for answer in weight if answer not in clipped)
        over = {a for a in weight if a not in clipped and scale * raw[a] > max_factor}
        if not over:  # ends: not all can be above the mean
            break
        clipped |= over
    factors = {a: max_factor if a in clipped else scale * raw[a] for a in weight}
    return Factors(factors, tuple(answer for answer in weight if answer in clipped))


def made_factors(
    chunks: Callable[[], Iterable[Sequence[Draw]]],
    problems: Mapping[str, Problem],
    rule: Rule,
    balance: Balance,
) -> Factors:
    """Factors of stored draws, which are read only where there is something to balance."""
    if balance == "none":
        return Factors({})
    return balance_factors(weighed(chunks(), problems, rule), balance)
