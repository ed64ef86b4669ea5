"""The report's section on the difficulty of the problems that a scheme learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from femtune.evaluation.bootstrap import Estimate
from femtune.evaluation.selection_bias import wilson
from femtune.metric_types import KeptShare, interval
from femtune.reporting.page.drawing import Axis
from femtune.reporting.page.estep_section import EStepTallies
from femtune.reporting.page.figures import groups
from femtune.reporting.page.parts import Figure, Section, Table, group_keys, of, series
from femtune.reporting.page.record import Found
from femtune.reporting.page.tally import DIFFICULTY, by_difficulty
from femtune.reporting.page.texts import count, listed, name, percent, signed

SHARE = Axis("", ".0%", (0.0, 1.0))


def difficulty(found: Found, looked: Sequence[EStepTallies]) -> Section | None:
    """Build the section that shows whether a scheme learns from easy problems only."""
    if not looked:
        return None
    figures, tables, notes = [], [], []
    levels, why = _levels(looked)
    if levels:
        figure, table = _level_figure(looked, levels)
        figures.append(figure)
        tables.append(table)
    else:
        notes.append(why)
    for kind, words in KINDS.items():
        made = _kept_by(found, kind, words)
        if made:
            figures.append(made[0])
            tables.append(made[1])
    if not figures:
        return Section("difficulty", "Which problems it learns from", notes=notes)
    says = [
        "A filter keeps what the model gets right. If that is the easy ones alone, the hard ones "
        "are never learnt, and a judge drifts to the most frequent score.",
        *_shifts(found),
    ]
    keys = group_keys(found)
    return Section(
        "difficulty",
        "Which problems it learns from",
        says,
        keys,
        figures=figures,
        tables=tables,
        notes=notes,
    )


KINDS = {
    "answer": "by the human's answer",
    "length": "by the length of what is judged",
    "preferred": "by which text the human preferred",
    "source": "by source",
    "policy": "by who wrote it",
    "attribute": "by attribute",
    "rater": "by rater",
}


def _levels(looked: Sequence[EStepTallies]) -> tuple[dict[str, dict[str, tuple[int, int]]], str]:
    """Return, by group and level, the problems kept when last asked, and all; else the reason."""
    firsts = [
        (tally, each.group.label)
        for each in looked
        for tallies in [*each.tallies.values()][:1]
        for tally in [tallies.get(1)]
        if tally is not None and tally.problems is not None and sum(tally.problems["plain"].to_pylist())
    ]
    if not firsts:
        return {}, (
            "Kept shares by difficulty are left out: no scheme here asks the base plainly in the first "
            "iteration, so how hard a problem is for it is not known."
        )
    base = max(firsts, key=lambda pair: sum(pair[0].problems["plain"].to_pylist()))[0].problems
    made: dict[str, dict[str, tuple[int, int]]] = {}
    for each in looked:
        for tallies in each.tallies.values():
            own = made.setdefault(each.group.label, {})
            # a scheme may ask a subset of the problems, and a different one in the first iteration
            later = [tallies[number].problems for number in sorted(tallies, reverse=True) if number > 1]
            shares = (by_difficulty(base, problems) for problems in later if problems is not None)
            for level, (kept, num) in next(filter(None, shares), {}).items():
                before = own.get(level, (0, 0))
                own[level] = (before[0] + kept, before[1] + num)
    made = {label: own for label, own in made.items() if own}
    return (
        made,
        "" if made else "Kept shares by difficulty take two iterations: the first says what is hard.",
    )


def _level_figure(
    looked: Sequence[EStepTallies], levels: Mapping[str, Mapping[str, tuple[int, int]]]
) -> tuple[Figure, Table]:
    names = [level for level in DIFFICULTY if any(level in own for own in levels.values())]
    label, rows, lines_up = [], [], []
    for each in looked:
        own = levels.get(each.group.label, {})
        points = [
            (float(names.index(level)), Estimate(kept / num, wilson(kept, num)))
            for level, (kept, num) in own.items()
            if num
        ]
        if points:
            lines_up.append(series(each.number, points))
            rows.append(
                [each.group.label, *(of(*own[level]) if level in own else "–" for level in names)]
            )
            label.append(
                f"{each.group.label} {', '.join(f'{level} {of(*own[level])}' for level in own)}"
            )
    table = Table(
        "Problems kept in the last iteration that asked them, by how often the base was right at them",
        ["scheme", *names],
        rows,
    )
    picture = groups(
        lines_up, names, SHARE, f"Kept in the last iteration by the base's success: {'; '.join(label)}."
    )
    title = "Kept in the last iteration that asked them, by how often the base was right"
    return Figure(title, picture, "Left: hard for the base. Bars are Wilson's 95% intervals."), table


def _kept_by(found: Found, kind: str, words: str) -> tuple[Figure, Table] | None:
    """Return kept shares of the last iteration by a kind of group, for each scheme's first run."""
    last = {
        group.label: (number, step["kept_by"][kind])
        for number, group in enumerate(found.schemes)
        for step in [*group.runs[0].e_steps().values()][-1:]
        if kind in step.get("kept_by", {})
    }
    if not last:
        return None
    names = list(dict.fromkeys(each for _, own in last.values() for each in own))
    lines_up, rows = [], []
    for label, (number, own) in last.items():
        points = [
            (float(names.index(each)), Estimate(m["kept_share"], interval(m, "kept_share")))
            for each, m in own.items()
        ]
        lines_up.append(series(number, points))
        rows.append([label, *(_share(own.get(each)) for each in names)])
    title = f"Kept in the last iteration, {words}"
    told = "; ".join(
        f"{row[0]} {', '.join(f'{n} {c}' for n, c in zip(names, row[1:], strict=True))}" for row in rows
    )
    short = [name(each, 16) for each in names]
    return Figure(title, groups(lines_up, short, SHARE, f"{title}: {told}.")), Table(
        title, ["scheme", *map(name, names)], rows
    )


def _share(metrics: KeptShare | None) -> str:
    if metrics is None:
        return "–"
    return f"{percent(metrics['kept_share'])} of {count(metrics['num_problems'])}"


def _shifts(found: Found) -> list[str]:
    """Return a sentence on how the filter shifts the mean human score, or nothing."""
    said = []
    for group in found.schemes:
        for step in [*group.runs[0].e_steps().values()][-1:]:
            scores = step.get("kept_scores", {})
            shift, ci = scores.get("mean_shift"), scores.get("mean_shift_ci")
            if shift is None or ci is None:
                continue
            said.append(f"{group.label} {signed(shift)} ({signed(ci[0])} to {signed(ci[1])})")
    if not said:
        return []
    return [
        f"The mean human score of kept problems less that of all, in the last iteration: {listed(said)}."
    ]
