"""The report's overall sections: comparison in numbers, iterations, lengths and cost."""

from __future__ import annotations

from collections.abc import Sequence

from femtune.evaluation.bootstrap import Estimate
from femtune.evaluation.differences import difference_table
from femtune.metric_types import EvaluationMetrics, Part, PosteriorMetrics, RationaleMetrics
from femtune.reporting.page.contenders import (
    ANSWERS,
    COVERED,
    KEPT,
    LOSS,
    MEASURES,
    POSTERIOR,
    USUAL,
    Contender,
    Measure,
    Point,
    compare_all,
    contenders,
    course,
    pooled,
)
from femtune.reporting.page.drawing import Axis
from femtune.reporting.page.estep_section import EStepTallies
from femtune.reporting.page.figures import lines, stacks
from femtune.reporting.page.parts import (
    Figure,
    Key,
    Section,
    Table,
    capital,
    group_keys,
    series,
    with_interval,
)
from femtune.reporting.page.record import Found, Group, Record
from femtune.reporting.page.tally import Tally
from femtune.reporting.page.texts import count, name, percent, seconds

ITERATION = Axis("iteration", "d")


# --- everyone, in numbers


def everyone(found: Found) -> Section | None:
    """Build the table of evaluations and their differences, if there are several to compare."""
    known = contenders(found)
    if len(known) < 2:
        return None
    tables = [_table_of(known)]
    if compared := compare_all(found):
        tables.append(Table("On the same problems, paired", *difference_table(compared)))
    return Section("everyone", "In numbers", tables=tables)


def _table_of(known: Sequence[Contender]) -> Table:
    columns = [
        measure
        for measure in MEASURES
        if any(each.estimate(measure.name) for each in known)
        and not _says_accuracy(known, measure.name)
        and not _is_usual(known, measure.name)
    ]
    rows = [[each.label, *(with_interval(m, each.estimate(m.name)) for m in columns)] for each in known]
    return Table("The evaluation of each", ["", *(m.title for m in columns)], rows)


def _is_usual(known: Sequence[Contender], measure: str) -> bool:
    """True if nothing was forced or truncated anywhere."""
    values = {each.get(measure) for contender in known for each in contender.evaluations}
    return measure != "answered" and values <= {USUAL.get(measure), None}


def _says_accuracy(known: Sequence[Contender], measure: str) -> bool:
    """Return True if a measure equals the accuracy everywhere, as with single draws."""
    if measure not in ("agreement", "majority_accuracy"):
        return False
    metrics = [each for contender in known for each in contender.evaluations]
    return all(each.get(measure) in (None, each.get("accuracy")) for each in metrics)


# --- iteration by iteration


_BY_ITERATION: list[tuple[Measure, Part]] = [
    *((each, "evaluation") for each in MEASURES),
    *((each, "posterior") for each in POSTERIOR),
    (KEPT, "e_step"),
    (COVERED, "e_step"),
    *((each, "e_step") for each in ANSWERS),
    (LOSS, "m_step"),
]


def learning(found: Found) -> Section:
    """Build the section of every measure by iteration, with its interval."""
    groups = found.schemes
    figures = []
    columns: list[tuple[Measure, Part]] = []
    for measure, part in _BY_ITERATION:
        courses = [course(group, measure.name, part) for group in groups]
        if _says_accuracy(contenders(found), measure.name) or not any(courses):
            continue
        values = {point.estimate.value for points in courses for point in points}
        if values == {USUAL.get(measure.name)} and measure.name != "answered":
            continue
        columns.append((measure, part))
        if any(len(points) > 1 for points in courses) and values != {USUAL.get(measure.name)}:
            figures.append(panel(measure, groups, courses))
    notes = [] if figures else ["There is one iteration so far: nothing to draw a line through."]
    if not any(run.evaluations() for run in found.runs):
        notes.append("Nothing was held out (--eval-data, --eval-share), so no accuracy is known.")
    if any(len(group.runs) == 2 for group in groups):
        notes.append("An interval of two seeds is too wide to be drawn: it is in the numbers.")
    return Section(
        "learning",
        "Iteration by iteration",
        [_bands(groups), *_ceiling(found)],
        group_keys(found),
        figures=figures,
        tables=[_history(groups, columns)] if columns else [],
        notes=notes,
    )


