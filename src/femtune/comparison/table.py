"""Make the table of a comparison from its histories, and store it as compare.json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from femtune._util.atomic_files import replacing
from femtune.comparison.compare import Job
from femtune.evaluation.bootstrap import half_width
from femtune.evaluation.differences import Difference
from femtune.metric_types import History, IterationMetrics, measure
from femtune.runs.checkpoints import best_of


@dataclass(frozen=True)
class Row:
    """One line of the table: means over seeds, with half-widths of 95% intervals (nan for one seed)."""

    name: str
    values: dict[str, tuple[float, float]]


def rows(histories: dict[Job, History]) -> list[Row]:
    """Return the base, the baselines, and each scheme, in the order of the jobs.

    A scheme that kept nothing in a seed has no numbers: a mean over the other seeds would be biased.
    """
    by_name: dict[bool, dict[str, list[dict[str, float]]]] = {True: {}, False: {}}
    bases: dict[int, dict[str, float]] = {}
    for job, history in histories.items():
        for name, own in _lines(job, history):
            by_name[job.is_baseline].setdefault(name, []).append(_measures(own))
        if not job.is_baseline and "nothing_kept" not in history[-1]:
            bases.setdefault(job.seed, _measures(history[:1]))
    base = [Row("base", _mean([*bases.values()]))] if bases else []
    groups = [*by_name[True].items(), *by_name[False].items()]
    return base + [Row(name, _mean(group)) for name, group in groups]


def _lines(job: Job, history: History) -> list[tuple[str, History]]:
    """Return the rows of a run as name and history; regressions have several."""
    kinds = history[-1].get("evaluations")
    if kinds is None:
        return [(job.scheme, history)]
    return [(name, [history[-1] | {"evaluation": metrics}]) for name, metrics in kinds.items()]


def _chosen(history: History) -> IterationMetrics:
    """Return the best iteration by the development part, else the last that was evaluated."""
    if any("development" in each for each in history):
        return next(each for each in history if each["iteration"] == best_of(history))
    measured = (each for each in reversed(history) if "evaluation" in each)
    return next(measured, history[-1])


def _measures(history: History) -> dict[str, float]:
    """Return the numbers of a run: of its best iteration, and summed over all of them."""
    chosen = _chosen(history)
    evaluation = chosen.get("evaluation", {})
    measures = {name: value for name in MEASURED if (value := measure(evaluation, name)) is not None}
    if bounds := [each["posterior"]["bound"] for each in history if "posterior" in each]:
        measures["bound"] = chosen["posterior"]["bound"] if "posterior" in chosen else bounds[-1]
    e_steps = [each["e_step"] for each in history if "e_step" in each]
    m_steps = [each["m_step"] for each in history if "m_step" in each]
    if e_steps:
        for name in ("kept_share", "covered_share"):
            if shares := [share for each in e_steps if (share := measure(each, name)) is not None]:
                measures[name] = fmean(shares)
    chooses = any("num_requests" in each for each in m_steps)
    if e_steps or chooses:
        drawing = (*e_steps, *m_steps)  # an M-step draws where it chooses a prompt
        measures["generated_tokens"] = sum(each.get("generated_tokens", 0) for each in drawing)
    if chooses or (e_steps and not m_steps):
        measures["requests"] = sum(each["num_draws"] for each in e_steps)
        measures["requests"] += sum(each["num_requests"] for each in m_steps)
    if e_steps or m_steps:
        drawing_s = sum(each["total_s"] for each in e_steps)
        measures["seconds"] = drawing_s + sum(each["seconds"] for each in m_steps)
    return measures


def _mean(runs: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    return {
        name: (fmean(run[name] for run in runs), half_width([run[name] for run in runs]))
        for name in runs[0]
        if all(name in run for run in runs)  # for example no valid steps if nothing could be parsed
    }


def notes(histories: dict[Job, History]) -> list[str]:
    """Explain the table's dashes: a line for each run that kept nothing, and each undefined measure.

    "Spearman is undefined for majority: all predictions are the same."
    """
    empty = [
        f"{job.scheme}, seed {job.seed}, has no numbers: {history[-1]['nothing_kept']}"
        for job, history in histories.items()
        if "nothing_kept" in history[-1]
    ]
    found: dict[tuple[str, str], list[str]] = {}  # names of rows by measure and reason
    for job, history in histories.items():
        bases = [] if job.is_baseline else [("base", history[:1])]
        for name, own in (*bases, *_lines(job, history)):
            for missing, why in _chosen(own).get("evaluation", {}).get("undefined", {}).items():
                if missing in MEASURED:
                    names = found.setdefault((missing, why), [])
                    names += [name] if name not in names else []
    return empty + [
        f"{TITLES[missing]} is undefined for {', '.join(names)}: {why}."
        for (missing, why), names in found.items()
    ]


TITLES = {
    "accuracy": "accuracy",
    "spearman": "Spearman",
    "mae": "MAE",
    "within_one_percent": "within 1%",
    "position_consistency": "consistency",
    "sound_steps": "sound steps",
    "bound": "bound",
    "kept_share": "kept",
    "covered_share": "covered",
    "requests": "requests",
    "generated_tokens": "tokens drawn",
    "seconds": "seconds",
    "tokens_per_draw": "rationale tokens",
}

# measures of the evaluation of the best iteration; the others cover all iterations
MEASURED = (
    *("accuracy", "spearman", "mae", "within_one_percent", "position_consistency"),
    *("sound_steps", "tokens_per_draw"),
)


def table(lines: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return titles and cells as text: numbers, with their half-width if there are several seeds."""
    names = [name for name in TITLES if any(name in line.values for line in lines)]
    cells = [[line.name, *(_cell(name, line.values.get(name)) for name in names)] for line in lines]
    return ["", *(TITLES[name] for name in names)], cells


def _cell(name: str, value: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    digits = {
        "requests": 0,
        "generated_tokens": 0,
        "seconds": 0,
        "tokens_per_draw": 1,
        "mae": 2,
        "bound": 2,
    }.get(name, 3)
    mean, half = value
    bare = math.isnan(half) or name in ("seconds", "tokens_per_draw")  # else the table is too wide
    return f"{mean:,.{digits}f}" + ("" if bare else f" ±{half:,.{digits}f}")


def save(output_dir: Path, histories: dict[Job, History], found: Sequence[Difference] = ()) -> Path:
    """Store the table, its differences, and each run's numbers by seed, as compare.json."""
    path = output_dir / "compare.json"
    value = {
        "table": {row.name: {k: v[0] for k, v in row.values.items()} for row in rows(histories)},
        "runs": [stored for job, history in histories.items() for stored in _stored(job, history)],
        "differences": [each.to_data() for each in found],
        "notes": notes(histories),
    }
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")
    return path


def _stored(job: Job, history: History) -> list[dict[str, Any]]:
    """Return a run in the form of compare.json, by row."""
    base = {} if job.is_baseline else {"base": _measures(history[:1])}
    why = {"nothing_kept": history[-1]["nothing_kept"]} if "nothing_kept" in history[-1] else {}
    both: dict[str, Any] = {}
    if job.iterates and not why:
        last = history[-1].get("evaluation", {})
        both = {"best_iteration": best_of(history), "last_iteration": history[-1]["iteration"]}
        both |= {f"last_{name}": v for name in MEASURED if (v := measure(last, name)) is not None}
    return [
        {"scheme": name, "seed": job.seed, **base, **_measures(own), **both, **why}
        for name, own in _lines(job, history)
    ]
