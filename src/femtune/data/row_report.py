"""Reports on rows that became problems: which were left out and why, and how labels were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from femtune._util.parsing import Unreadable, read_json
from femtune.data.rows import Faults
from femtune.errors import DataError

ROWS = "rows.json"  # in a run's folder: a report for problems.parquet and one for eval.parquet


@dataclass(frozen=True, slots=True)
class SkipReason:
    """One reason for which rows were left out, with an example."""

    what: str
    count: int
    place: int  # line or row of the example, from 1
    value: str = ""  # the example's value; "" if the reason has none

    def describe(self, unit: str) -> str:
        """Return a line of text; `unit` is the unit of places, "line" or "row".

        >>> SkipReason("`score` is off the scale, 1 to 5", 3, 7, "9").describe("line")
        '`score` is off the scale, 1 to 5: 3 (for example line 7: 9)'
        """
        value = f": {self.value}" if self.value else ""
        return f"{self.what}: {self.count:,} (for example {unit} {self.place}{value})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReport:
    """Describe how rows were read: their number, what was left out and why, how labels were coded.

    A published row with several ratings counts once for each rating.
    """

    num_rows: int = 0  # rows read, those left out among them
    unit: str = "row"  # unit of places: "line" or "row"
    skipped: tuple[SkipReason, ...] = ()
    codings: tuple[str, ...] = ()  # sentences such as "`label`: 1 is A, 2 is B."

    @property
    def num_skipped(self) -> int:
        """The number of rows that were left out."""
        return sum(reason.count for reason in self.skipped)

    def reasons(self) -> list[str]:
        """Return a line of text for each reason, the most frequent first."""
        ordered = sorted(self.skipped, key=lambda reason: -reason.count)
        return [reason.describe(self.unit) for reason in ordered]

    def describe_skipped(self) -> str:
        """Return what was left out as lines of text; "" if all rows are used."""
        if not self.skipped:
            return ""
        head = f"rows left out: {self.num_skipped:,} of {self.num_rows:,}"
        return "\n  ".join([head, *self.reasons()])

    def to_data(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return asdict(self)


NO_ROWS = RowReport()


def report_from_data(data: Mapping[str, Any]) -> RowReport:
    """Return the report that `RowReport.to_data` stored."""
    skipped = tuple(SkipReason(**reason) for reason in data["skipped"])
    return RowReport(**{**data, "skipped": skipped, "codings": tuple(data["codings"])})


def with_skipped(report: RowReport, places: Sequence[int], what: str, value: str) -> RowReport:
    """Return a report with further rows left out for one reason; `value` is that of the first."""
    if not places:
        return report
    return replace(report, skipped=(*report.skipped, SkipReason(what, len(places), places[0], value)))


def read_reports(path: Path) -> dict[str, RowReport]:
    """Return the reports in a run's rows.json by the name of their problems; {} without such a file.

    Raises DataError if the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return {name: report_from_data(data) for name, data in read_json(path).items()}
    except (Unreadable, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not as it was stored: {error}. Restore or remove it.") from error


def skip_reasons(faults: Faults) -> tuple[SkipReason, ...]:
    """Return the reasons of a file's bad rows, in the order in which they were met."""
    return tuple(
        SkipReason(what, count, *faults.examples[what]) for what, count in faults.counts.items()
    )
