"""A figure's numbers as Markdown: means over seeds, ± half of their 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from findings.experiments import FOLDER, Figure
from findings.numbers import (
    Found,
    Mean,
    at_end,
    budgets,
    difference,
    difference_for_as_much,
    found_of,
    over_seeds,
    rank_correlation,
    reached,
    within,
)

TITLES = {
    "accuracy": "accuracy",
    "spearman": "Spearman",
    "sound_steps": "sound steps",
    "sound_rationales": "sound rationales",
    "kept_share": "kept",
    "generated_tokens": "tokens",
    "seconds": "seconds",
    "bound": "bound, nats",
    "covered_share": "solved once",
    "ess_share": "effective share of hinted draws",
    "leak_share": "leaks by words",
    "leak_logprob": "leaks by weight, nats",
}
_DIGITS = {"generated_tokens": 0, "seconds": 0, "bound": 2, "leak_logprob": 1}
NOT_YET = "Not measured yet."
REACH = 0.85  # of held-out accuracy: what it takes to come to it


def markdown(figure: Figure, folder: Path = FOLDER) -> str:
    """All tables of a figure, each under a line that says of what it is; links are as from docs/."""
    made = {"curves": _curves, "setting": _setting, "scatter": _scatter}[figure.kind]
    parts = [
        part
        for found in found_of(figure, folder)
        for part in (_caption(found), *made(figure, found), _links(found))
    ]
    return "\n\n".join(parts or [NOT_YET]) + "\n"


def cell(column: str, mean: Mean | None) -> str:
    """A number with its interval.

    >>> cell("accuracy", (0.5, 0.021)), cell("seconds", (12.3, math.nan)), cell("accuracy", None)
    ('.500 ±.021', '12', '–')
    """
    if mean is None:
        return "–"
    texts = [f"{number:,.{_DIGITS.get(column, 3)}f}" for number in mean if not math.isnan(number)]
    return " ±".join(text.replace("0.", ".", 1) if text[:2] == "0." else text for text in texts)


def _caption(found: Found) -> str:
    run = found.about["experiment"]
    noise = f", noise {run['noise']:g}" if run["noise"] else ""
    sizes = f"{run['num_train']} training and {run['num_test']} held-out problems"
    if run["setting"] == "num_train":
        sizes = f"{run['num_test']} held-out problems"
    model = "" if run["setting"] == "model" else f", {Path(run['model']).name}"
    seeds = len(found.seeds)
    return (
        f"**{found.world}**: {sizes}{noise}{model}, {run['iterations']} iterations, "
        f"{seeds} seed{'s' if seeds > 1 else ''}."
    )


def _links(found: Found) -> str:
    names = ", ".join(
        f"{name} {version}" for name, version in found.about["made_with"].items() if name != "commit"
    )
    made = f" Made with {names}." if names else ""
    return f"Rows: [{found.name}.csv](../bench/findings/{found.name}.csv).{made}"


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    texts = [[each.replace("|", "\\|") for each in line] for line in (titles, *lines)]
    rule = ["---"] + ["--:"] * (len(titles) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (texts[0], rule, *texts[1:]))


def _curves(figure: Figure, found: Found) -> list[str]:
    """At equal budgets of x; for as much of it as each took; and all that is measured at the end."""
    sizes = budgets(found, figure.x)
    unit = TITLES[figure.x]
    first = found.schemes[0]
    made = []
    for column in figure.measures:
        if not found.has(column):
            continue
        lines = [
            [name, *(cell(column, within(found, name, figure.x, size, column)) for size in sizes)]
            for name in found.schemes
        ]
        made.append(
            _table([f"{TITLES[column]} within", *(f"{s:,g} {unit}" for s in map(_tidy, sizes))], lines)
        )
    lines = []
    for name in found.schemes:
        more = difference_for_as_much(found, name, first, figure.x, "accuracy")
        took = reached(found, name, "accuracy", REACH, figure.x)
        lines.append([name, "–" if name == first else cell("accuracy", more), cell(figure.x, took)])
    goal = cell("accuracy", (REACH, math.nan))
    heads = [f"accuracy at its end less {first}'s for as many {unit}", f"{unit} to accuracy {goal}"]
    made.append(_table(["by seed", *heads], lines))
    ends = [*figure.measures, *figure.also, figure.x]
    columns = [column for column in ends if found.has(column)]
    lines = [["base", "", *(_of_base(found, column) for column in columns)]]
    for name in (*found.baselines, *found.schemes):
        more = None if name == first else difference(found, name, first, "accuracy")
        means = [cell(column, at_end(found, name, None, column)) for column in columns]
        lines.append([name, cell("accuracy", more), *means])
    titles = ["at the end", f"accuracy less {first}'s, by seed", *(TITLES[each] for each in columns)]
    return [*made, _table(titles, lines)]


def _tidy(size: float) -> float:
    return int(size) if size == int(size) else size


def _of_base(found: Found, column: str) -> str:
    if column in ("generated_tokens", "seconds", "kept_share"):
        return ""
    return cell(column, over_seeds(found.base, column, len(found.seeds)))


def _setting(figure: Figure, found: Found) -> list[str]:
    """A table a measure, of the last iteration, by value; what the base does beneath accuracy's."""
    setting = found.about["experiment"]["setting"]
    made = []
    for column in (*figure.measures, *figure.also):
        if not found.has(column):
            continue
        lines = [
            [name, *(cell(column, at_end(found, name, value, column)) for value in found.values)]
            for name in (*found.baselines, *found.schemes)
        ]
        if column in figure.measures:
            bases = [[row for row in found.base if row["value"] == value] for value in found.values]
            means = [over_seeds(base, column, len(found.seeds)) for base in bases]
            lines.insert(0, ["base", *(cell(column, mean) for mean in means)])
        heads = [value if figure.scale == "names" else f"{setting} {value}" for value in found.values]
        made.append(_table([TITLES[column], *heads], lines))
    return made


def _scatter(figure: Figure, found: Found) -> list[str]:
    """Spearman's correlation over checkpoints, by scheme."""
    if not found.has(figure.x):
        return [f"No run had {TITLES[figure.x]} in its metrics."]
    names: list[tuple[str | None, str]] = [(name, name) for name in found.schemes]
    if len(names) > 1:
        names.append((None, "all"))
    title = f"Spearman of {TITLES[figure.x].partition(',')[0]} and accuracy over checkpoints"
    lines = [
        [shown, cell("spearman", rank_correlation(found, name, figure.x, "accuracy"))]
        for name, shown in names
    ]
    return [_table([title, "mean over seeds"], lines)]