def panel(measure: Measure, groups: Sequence[Group], courses: Sequence[Sequence[Point]]) -> Figure:
    """Draw a measure of each group by iteration."""
    own = [
        series(number, [(point.iteration, _band(point)) for point in points])
        for number, points in enumerate(courses)
        if points
    ]
    ends = [
        f"{group.label} {measure.text(points[-1].estimate.value or 0)}"
        for group, points in zip(groups, courses, strict=True)
        if points
    ]
    label = f"{measure.title} by iteration; at the end: {', '.join(ends)}."
    axis = Axis("", ".0%" if measure.is_share else ".2~f")
    better = "lower is better" if measure.low_is_good else ""
    return Figure(capital(measure.title), lines(own, ITERATION, axis, label), better)


def _bands(groups: Sequence[Group]) -> str:
    seeds = max((len(group.runs) for group in groups), default=1)
    kind = "over problems, by bootstrap" if seeds == 1 else "over seeds, by Student's t"
    return (
        f"Iteration 0 is the base. Bands are 95% intervals {kind}. What was kept and the loss are of "
        "the E-step and M-step that lead to an iteration."
    )


def _band(point: Point) -> Estimate:
    """Return an estimate as it is drawn: Student's interval over two seeds would fill the figure."""
    return Estimate(point.estimate.value, None) if point.num_seeds == 2 else point.estimate


def _ceiling(found: Found) -> list[str]:
    for run in found.runs:
        for metrics in run.evaluations().values():
            if metrics.get("ceiling_accuracy") is not None:
                own = pooled([metrics], "ceiling_accuracy")
                return [
                    f"The raters agree with each other in {with_interval(MEASURES[0], own)} of cases."
                ]
    return []


def _history(groups: Sequence[Group], columns: Sequence[tuple[Measure, Part]]) -> Table:
    rows = []
    for group in groups:
        courses = [{p.iteration: p.estimate for p in course(group, m.name, part)} for m, part in columns]
        for number in sorted({number for own in courses for number in own}):
            cells = [
                with_interval(m, own.get(number)) for (m, _), own in zip(columns, courses, strict=True)
            ]
            start = f"{group.label}, {number}" if len(groups) > 1 else str(number)
            rows.append([start, *cells])
            if number == 0 and any(run.with_examples() for run in group.runs):
                shown = [run.with_examples() or {} for run in group.runs]
                own = [pooled(shown, m.name) if part == "evaluation" else None for m, part in columns]
                values = [with_interval(m, each) for (m, _), each in zip(columns, own, strict=True)]
                rows.append([f"{start}, with worked examples", *values])
    head = ["scheme, iteration" if len(groups) > 1 else "iteration", *(m.title for m, _ in columns)]
    return Table("Every measure by iteration, with 95% intervals in brackets", head, rows)


# --- how long rationales are


def lengths(found: Found, looked: Sequence[EStepTallies]) -> Section | None:
    """Build the section on tokens of kept and refused draws, for each group's first run."""
    alone = len(looked) == 1
    figures = []
    for kept, title in ((True, "Kept draws"), (False, "Refused draws")):
        own, told = [], []
        for each in looked:
            points = [
                (float(at), _length(tally, kept, alone))
                for tallies in [*each.tallies.values()][:1]
                for at, tally in tallies.items()
                if tally.lengths[kept].sum()
            ]
            if points:
                own.append(series(each.number, points))
                told.append(f"{each.group.label} {', '.join(f'{e.value:.1f}' for _, e in points)}")
        if own:
            label = f"{title}: {'median' if alone else 'mean'} tokens by iteration: {'; '.join(told)}."
            figures.append(Figure(title, lines(own, ITERATION, Axis("", "~r"), label)))
    if not figures:
        return None
    what = "the median, and in the band the middle half" if alone else "their mean"
    says = [f"Tokens of a completion, its answer and end included: {what}."]
    keys, tables = group_keys(found), [_length_table(looked)]
    return Section("lengths", "How long rationales are", says, keys, figures=figures, tables=tables)


def _length(tally: Tally, kept: bool, alone: bool) -> Estimate:
    """Return the median with quartiles; for several schemes the mean, as bands would overlap."""
    if not alone:
        return Estimate(tally.mean_length(kept), None)
    low, middle, high = (tally.quantile(kept, share) for share in (0.25, 0.5, 0.75))
    return Estimate(middle, (low or 0.0, high or 0.0))


