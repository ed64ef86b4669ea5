"""Run a whole comparison from settings: its jobs, their display, its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from femtune.comparison.baselines import chosen
from femtune.comparison.compare import Job, compare, jobs
from femtune.comparison.differences import stored_differences
from femtune.comparison.live_table import Watch
from femtune.comparison.table import notes, rows, save, table
from femtune.config import RL, Train
from femtune.evaluation.differences import Difference, difference_table
from femtune.metric_types import History
from femtune.model_info import refuse_chat
from femtune.reporting.terminal import Show
from femtune.resolve import Data
from femtune.run_folder import shown_data
from femtune.types import Scheme


@dataclass(frozen=True, kw_only=True, repr=False)
class CompareResult:
    """Schemes and baselines side by side. Its repr is the table."""

    folder: Path
    """Folder with a run for each scheme, baseline and seed."""
    stored: Path
    """The table and each run's numbers as compare.json."""
    table: Mapping[str, Mapping[str, float]]
    """Means over seeds by row and measure."""
    differences: Sequence[Difference]
    """Accuracy of each row less that of the base and of the best row, on the same held-out items."""
    notes: Sequence[str]
    """Reasons for missing numbers, one sentence each."""
    histories: dict[Job, History] = field(repr=False)
    """Metrics by iteration of each run."""

    @property
    def difference_table(self) -> tuple[list[str], list[list[str]]]:
        """Return titles and cells of the differences, as text."""
        return difference_table(self.differences)

    def __repr__(self) -> str:
        lines = _lined_up(*table(rows(self.histories)))
        if self.differences:
            lines += ["", *_lined_up(*self.difference_table)]
        return "\n".join([*lines, *self.notes])


def _lined_up(head: list[str], cells: list[list[str]]) -> list[str]:
    """Return a table as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *cells)
    ]


def run_compare(
    data: Data,
    model: str,
    schemes: Sequence[str | Scheme],
    seeds: int,
    settings: Train,
    output_dir: str | Path | None,
    show: Show,
    *,
    baselines: Sequence[str] | None = (),
    draws: int = 16,
    rl: RL | None = None,
    workers: int | None = None,
) -> CompareResult:
    """Run all schemes and baselines, and store their table.

    `baselines` None selects all that suit the task.
    """
    refuse_chat(settings, "compare")
    place = Path(output_dir or Path("runs") / f"compare-{Path(shown_data(data)).stem.replace(' ', '-')}")
    todo = jobs(schemes, seeds, settings, place, chosen(baselines, settings), draws, rl)
    with Watch(show) as watch:
        histories = compare(data, model, todo, workers=workers, watch=watch)
    means = {row.name: {name: mean for name, (mean, _) in row.values.items()} for row in rows(histories)}
    found = stored_differences(histories)
    return CompareResult(
        folder=place,
        stored=save(place, histories, found),
        table=means,
        differences=found,
        notes=notes(histories),
        histories=histories,
    )
