"""Names of columns: what `--columns` maps, and what a file's own names say.

    prompt=instruction,input                     texts of several columns, one after the other
    preference=annotator1,annotator2             a label of each rater
    choices=A,B,C,D                              a choice in each column
    id=article,system                            together they name a row

Only names that leave no doubt are read without `--columns`: the two texts of a pair, and the columns of
choices. Others are proposed in the message: see proposals.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from femtune._util.text import first
from femtune.data.column_names import plain_name
from femtune.data.columns import cell
from femtune.data.rows import BadRow
from femtune.data.tasks.cells import Row, opened_list, read_plain

TEXTS = frozenset(("prompt", "post", "question", "response", "summary", "title"))  # joined if several
LABELS = frozenset(("score", "preference"))  # one for each rater if several

# names of the two texts of a pair
_SIDES = (
    *("response_a response_b", "response_1 response_2", "response1 response2", "output_a output_b"),
    *("output_1 output_2", "output1 output2", "answer_a answer_b", "answer_1 answer_2"),
    *("completion_a completion_b", "summary_a summary_b", "summary_1 summary_2", "left right"),
)
_PREFERENCES = ("preference", "winner", "label")
_CHOICES = ("", "option", "choice", "op", "answer")  # before A or 1; case, spaces and signs aside


def implied(task: str, there: Collection[str]) -> dict[str, str]:
    """Return the mapping that a file's own names say; {} if they say nothing.

    >>> implied("judge", ["prompt", "output_1", "output_2", "label"])
    {'response_a': 'output_1', 'response_b': 'output_2', 'preference': 'label'}
    >>> implied("choice", ["question", "A", "B", "C", "answer"])
    {'choices': 'A,B,C'}
    """
    if task in ("judge", "summarize"):
        return _of_pairs("response" if task == "judge" else "summary", there)
    return _of_choices(there) if task == "choice" and "choices" not in there else {}


def _of_pairs(thing: str, there: Collection[str]) -> dict[str, str]:
    own = (f"{thing}_a", f"{thing}_b")
    found = [pair for names in _SIDES if {*(pair := names.split())} <= {*there}]
    if not found:
        return {}
    sides = own if {*own} <= {*there} else tuple(found[0])
    label = next((name for name in _PREFERENCES if name in there), "preference")
    mapped = {**dict(zip(own, sides, strict=True)), "preference": label}
    return {name: column for name, column in mapped.items() if name != column}


def _of_choices(there: Collection[str]) -> dict[str, str]:
    named: dict[str, list[str]] = {}
    for column in there:
        named.setdefault(plain_name(column), []).append(column)
    for before in _CHOICES:
        for signs in ("abcdefghij", "123456789", "0123456789"):
            found = [*takewhile(bool, (named.get(f"{before}{sign}") for sign in signs))]
            columns = [each[0] for each in found if each and len(each) == 1]
            alone = len(columns) == len(found) and not any("," in column for column in columns)
            if len(columns) > 1 and alone and (before or signs[0] == "a"):
                mapped = {"choices": ",".join(columns)}
                return mapped if "answer" in there else mapped | _if_there("answer", "answerKey", there)
    return {}


def _if_there(name: str, column: str, there: Collection[str]) -> dict[str, str]:
    return {name: column} if column in there else {}


# --- cells


def parts(column: str, there: Collection[str]) -> list[str]:
    """Return the columns that a mapping names: one, or several with commas between."""
    return [column] if column in there or "," not in column else [*map(str.strip, column.split(","))]


def read_cell(row: Row, name: str, column: str) -> Any:
    """Return the cell for a femtune column: of several columns their texts joined, or a list."""
    columns = parts(column, row)
    if len(columns) == 1:
        return cell(row, columns[0])
    cells = [cell(row, each) for each in columns]
    if name in TEXTS or name == "id":
        texts = (read_plain(value, each) for value, each in zip(cells, columns, strict=True))
        return ("/" if name == "id" else "\n\n").join(filter(None, texts))
    while name == "choices" and cells and cells[-1] in (None, ""):
        cells.pop()  # a question with fewer choices than columns
    return cells


@dataclass
class EmptyLabels:
    """Raters' empty cells in rows that another rater labelled, counted while the rows are read."""

    counts: Counter[str] = field(default_factory=Counter)  # by rater
    num_cells: int = 0  # empty or not
    first: int = 0  # the first row's place
    column: str = ""

    def add(self, place: int, column: str, raters: Iterable[Any], num_cells: int) -> None:
        """Count a row's cells, of which those of `raters` are empty."""
        self.num_cells, self.column = self.num_cells + num_cells, column
        for rater in raters:
            self.first = self.first or place
            self.counts[str(rater)] += 1

    def describe(self, unit: str) -> list[str]:
        """Return a sentence with their number; [] without any."""
        if not self.counts:
            return []
        whose = first([f"{rater} {count:,}" for rater, count in self.counts.most_common()])
        return [
            f"`{self.column}`: {self.counts.total():,} of {self.num_cells:,} ratings are empty, and "
            f"left out ({whose}; for example {unit} {self.first})."
        ]


def by_rater(
    cells: dict[str, Any], label: str, column: str, empty: EmptyLabels, place: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each rater, if a cell holds a list of labels; a rater without a label has no row.

    A rater is named by `rater`, by the column of the label, or by a number within the row. Labels that
    are empty are counted in `empty`. Raises BadRow if no rater has a label, or `rater` has names for
    others.
    """
    given = opened_list(cells.get(label), label)
    if not isinstance(given, list):
        yield cells
        return
    columns = parts(column, cells)
    raters = opened_list(cells.get("rater"), "rater")
    if not isinstance(raters, list) and len(columns) == len(given) > 1:
        raters = columns
    elif raters in (None, ""):
        raters = [f"rater {number}" for number in range(1, len(given) + 1)]
    raters = raters if isinstance(raters, list) else [raters]
    if len(raters) != len(given):
        what = "`rater` must name a rater for each label; --columns rater= leaves it out"
        raise BadRow(what, f"{len(raters)} for {len(given)}")
    pairs = [*zip(raters, given, strict=True)]
    there = [{label: value, "rater": rater} for rater, value in pairs if value not in (None, "")]
    if not there:
        raise BadRow(f"`{column}` is empty")
    empty.add(place, column, (rater for rater, value in pairs if value in (None, "")), len(pairs))
    for each in there:
        named = {} if cells.get("id") in (None, "") else {"id": f"{cells['id']}/{each['rater']}"}
        yield {**cells, **each, **named}


def shown(columns: Mapping[str, str]) -> str:
    """Say which columns were taken for which, "" if each has its own name."""
    return ", ".join(f"`{column}` as {name}" for name, column in columns.items() if column != name)
