"""Show what rationales are worth to the base, and how much of them is copied."""

from __future__ import annotations

import math
from collections.abc import Sequence

from femtune.metric_types import Part
from femtune.reporting.page.contenders import Measure, Point, course
from femtune.reporting.page.parts import Section, Table, group_keys, with_interval
from femtune.reporting.page.record import Found, Group
from femtune.reporting.page.sections import panel

GAIN = Measure(
    "rationale_gain",
    "what a rationale adds to the base's log p(y* | x), nats",
    is_share=False,
    least=-math.inf,
    most=math.inf,
)
CHOICE = Measure(
    "choice_gain",
    "the same among the possible answers, nats",
    is_share=False,
    least=-math.inf,
    most=math.inf,
)
READ = Measure("read_accuracy", "base right after the rationale")
DIRECT = Measure("direct_accuracy", "base right without one")
HELPFUL = Measure("helpful_share", "rationales that help the base")
COPIED = Measure("copied_share", "words copied from the prompt", low_is_good=True)
DENSITY = Measure(
    "copied_density", "mean length of a copied passage, words", is_share=False, most=math.inf
)
MEASURES = (GAIN, CHOICE, HELPFUL, READ, DIRECT, COPIED, DENSITY)
LEAKS = Measure("leak_share", "hinted draws that give the hint away", low_is_good=True)  # of the bound


def worth(found: Found) -> Section | None:
    """Show the measures of rationales.json with hint leakage beside them; None if no run has any."""
    groups = found.schemes
    if not any(course(group, GAIN.name, "rationales") for group in groups):
        return None
    figures = []
    for measure in (GAIN, CHOICE, HELPFUL, READ, COPIED):
        courses = [course(group, measure.name, "rationales") for group in groups]
        if any(len(points) > 1 for points in courses):
            figures.append(panel(measure, groups, courses))
    return Section(
        "worth",
        "What the rationales are worth to another reader",
        [*_result(groups), _meaning()],
        group_keys(found),
        figures=figures,
        tables=[_table(groups)],
    )


def _result(groups: Sequence[Group]) -> list[str]:
    """Return the result of each scheme's last iteration, beside the base's own rationales."""
    said = []
    for group in groups:
        points = course(group, GAIN.name, "rationales")
        if not points:
            continue
        first, last = points[0], points[-1]
        at = {m: {p.iteration: m.text(p.estimate.value or 0) for p in _course(group, m)} for m in _SAID}
        text = (
            f"{group.label}: to the base's log-probability of the correct answer, a rationale of "
            f"iteration {last.iteration} adds {with_interval(GAIN, last.estimate)} nats on average; "
            f"{at[HELPFUL][last.iteration]} of the rationales help it."
        )
        if first.iteration == 0 and last.iteration:
            text += f" The base's own rationales add {with_interval(GAIN, first.estimate)} nats."
        if last.iteration in at[READ]:
            text += (
                f" The correct answer is the likeliest one to the base after {at[READ][last.iteration]} "
                f"of these rationales, and without a rationale for {at[DIRECT][last.iteration]}."
            )
        said.append(text)
    return said


_SAID = (HELPFUL, READ, DIRECT)


def _course(group: Group, measure: Measure) -> list[Point]:
    return course(group, measure.name, "rationales")


def _meaning() -> str:
    return (
        "Nobody knows the true reasons. So the base, which was not trained, reads held-out rationales: "
        "log p(y* | x, z) - log p(y* | x), of the correct answer after the rationale and without it. A "
        "rationale that merely names the answer raises it too. Without a rationale the base may have "
        "little to say at all: where the answers are a closed set, read the gain among the possible "
        "answers, which also decides whether a rationale helps. A copied word stands in a passage that "
        "the prompt has too."
    )


def _table(groups: Sequence[Group]) -> Table:
    rows = []
    for group in groups:
        columns: list[tuple[Measure, Part]] = [(measure, "rationales") for measure in MEASURES]
        columns.append((LEAKS, "posterior"))
        courses = [{p.iteration: p.estimate for p in course(group, m.name, part)} for m, part in columns]
        for number in sorted({number for own in courses[:-1] for number in own}):
            cells = [
                with_interval(m, own.get(number)) for (m, _), own in zip(columns, courses, strict=True)
            ]
            rows.append([f"{group.label}, {number}" if len(groups) > 1 else str(number), *cells])
    head = ["scheme, iteration" if len(groups) > 1 else "iteration"]
    return Table(
        "Rationales by iteration, with 95% intervals in brackets",
        [*head, *(m.title for m in (*MEASURES, LEAKS))],
        rows,
    )
