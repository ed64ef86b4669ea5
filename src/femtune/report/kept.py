"""What the page says of the E-steps: where draws went, and which problems are learnt from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from femtune.bias import wilson
from femtune.intervals import Estimate
from femtune.report.drawing import NARROW, WIDE, Axis
from femtune.report.figures import groups, stacks
from femtune.report.flow import Stop, flow
from femtune.report.parts import Figure, Key, Section, Table, group_keys, of, series
from femtune.report.record import Found, Group
from femtune.report.tally import DIFFICULTY, Pick, Tally, by_difficulty
from femtune.report.texts import count, listed, name, percent, signed

REASONS = {  # in the order that they are shown; "" is kept
    "": ("kept", "var(--kept)"),
    "wrong": ("wrong", "var(--wrong)"),
    "leaks the hint": ("leaks the hint", "var(--leak)"),
    "unparsable": ("unparsable", "var(--unparsable)"),
    "cut off": ("cut off", "var(--cut)"),
    "reward failed": ("reward failed", "var(--failed)"),
    "engine failed": ("engine failed", "var(--failed)"),
}
SHARE = Axis("", ".0%", (0.0, 1.0))
MAX_ATTEMPTS = 5  # in a flow picture; later ones are one


@dataclass(frozen=True)
class Looked:
    """What the E-steps' shards of a group's runs hold."""

    group: Group
    tallies: Mapping[Path, Mapping[int, Tally]]  # by directory
    picks: Sequence[Pick]  # of the first run

    def counts(self, iteration: int | None = None) -> Counter[tuple[int, int, str, str]]:
        """Draws by stage, attempt, prompt and reason, over runs, of one iteration or of all."""
        total: Counter[tuple[int, int, str, str]] = Counter()
        for tallies in self.tallies.values():
            for number, tally in tallies.items():
                if iteration in (None, number):
                    total.update(tally.counts)
        return total

    @property
    def iterations(self) -> list[int]:
        return sorted({number for tallies in self.tallies.values() for number in tallies})


# --- where the draws went


def draws(found: Found, looked: Sequence[Looked]) -> Section | None:
    """From problems through attempts to what became of them."""
    known = [each for each in looked if each.counts()]
    if not known:
        return None
    alone = len(known) == 1
    figures = []
    for each in known:
        wide = [_flow(each, WIDE if alone else NARROW)]
        title = "Where the draws went, all iterations together" if alone else each.group.label
        figures.append(Figure(title, wide[0], narrow=_flow(each, NARROW) if alone else None))
    bars = []
    for each in known:
        for prompt in sorted({key[2] for key in each.counts()}, key=lambda p: p != "plain"):
            under = "asked plainly" if prompt == "plain" else "with the answer as a hint"
            bars.append(Figure(f"{each.group.label}: {under}", _reasons(each, prompt)))
    reasons = [key for key in REASONS if any(k[3] == key for each in known for k in each.counts())]
    return Section(
        "draws",
        "Where the draws went",
        [_told(known[0])] if alone else [],
        [
            Key(REASONS[r][1].removeprefix("var(--").removesuffix(")"), "■", REASONS[r][0])
            for r in reasons
        ],
        figures,
        bars,
        [_reason_table(known)],
    )


def _told(looked: Looked) -> str:
    """One sentence about a scheme's draws."""
    total = looked.counts()
    reasons = Counter[str]()
    for (_, _, _, reason), number in total.items():
        reasons[reason] += number
    drawn = total.total()
    refused = ", ".join(
        f"{count(number)} {REASONS.get(reason, (reason, ''))[0]}"
        for reason, number in reasons.most_common()
        if reason
    )
    kept = of(reasons[""], drawn)
    rest = f"; refused: {refused}" if refused else ""
    return f"{looked.group.label}: {kept} draws were accepted{rest}."


def _flow(looked: Looked, width: int) -> Markup:
    """Stages and attempts on the left, outcomes on the right."""
    total = looked.counts()
    stages: dict[tuple[int, int, str], int] = {}
    ends: dict[str, int] = {}
    links: Counter[tuple[tuple[int, int, str], str]] = Counter()
    for (stage, index, prompt, reason), number in sorted(total.items()):
        at = (stage, min(index, MAX_ATTEMPTS - 1), prompt)
        stages[at] = stages.get(at, 0) + number
        ends[reason] = ends.get(reason, 0) + number
        links[at, reason] += number
    order = sorted(ends, key=lambda reason: (reason != "", -ends[reason]))
    asked = sum(
        tally.problems.num_rows
        for t in looked.tallies.values()
        for tally in t.values()
        if tally.problems
    )
    made = [
        Stop(_stage_name(at, [*stages], number), number, _prompt_colour(at[2]))
        for at, number in stages.items()
    ]
    left = [*stages]
    outcomes = []
    for reason in order:
        word, colour = REASONS.get(reason, (reason, "var(--failed)"))
        outcomes.append(
            Stop(
                f"{word}\n{ends[reason]:,} ({percent(ends[reason] / total.total(), 0)})",
                ends[reason],
                colour,
            )
        )
    start = Stop(f"problems asked\n{asked:,}", asked, "var(--base)")
    numbers = {(left.index(at), order.index(reason)): number for (at, reason), number in links.items()}
    label = (
        f"{looked.group.label}: {asked:,} problems asked, "
        + ", ".join(stop.label.replace("\n", " ") for stop in (*made, *outcomes))
        + "."
    )
    return flow(start, made, outcomes, numbers, label, width=width)


