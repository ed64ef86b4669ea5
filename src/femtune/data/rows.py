"""Rows that can't be used: their faults, counted by kind and reported together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from femtune._util.text import SHOWN
from femtune.errors import DataError

DUPLICATE = "duplicate `id`"  # a kind of fault


class BadRow(Exception):
    """A row that makes no problem: the kind of fault, equal for all such rows, and its details."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.what, self.detail = what, detail


class ColumnsError(DataError):
    """A table has other columns than those that are asked for."""

    def __init__(self, what: str, advice: str, columns: Iterable[object]) -> None:
        super().__init__(f"{what}{advice}")
        self.what = what  # the message without the advice
        self.columns = [*map(str, columns)]  # those that the table has


@dataclass
class Faults:
    """The bad rows of a file: a count for each kind of fault, and the first few places."""

    source: str  # the file, or the data set
    unit: str  # the unit of a place: "line" or "row"
    counts: dict[str, int] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)
    examples: dict[str, tuple[int, str]] = field(default_factory=dict)  # the first place, its details

    def add(self, place: int, fault: BadRow) -> None:
        self.counts[fault.what] = self.counts.get(fault.what, 0) + 1
        self.examples.setdefault(fault.what, (place, fault.detail))
        shown = self.shown.setdefault(fault.what, [])
        if len(shown) < SHOWN:
            shown.append(f"{place} ({fault.detail})" if fault.detail else str(place))

    def report(self, advice: str = "") -> None:
        """Raise DataError with all faults and the advice, if there are any faults."""
        if not self.counts:
            return
        total = sum(self.counts.values())
        if DUPLICATE in self.counts:
            advice = f"{advice} Without the ids of the data: --columns id=.".strip()
        lines = [
            f"{self.source}: rows that can't be used: {total}. Correct or remove them. {advice}".rstrip()
        ]
        for what, count in self.counts.items():
            more = f" and {count - SHOWN} more" if count > SHOWN else ""
            units = self.unit if count == 1 else f"{self.unit}s"
            lines.append(f"  {what}: {units} {', '.join(self.shown[what])}{more}")
        raise DataError("\n".join(lines))


def header_hint(names: Iterable[str], wanted: str) -> str:
    """Return the flag to set, as a sentence to append, if names of columns look like cells of a row.

    >>> header_hint(["question", "label"], "prompt")
    ''
    """
    names = [*names]
    if names == [str(number) for number in range(1, len(names) + 1)]:
        return f" Without a header they are numbers: --columns {wanted}=1 and so on."
    cells = [name for name in names if re.fullmatch(r"-?\d+([.,]\d+)?|.{50,}|.+[.?!]", name, re.DOTALL)]
    if not cells:
        return ""
    return f" If the first line is a row, set --no-header --columns {wanted}=1 and so on."
