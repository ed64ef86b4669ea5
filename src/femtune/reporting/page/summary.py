"""The first screen: what was trained, on what, and the result, in one sentence and one figure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from femtune.data.row_report import NO_ROWS
from femtune.metric_types import Part
from femtune.reporting.page import ladder
from femtune.reporting.page.contenders import (
    KEPT,
    MEASURES,
    Contender,
    Measure,
    best,
    contenders,
    course,
)
from femtune.reporting.page.dots import Row, dots
from femtune.reporting.page.drawing import NARROW, WIDE, Axis, style
from femtune.reporting.page.figures import lines
from femtune.reporting.page.parts import Figure, capital, interval, series
from femtune.reporting.page.record import BASELINES, Found, Record
from femtune.reporting.page.texts import count, listed, name, percent, seconds
from femtune.runs.checkpoints import describe_best

ACCURACY = MEASURES[0]


@dataclass(frozen=True)
class Opening:
    """The top of the page."""

    title: str
    sentence: str
    facts: Sequence[tuple[str, str]]
    figure: Figure | None
    warnings: Sequence[str]


def opening(found: Found) -> Opening:
    lines_up = contenders(found)
    lead = found.schemes[0].runs[0] if found.schemes else found.runs[0]
    model = _base_name(lead.config.get("model") or "a model")
    data = _base_name(lead.config.get("data") or "its data")
    verb = "learnt from" if found.schemes and lead.e_steps() else "does on"
    title, result = f"What {model} {verb} {data}", sentence(found, lines_up)
    if verdict := found.ladder.get("verdict"):
        title, result = f"Should you train {model} on {data}?", str(verdict)
    return Opening(
        title,
        result,
        facts(found, lead, lines_up),
        ladder.figure(found) or hero(found, lines_up),
        [*filter(None, (_standing(run) for run in found.runs))],
    )


def _base_name(path: object) -> str:
    return name(PurePath(str(path or "–")).name or path, 64)


# --- the sentence


def sentence(found: Found, known: Sequence[Contender]) -> str:
    """Return the result, its interval, and the base and best baseline beside it."""
    lead = best(known, "scheme") or best(known, "base")
    if lead is None:
        return _without_evaluation(found)
    said, preposition = _claim(lead)
    of = f"of {count(lead.num_problems)}"
    if lead.iteration == 0:
        return f"The model as it is {said.format(_number(lead, True), of)}."
    base, other = best(known, "base"), best(known, "baseline")
    schemes, others = (sum(each.kind == kind for each in known) for kind in ("scheme", "baseline"))
    who = lead.label if schemes == 1 else f"{lead.label}, the best of {schemes} schemes,"
    parts = [f"After {count(lead.iteration, 'iteration')}, {who} {said.format(_number(lead, True), of)}"]
    if base is not None:
        parts.append(f"the base {preposition}{_number(base)}")
    if other is not None:
        which = f", the best of {others} baselines," if others > 1 else ""
        parts.append(f"{other.label}{which} {preposition}{_number(other)}")
    return "; ".join(parts) + "."


def _claim(lead: Contender) -> tuple[str, str]:
    """Return the phrase for the lead's accuracy, and the preposition before another's."""
    metrics = lead.evaluations[0]
    if "agreement" in metrics:
        return "agrees with the human on {0} {1} held-out choices", "on "
    if "spearman" in metrics:
        return "predicts the human's rating exactly for {0} {1} held-out items", "for "
    return "gets {0} {1} held-out problems right", ""


def _number(contender: Contender, first: bool = False) -> str:
    """Return the accuracy and its interval; the first one on the page also names its kind."""
    estimate = contender.estimate("accuracy")
    assert estimate is not None and estimate.value is not None  # best() checked
    words = [f"mean of {contender.num_seeds} seeds"] if first and contender.num_seeds > 1 else []
    if estimate.ci is not None:
        words.append(("95% interval " if first else "") + interval(ACCURACY, estimate))
    return percent(estimate.value) + (f" ({', '.join(words)})" if words else "")


def _without_evaluation(found: Found) -> str:
    kept = [
        f"{group.label} kept a rationale of {percent(share)} of {count(number, 'problem')}"
        for group in found.schemes
        for run in group.runs[:1]
        for step in [*run.e_steps().values()][-1:]
        for share, number in [(step.get("kept_share") or 0.0, step.get("num_problems", 0))]
    ]
    if kept:
        return f"Nothing was held out to measure it on; in its last E-step {listed(kept)}."
    return "Nothing is measured yet."


# --- facts, and how the runs stand


def facts(found: Found, lead: Record, known: Sequence[Contender]) -> list[tuple[str, str]]:
    config = lead.config
    steps = [*lead.e_steps().values()]
    asked = count(lead.num_problems, "problem") + " of " if steps else ""
    made = [("Model", _base_name(config.get("model")))]
    schemes = [group.label for group in found.schemes if group.label]
    if schemes:
        made.append(("Schemes" if len(schemes) > 1 else "Scheme", ", ".join(schemes)))
    made.append(("Trained on" if steps else "Data", asked + _base_name(config.get("data"))))
    left = lead.rows.get("problems", NO_ROWS)
    if left.skipped:
        made.append(("Rows left out", f"{left.num_skipped:,} of {left.num_rows:,}"))
    if any(known):
        source = config.get("eval_data") or config.get("eval_split") or "the same data, held out"
        number = max(each.num_problems for each in known)
        made.append(("Measured on", f"{count(number, 'problem')} of {_base_name(source)}"))
    if lead.evaluations() and any("development" in each for each in lead.history):
        made.append(("Best iteration", describe_best(lead.history)))
    others = [BASELINES[g.runs[0].scheme] for g in found.groups if g.is_baseline]
    if others:
        made.append(("Held against", ", ".join(dict.fromkeys(others))))
    times = [e["time"] for run in found.runs for e in run.events if isinstance(e["time"], int | float)]
    if times:
        begun = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(times)))
        made.append(("Begun", begun))
        made.append(
            (
                "Took until now" if not all(r.finished for r in found.runs) else "Took",
                seconds(max(times) - min(times)),
            )
        )
    return made


def _standing(run: Record) -> str:
    if run.finished:
        return ""
    where = name(run.root.resolve().name)
    doing = f", last in the {run.events[-1]['event']}" if run.events else ""
    if not run.history:
        return f"{where} has measured nothing yet{doing}."
    return f"{where} is not finished: {run.done} of {count(run.planned, 'iteration')} done{doing}."


# --- the figure


def hero(found: Found, known: Sequence[Contender]) -> Figure | None:
    """Draw the accuracy of all contenders; for a single scheme, its accuracy by iteration."""
    measured = [each for each in known if each.estimate("accuracy") is not None]
    if len(found.schemes) == 1 and not any(each.kind == "baseline" for each in measured):
        return _course(found, ACCURACY, "evaluation") or _course(found, KEPT, "e_step")
    if not measured:
        return None
    groups = found.schemes
    order = {"base": 0, "baseline": 1, "scheme": 2}
    rows, told = [], []
    for each in sorted(measured, key=lambda each: order[each.kind]):
        estimate = each.estimate("accuracy")
        assert estimate is not None and estimate.value is not None
        colour, shape = ("var(--base)", "circle")
        if each.kind == "scheme":
            colour, shape = style(groups.index(each.group))
        elif each.kind == "baseline":
            colour, shape = "var(--other)", "diamond"
        rows.append(Row(name(each.label), estimate.value, estimate.ci, colour, shape))
        told.append(f"{each.label} {percent(estimate.value)}")
    base = next((row.value for row in rows if row.colour == "var(--base)"), None)
    seeds = max(each.num_seeds for each in measured)
    what = f"means of {seeds} seeds" if seeds > 1 else "one run each"
    axis = Axis("accuracy on held-out problems", "%")
    label = f"Accuracy: {', '.join(told)}."
    return Figure(
        "Accuracy on held-out problems",
        dots(rows, axis, label, width=WIDE, at=base),
        f"Bars are 95% intervals ({what}); the dashed line is the base. Grey are the baselines.",
        dots(rows, axis, label, width=NARROW, at=base),
    )


def _course(found: Found, measure: Measure, part: Part) -> Figure | None:
    points = course(found.schemes[0], measure.name, part)
    if not points:
        return None
    told = ", ".join(f"{p.iteration}: {percent(p.estimate.value or 0)}" for p in points)
    label = f"{measure.title} by iteration: {told}."
    own = series(0, [(p.iteration, p.estimate) for p in points])
    axes = (Axis("iteration", "d"), Axis("", ".0%"))
    band = "The band is the 95% interval. " if any(p.estimate.ci for p in points) else ""
    zero = (
        "Iteration 0 is the base."
        if part == "evaluation"
        else "Each iteration draws from the model before it."
    )
    return Figure(
        capital(f"{measure.title} by iteration"),
        lines([own], *axes, label, width=WIDE, height=240),
        band + zero,
        lines([own], *axes, label, height=220),
    )
