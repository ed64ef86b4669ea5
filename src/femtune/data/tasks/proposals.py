"""Flags that would read a table whose columns have other names: proposed in errors, never applied.

instruction, output, human_score, rater name
--task judge --columns prompt=instruction response=output score=human_score 'rater=rater name'
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from femtune.data.column_names import SYNONYMS, likely, spelled
from femtune.data.rows import ColumnsError
from femtune.data.tasks.columns import implied, parts
from femtune.data.tasks.published import SCHEMAS, Schema
from femtune.errors import DataError

_TABLE = Schema(
    name="plain table",
    task="table",
    columns=frozenset({"prompt", "answer"}),
    rows=lambda row: [dict(row)],
    label="answer",
    label_columns=frozenset({"answer"}),
)


def proposal(task: str, columns: Collection[str], *, labels: bool = True) -> str:
    """Return the flags that read a table with these columns, as one line for a shell; "" if none do.

    They are of the given task, or of any if it is `table`, the default. With labels=False the table
    needs no column of answers, and the task is as given.

    >>> proposal("table", ["instruction", "Output", "human_score", "worker id"])
    "--task judge --columns prompt=instruction response=Output score=human_score 'rater=worker id'"
    """
    named = task != "table" or not labels
    best, flags = (0, False, 0), ""
    for schema in (_TABLE, *SCHEMAS):
        mapping = None if named and task != schema.task else _mapping(schema, columns, labels)
        if mapping is None:
            continue
        num_same = sum(name == column for name, column in mapping.items())
        rank = (len(schema.needs(labels)), schema.task == task, num_same)
        if rank > best:
            best, flags = rank, _flags(schema, mapping)
    return flags


@contextmanager
def proposing(task: str, *, labels: bool) -> Iterator[None]:
    """Raise a ColumnsError within the block as a DataError with the flags that would read the table."""
    try:
        yield
    except ColumnsError as error:
        flags = proposal(task, error.columns, labels=labels)
        advised = f"{error.what}\n  These flags would read it:\n  {flags}"
        raise DataError(advised if flags else str(error)) from error


def _mapping(schema: Schema, columns: Collection[str], labels: bool) -> dict[str, str] | None:
    """Return femtune's names of columns and the table's; None if the table can't have them all."""
    there = [name for name in columns if name.isprintable()]
    needed = sorted(schema.needs(labels))
    found = {name: name for name in {*needed, *schema.also, *schema.label_columns} if name in there}
    if schema.card:  # its publisher's names are its own
        return found if found.keys() >= {*needed} else None
    if schema.task == "choice" and "choices" not in found:
        found |= {name: columns for name, columns in implied("choice", there).items() if name in needed}
    # names that differ by case and spaces alone go first, so that no synonym takes their column
    optional = [name for name in sorted(schema.also | schema.label_columns) if name in SYNONYMS]
    for search in (spelled, likely):
        for name in (*needed, *optional):
            taken = {part for column in found.values() for part in parts(column, there)}
            free = [column for column in there if column not in taken]
            if name not in found and (column := search(name, free)) is not None:
                found[name] = column
    return found if found.keys() >= {*needed} else None


def _flags(schema: Schema, mapping: Mapping[str, str]) -> str:
    order = {name: place for place, name in enumerate(SYNONYMS)}
    pairs = [(name, column) for name, column in mapping.items() if name != column]
    pairs.sort(key=lambda pair: (order.get(pair[0], len(order)), pair))
    given = [shlex.quote(f"{name}={column}") for name, column in pairs]
    return " ".join([f"--task {schema.task}", *(["--columns", *given] if given else [])])
