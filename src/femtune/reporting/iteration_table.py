"""A run in a terminal: a row for each iteration, in columns that fit its width.

iteration       kept    dev  accuracy (95%)          Spearman    MAE     tokens
base                         0.333 (0.217 to 0.450)     0.675   0.85
1            144/200  0.675  0.600 (0.483 to 0.717)     0.817   0.57      6,212
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from femtune.metric_types import IterationMetrics, interval, measure

# Measures of an evaluation shown beside its accuracy: title and digits.
SHOWN = {
    "spearman": ("Spearman", 3),
    "mae": ("MAE", 2),
    "within_one_percent": ("within 1%", 3),
    "position_consistency": ("consistency", 3),
    "sound_steps": ("sound steps", 3),
}
_GAP = "  "


@dataclass(frozen=True)
class Column:
    """A column of the table; those of a higher rank are left out first where there is no room."""

    title: str
    width: int
    rank: int
    to_left: bool = False

    def text(self, cell: str) -> str:
        """Return a cell in the column's width, at its left or right."""
        return cell.ljust(self.width) if self.to_left else cell.rjust(self.width)


def columns_for(first: IterationMetrics, width: int, *, has_dev: bool = True) -> list[Column]:
    """Return the columns that fit a width, in order; `first` is the base, whose measures are known."""
    evaluation = first.get("evaluation")
    known = [Column("iteration", 9, 0, to_left=True), Column("kept", 9, 1)]
    if has_dev:
        known.append(Column("dev", 5, 3))
    if evaluation is not None:
        known.append(Column("accuracy (95%)", 22, 2, to_left=True))
        measured = [name for name in SHOWN if measure(evaluation, name) is not None]
        for rank, name in enumerate(measured):
            known.append(Column(SHOWN[name][0], max(len(SHOWN[name][0]), 5), 4 + 2 * rank))
    known += [Column("tokens", 9, 5), Column("s", 7, 7)]
    taken: list[Column] = []
    for column in sorted(known, key=lambda each: each.rank):
        if sum(each.width + len(_GAP) for each in (*taken, column)) - len(_GAP) <= width:
            taken.append(column)
    return [column for column in known if column in taken]


def header(columns: Sequence[Column]) -> str:
    """Return the titles of the columns as a line."""
    return _GAP.join(column.text(column.title) for column in columns).rstrip()


def cells(metrics: IterationMetrics, columns: Sequence[Column]) -> str:
    """Return an iteration as a line of cells; a cell is empty where nothing was measured."""
    found = _cells(metrics)
    return _GAP.join(column.text(found.get(column.title, "")) for column in columns).rstrip()


def _cells(metrics: IterationMetrics) -> dict[str, str]:
    """Return the text of each cell by its column's title."""
    iteration = metrics["iteration"]
    cells = {"iteration": str(iteration) if iteration else "base"}
    if e_step := metrics.get("e_step"):
        cells["kept"] = f"{e_step['num_kept']}/{e_step['num_problems']}"
        cells["tokens"] = f"{e_step['generated_tokens']:,}"
        cells["s"] = f"{e_step['total_s'] + metrics['m_step']['seconds']:,.1f}"
    if development := metrics.get("development"):
        cells["dev"] = f"{development['accuracy']:.3f}"
    if evaluation := metrics.get("evaluation"):
        bounds = interval(evaluation, "accuracy")
        within = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else ""
        cells["accuracy (95%)"] = f"{evaluation['accuracy']:.3f}{within}"
        for name, (title, digits) in SHOWN.items():
            if (value := measure(evaluation, name)) is not None:
                cells[title] = f"{value:.{digits}f}"
    return cells