def _length_table(looked: Sequence[EStepTallies]) -> Table:
    rows = []
    for each in looked:
        for tallies in [*each.tallies.values()][:1]:
            for at, tally in tallies.items():
                for kept, word in ((True, "kept"), (False, "refused")):
                    ends = [tally.quantile(kept, share) for share in (0.5, 0.25, 0.75)]
                    if None not in ends:
                        middle, low, high = (f"{end:,.0f}" for end in ends)
                        mean = f"{tally.mean_length(kept):,.1f}"
                        rows.append(
                            [f"{each.group.label}, {at}", word, mean, middle, f"{low} to {high}"]
                        )
    return Table(
        "Tokens of a draw", ["scheme, iteration", "draws", "mean", "median", "middle half"], rows
    )


# --- what it cost


def cost(found: Found) -> Section | None:
    """Build the section on tokens and seconds by phase, and accuracy by tokens drawn."""
    rows, bars = [], []
    for group in found.groups:
        spent = [_spent(run) for run in group.runs]
        mean = {key: sum(each[key] for each in spent) / len(spent) for key in spent[0]}
        whole = mean["drawing"] + mean["training"] + mean["measuring"]
        rows.append(
            [
                group.label,
                count(mean["drawn"]),
                count(mean["trained"]),
                *(seconds(mean[key]) for key in ("drawing", "training", "measuring")),
                seconds(whole),
            ]
        )
        bars += [
            (group.label, key, f"var(--{key})", mean[key])
            for key in ("drawing", "training", "measuring")
        ]
    if not any(bar[3] for bar in bars):
        return None
    told = ", ".join(f"{row[0]} {row[-1]}" for row in rows)
    keys = [
        Key("drawing", "■", "E-steps"),
        Key("training", "■", "M-steps"),
        Key("measuring", "■", "evaluations, the bound, the reading of rationales"),
    ]
    named = [(name(label), part, colour, size) for label, part, colour, size in bars]
    picture = stacks(named, f"Seconds by phase: {told}.", Axis("seconds", ",d"), across=True)
    figures = [Figure("Seconds by phase", picture, keys=keys)]
    race = _race(found)
    if race:
        figures.append(race)
    head = ["", "tokens drawn", "tokens trained on", "E-steps", "M-steps", "evaluations", "together"]
    seeds = " (means over seeds)" if any(len(g.runs) > 1 for g in found.groups) else ""
    table = Table(f"Tokens and seconds of a run{seeds}", head, rows)
    return Section("cost", "What it cost", figures=figures, tables=[table])


def _spent(run: Record) -> dict[str, float]:
    e_steps, m_steps = [*run.e_steps().values()], [*run.m_steps().values()]
    return {
        "drawn": sum(step.get("generated_tokens", 0) for step in (*e_steps, *m_steps)),
        "trained": sum(step.get("trained_tokens", 0) for step in m_steps),
        "drawing": sum(step.get("total_s", 0.0) for step in e_steps),
        "training": sum(step.get("seconds", 0.0) for step in m_steps),
        "measuring": sum(
            measured.get("total_s", 0.0)
            for each in run.history
            for measured in (
                each.get("evaluation", EvaluationMetrics()),
                each.get("posterior", PosteriorMetrics()),
                each.get("rationales", RationaleMetrics()),
            )
        ),
    }


def _race(found: Found) -> Figure | None:
    """Draw accuracy by the cumulative number of tokens drawn."""
    own, told = [], []
    for number, group in enumerate(found.schemes):
        tokens = {
            p.iteration: p.estimate.value or 0.0 for p in course(group, "generated_tokens", "e_step")
        }
        points = [
            (sum(n for at, n in tokens.items() if at <= p.iteration), Estimate(p.estimate.value, None))
            for p in course(group, "accuracy")
        ]
        if len(points) > 1:
            own.append(series(number, points))
            told.append(
                f"{group.label} {percent(points[-1][1].value or 0)} after {count(points[-1][0])}"
            )
    if not own:
        return None
    label = f"Accuracy by tokens drawn in E-steps: {'; '.join(told)}."
    picture = lines(own, Axis("tokens drawn", ",d"), Axis("", ".0%"), label)
    return Figure("Accuracy by tokens drawn", picture, keys=group_keys(found))