def _stage_name(at: tuple[int, int, str], stages: Sequence[tuple[int, int, str]], number: int) -> str:
    stage, index, prompt = at
    attempts = sum(each[0] == stage for each in stages)
    word = "asked" if prompt == "plain" else "with a hint"
    if attempts > 1:
        later = " and later" if index == MAX_ATTEMPTS - 1 else ""
        word = f"attempt {index + 1}{later}" if prompt == "plain" else f"hinted {index + 1}{later}"
    return f"{word}\n{number:,}"


def _prompt_colour(prompt: str) -> str:
    return "var(--plain)" if prompt == "plain" else "var(--hinted)"


def _reasons(looked: Looked, prompt: str) -> Markup:
    """Shares of what became of draws under a prompt, a bar an iteration."""
    values, told = [], []
    for iteration in looked.iterations:
        own = Counter[str]()
        for (_, _, under, reason), number in looked.counts(iteration).items():
            own[reason] += number if under == prompt else 0
        total = own.total()
        if not total:
            continue
        for reason in sorted(own, key=lambda r: [*REASONS].index(r) if r in REASONS else 99):
            colour = REASONS.get(reason, ("", "var(--failed)"))[1]
            values.append((str(iteration), reason, colour, own[reason] / total))
        told.append(f"{iteration}: {percent(own[''] / total)}")
    label = (
        f"{looked.group.label}, {prompt} prompt: share of draws accepted by iteration {', '.join(told)}."
    )
    return stacks(values, label, Axis("iteration", ".0%", (0.0, 1.0)))


def _reason_table(known: Sequence[Looked]) -> Table:
    reasons = [key for key in REASONS if any(k[3] == key for each in known for k in each.counts())]
    rows = []
    for each in known:
        for iteration in each.iterations:
            own = each.counts(iteration)
            for stage, prompt in sorted({(key[0], key[2]) for key in own}):
                by = Counter[str]()
                for (at, _, _, reason), number in own.items():
                    by[reason] += number if at == stage else 0
                cells = [f"{by[reason]:,}" for reason in reasons]
                rows.append([f"{each.group.label}, {iteration}", prompt, f"{by.total():,}", *cells])
    head = ["scheme, iteration", "prompt", "draws", *(REASONS[r][0] for r in reasons)]
    return Table("Draws by iteration, stage and what became of them", head, rows)


# --- which problems it learns from


def difficulty(found: Found, looked: Sequence[Looked]) -> Section | None:
    """Whether a scheme learns the easy ones only."""
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
        "A filter keeps what the model gets right. If that is the easy ones alone, the model hears of "
        "the hard ones never, and a judge drifts to the most frequent score.",
        *_shifts(found),
    ]
    keys = group_keys(found)
    return Section(
        "difficulty", "Which problems it learns from", says, keys, figures, tables=tables, notes=notes
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


def _levels(looked: Sequence[Looked]) -> tuple[dict[str, dict[str, tuple[int, int]]], str]:
    """By group and level: problems kept in the last iteration, of how many; else why not."""
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
            last = max(tallies, default=0)
            if last < 2 or tallies[last].problems is None:
                continue
            own = made.setdefault(each.group.label, {})
            for level, (kept, num) in by_difficulty(base, tallies[last].problems).items():
                before = own.get(level, (0, 0))
                own[level] = (before[0] + kept, before[1] + num)
    return (
        made,
        "" if made else "Kept shares by difficulty take two iterations: the first says what is hard.",
    )


def _level_figure(
    looked: Sequence[Looked], levels: Mapping[str, Mapping[str, tuple[int, int]]]
) -> tuple[Figure, Table]:
    names = [level for level in DIFFICULTY if any(level in own for own in levels.values())]
    label, rows, lines_up = [], [], []
    for number, each in enumerate(looked):
        own = levels.get(each.group.label, {})
        points = [
            (float(names.index(level)), Estimate(kept / num, wilson(kept, num)))
            for level, (kept, num) in own.items()
            if num
        ]
        if points:
            lines_up.append(series(number, points))
            rows.append(
                [each.group.label, *(of(*own[level]) if level in own else "–" for level in names)]
            )
            label.append(
                f"{each.group.label} {', '.join(f'{level} {of(*own[level])}' for level in own)}"
            )
    table = Table(
        "Problems kept in the last iteration, by how often the base was right at them",
        ["scheme", *names],
        rows,
    )
    picture = groups(
        lines_up, names, SHARE, f"Kept in the last iteration by the base's success: {'; '.join(label)}."
    )
    title = "Kept in the last iteration, by how often the base was right"
    return Figure(title, picture, "Left: hard for the base. Bars are Wilson's 95% intervals."), table


def _kept_by(found: Found, kind: str, words: str) -> tuple[Figure, Table] | None:
    """Kept shares of the last iteration by a kind of group; of a group's first run."""
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
            (float(names.index(each)), Estimate(m["kept_share"], tuple(m["kept_share_ci"])))
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


def _share(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "–"
    return f"{percent(metrics['kept_share'])} of {count(metrics['num_problems'])}"


def _shifts(found: Found) -> list[str]:
    """How the mean and the spread of human scores change by the filter."""
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
