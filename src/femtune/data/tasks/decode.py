"""Labels and texts of all rows of a source, read as columns: see `codings`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from femtune.data.rows import BadRow
from femtune.data.tasks import codings
from femtune.data.tasks.codings import Place
from femtune.data.tasks.schemas import Found
from femtune.data.tasks.sides import AS_TEXT
from femtune.errors import ConfigError, DataError

log = logging.getLogger("femtune")


def decoded(
    read: Found, rows: list[Place], by_hand: Mapping[str, str], unit: str, answers: bool
) -> tuple[list[Place], list[str]]:
    """Return rows with labels of the task, and sentences that say how their column was read.

    Raises DataError for a column that can be read in several ways, unless no answers are needed: then
    its labels are left out.
    """
    schema, columns = read.schema, read.columns
    published = schema.label if schema.label in schema.columns else min(schema.label_columns, default="")
    column = columns.get(schema.label, published)
    said = schema.says
    unused = codings.unused(by_hand, rows, schema.label)
    try:
        if schema.label == "preference" and schema.open_labels:
            thing = "response" if schema.task == "judge" else "summary"
            sides = {f"{thing}_{side}": side.upper() for side in "ab"}
            names = {columns.get(name, name).lower(): side for name, side in sides.items()}
            rows, said = codings.decode_pairs(rows, column, by_hand, names)
        elif schema.task == "choice" and schema.open_labels:
            rows, said = codings.decode_choices(rows, column, by_hand, unit)
        elif schema.label == "score" and by_hand:
            rows, said = codings.decode_ratings(rows, column, by_hand)
        elif by_hand:
            raise ConfigError(f"labels is not for {schema.name}, whose labels are known: leave it out.")
    except DataError:
        if answers:
            raise
        rows = [(place, _without(row, schema.label)) for place, row in rows]
    for value in unused:
        log.warning("no row has the label %s, which --labels names.", value)
    return rows, [said] if said else []


def _without(row: Any, name: str) -> Any:
    return row if isinstance(row, BadRow) else {key: row[key] for key in row if key != name}


def check_texts(rows: Sequence[Place]) -> tuple[list[Place], list[str]]:
    """Return rows without marks of responses that are numbers, true or false, and what to say of them.

    They count as text among texts. In a column of nothing else, they are BadRows: it is probably
    another column.
    """
    marks = [{*row.get(AS_TEXT, "").split()} for _, row in rows if not isinstance(row, BadRow)]
    num = sum(map(bool, marks))
    if not num:
        return [*rows], []
    if not (columns := set.intersection(*marks)):
        made = [(place, _without(row, AS_TEXT)) for place, row in rows]
        return made, [f"{num:,} of {len(marks):,} rows have a number, true or false as a response."]
    name = min(columns)

    def refused(row: Any) -> BadRow:
        return row if isinstance(row, BadRow) else BadRow(f"`{name}` is not text", row[name])

    return [(place, refused(row)) for place, row in rows], []
