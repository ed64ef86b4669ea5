"""Schemas of published data sets, on the Hub or in a file, and the reading of their rows.

A file is recognized by its columns, and read by the same code as the data set on the Hub. In CSV, the
cells of nested columns are JSON, or what Python prints. `forms.py` converts the rows; `hub.py` opens
data sets of the Hub.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from femtune._util.text import near
from femtune.data.column_names import flags_for, likely
from femtune.data.columns import check_column, root_of
from femtune.data.files.reading import file_rows, file_unit
from femtune.data.messages import with_messages
from femtune.data.rows import BadRow, ColumnsError, Faults, header_hint
from femtune.data.tasks.cells import KEPT, Row, read_nested
from femtune.data.tasks.columns import LABELS, EmptyLabels, by_rater, implied, parts, read_cell
from femtune.data.tasks.hub import Address, hub_rows, is_hub_id, open_hub
from femtune.data.tasks.published import SCHEMAS, Schema
from femtune.errors import ConfigError, DataError

log = logging.getLogger("femtune")

# --- reading


class Found(NamedTuple):
    """The schema of a source, its rows in the task's form with their places, and its columns."""

    schema: Schema
    rows: Iterator[tuple[int, dict[str, Any] | BadRow]]
    columns: dict[str, str]  # femtune's names: the source's, as set or as its own names say
    empty: EmptyLabels  # filled while the rows are read


def read_rows(
    data: str | Path,
    task: str,
    *,
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    split: str | None = None,
    header: bool = True,
    labels: bool = True,
    given: Callable[[], Iterable[tuple[int, Any]]] | None = None,
) -> Found:
    """Return the schema of a file or a Hub data set, and its rows in the task's form, with places.

    `columns` maps femtune's names to the file's: `{"score": "rating"}`. A published row may become
    several rows, or none if its publisher left out the label; an invalid row is a BadRow. With
    labels=False, rows may lack their label, as items to predict do. With header=False, the first line of
    a .csv or .tsv file is a row. Rows are read lazily; `given` yields those of a file instead.

    Raises DataError if the data do not exist or the task can't read them, ConfigError for an unknown
    config or split. Reading all rows raises DataError if none has a label.
    """
    source, renamed = str(data), dict(columns or {})
    if not is_hub_id(source):
        if config or split:
            raise ConfigError(
                f"{source} is a file; only data sets on the Hub have config and split. Leave them out."
            )
        rows = iter(given() if given else file_rows(Path(data), header))
        return read_given(rows, source, file_unit(Path(data)), task, columns=renamed, labels=labels)
    known = _published(source, task, config)
    if not header:
        raise ConfigError(
            f"{source} is a data set on the Hub, whose columns have names: drop no-header."
        )
    opened = open_hub(_address(source, known, config, split), task)
    there = list(opened.column_names)
    rows = hub_rows(opened, there)
    if renamed:
        _, head = next(hub_rows(opened, there), (1, dict.fromkeys(there)))
        _check_renamed(source, task, head, renamed)
    if known and not renamed and known.needs(labels) <= {*there}:
        schema = known
    else:
        schema, renamed = _schema_of(there, source, task, renamed, labels)
    if schema.card:
        roots = {root_of(part, there) for column in renamed.values() for part in parts(column, there)}
        rows = hub_rows(opened, {*schema.columns, *schema.also, *KEPT, *roots})
    empty = EmptyLabels()
    return Found(schema, _made(schema, rows, renamed, source, labels, empty), renamed, empty)


def hub_source(
    source: str, task: str, *, config: str | None = None, split: str | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield the places and rows of a Hub data set, as they are. Raises as `read_rows` does."""
    opened = open_hub(_address(source, _published(source, task, config), config, split), task)
    yield from hub_rows(opened, opened.column_names)


def read_given(
    rows: Iterator[tuple[int, Any]],
    source: str,
    unit: str,
    task: str,
    *,
    columns: Mapping[str, str],
    labels: bool = True,
) -> Found:
    """Do as `read_rows` for places and rows from anywhere; `unit` is the unit of a place."""
    head, rows = _head(rows, source, unit)
    _check_renamed(source, task, head, columns)
    schema, renamed = _schema_of(head, source, task, columns, labels)
    empty = EmptyLabels()
    return Found(schema, _made(schema, rows, renamed, source, labels, empty), renamed, empty)


def _schema_of(
    there: Collection[str], source: str, task: str, renamed: Mapping[str, str], labels: bool
) -> tuple[Schema, dict[str, str]]:
    """Return the schema of a source, and the mapping with what its own names say if none fits else."""
    names = {*there, *renamed}
    said = {
        name: column
        for name, column in implied(task, names).items()
        if name not in renamed and column not in renamed
    }
    if said and not _fitting(task, names, renamed, labels):
        own = {name: column for name, column in said.items() if {*parts(column, there)} <= {*there}}
        if _fitting(task, {*names, *own}, {**renamed, **own}, labels):
            renamed, names = {**renamed, **own}, {*names, *own}
    return find_schema(task, names, source, renamed=renamed, labels=labels), dict(renamed)


def _fitting(task: str, there: Collection[str], renamed: Collection[str], labels: bool) -> list[Schema]:
    """Return the schemas whose columns are all present; they have all names in `renamed` if any does."""
    mine = _candidates(task, renamed)
    return [schema for schema in mine if schema.needs(labels) <= {*there}]


def _candidates(task: str, renamed: Collection[str]) -> list[Schema]:
    """Return the schemas of a task that have all names in `renamed`, or all schemas if none has."""
    mine = [schema for schema in SCHEMAS if schema.task == task]
    return [schema for schema in mine if {*renamed} <= schema.columns | schema.also] or mine


def find_schema(
    task: str,
    columns: Collection[str],
    source: str,
    *,
    renamed: Collection[str] = (),
    labels: bool = True,
) -> Schema:
    """Return the schema whose columns are all present; among several, the one with the most.

    It must have all names in `renamed`, which the user gave. Raises DataError if none fits.
    """
    there, mine = set(columns), _candidates(task, renamed)
    fits = _fitting(task, there, renamed, labels)
    best = max(fits, key=lambda schema: len(schema.columns & there), default=None)
    others = [schema for schema in SCHEMAS if schema.task != task and schema.columns <= there]
    other = max(others, key=lambda schema: len(schema.columns), default=None)
    if best and other and best.columns < other.columns and not renamed:
        raise DataError(
            f"{source} holds rows for task {other.task}: it has columns {_listed(other.columns)}. To "
            f"read it as task {task}, name its columns, for example --columns question=question."
        )
    if best:
        return best
    nearest = max(mine, key=lambda schema: _closeness(schema, there))
    missing = nearest.needs(labels) - there
    elsewhere = f" They are those of {other.name}, for task {other.task}." if other else ""
    plain = "; ".join(_listed(schema.columns) for schema in mine if not schema.card)
    names = ", ".join(dict.fromkeys(schema.name for schema in mine if schema.card))
    own = sorted(str(name) for name in there if name not in renamed)
    raise ColumnsError(
        f"{source} holds no rows for task {task}: it has columns {_listed(there)}.{elsewhere}",
        f"\n  The nearest schema is {nearest.name}, which also has {_listed(missing)}. If they have "
        f"other names, set {flags_for(missing, own)}{header_hint(there, min(missing))}\n"
        f"  Task {task} reads tables with columns {plain}; or those of {names}.",
        own,
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(map(str, names)))


def _closeness(schema: Schema, there: Collection[str]) -> float:
    """Return the share of a schema's columns that are there; one of another name counts half."""
    found = [1.0 if name in there else 0.5 * bool(likely(name, there)) for name in schema.columns]
    return sum(found) / len(found)


def _published(name: str, task: str, config: str | None) -> Schema | None:
    """Return the schema of a data set on the Hub, or None. Raises for a wrong task or config."""
    known = [schema for schema in SCHEMAS if schema.name == name]
    mine = [schema for schema in known if schema.task == task]
    if known and not mine:
        raise DataError(f"{name} holds data for task {known[0].task}, not {task}: change --task.")
    configs = [config for schema in mine for config in schema.configs]
    if config is None or not configs:
        return mine[0] if mine else None
    found = [schema for schema in mine if config in schema.configs]
    if not found:
        raise ConfigError(f"{name} has no config {config!r}.{near(config, configs)} It has {configs}.")
    return found[0]


def _address(name: str, known: Schema | None, config: str | None, split: str | None) -> Address:
    if known is None:
        return Address(name, split or "train", config)
    config = config or known.config
    return Address(name, split or known.split, config, known.in_folder, known.revision)


def _head(
    rows: Iterator[tuple[int, Any]], source: str, unit: str
) -> tuple[Row, Iterator[tuple[int, Any]]]:
    """Return the first valid row, and all rows. Raises DataError if none is valid."""
    ahead: list[tuple[int, Any]] = []
    for place, row in rows:
        ahead.append((place, row))
        if isinstance(row, dict):
            return row, chain(ahead, rows)
    faults = Faults(source, unit)
    for place, row in ahead:
        faults.add(place, row if isinstance(row, BadRow) else _no_object(row))
    faults.report()
    raise DataError(f"{source} holds no rows.")


def _check_renamed(source: str, task: str, row: Row, renamed: Mapping[str, str]) -> None:
    known = {name for schema in SCHEMAS if schema.task == task for name in schema.columns | schema.also}
    for name, column in renamed.items():
        if name not in known:
            raise DataError(f"task {task} reads no column {name!r}.{near(name, known)}")
        for part in parts(column, row):
            check_column(row, part, name, source)


def _made(
    schema: Schema,
    rows: Iterable[tuple[int, Any]],
    renamed: Mapping[str, str],
    source: str,
    labels: bool,
    empty: EmptyLabels,
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    hidden = others = 0
    for place, row in rows:
        try:
            cells = _cells(schema, row, renamed, labels)
            made = [*_task_rows(schema, cells, renamed, empty, place)]
        except BadRow as fault:
            made, others = [], others + 1
            yield place, fault
        for one in made:
            if not labels or schema.label in one:
                others += 1
                yield place, one
            elif schema.gaps:
                hidden += 1
            else:
                others += 1
                yield place, BadRow(f"`{_label_column(schema, one)}` is empty")
    if hidden and not others:
        raise DataError(
            f"{source} has no labels, as the publisher of {schema.name} hides those of its test split: "
            f"use {schema.eval_split or schema.split}."
        )
    if not hidden and not others:
        raise DataError(f"{source} holds no rows for task {schema.task}.")
    if hidden:
        log.info("%s: %s items have no label, and are left out.", source, f"{hidden:,}")


def _task_rows(
    schema: Schema,
    cells: dict[str, Any],
    renamed: Mapping[str, str],
    empty: EmptyLabels,
    place: int,
) -> Iterator[dict[str, Any]]:
    """Yield the task's rows of a published row, one for each rater if its label is a list."""
    column = renamed.get(schema.label, schema.label)
    raters = schema.open_labels and schema.label in LABELS
    for each in by_rater(cells, schema.label, column, empty, place) if raters else [cells]:
        yield from schema.rows(each)


def _label_column(schema: Schema, row: Row) -> str:
    columns = sorted(schema.label_columns)
    return row["attribute"] if row.get("attribute") in columns else columns[0]


def _cells(schema: Schema, row: Any, renamed: Mapping[str, str], labels: bool) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise _no_object(row)
    cells = {**row} | {name: read_cell(row, name, column) for name, column in renamed.items()}
    for name in sorted(schema.needs(labels)):
        if name not in cells:
            raise BadRow(f"`{name}` is missing")
    for name in schema.nested:
        if isinstance(cells.get(name), str):
            cells[name] = read_nested(name, cells[name])
    for name in schema.columns & cells.keys():
        cells[name] = with_messages(cells[name], name)
    return cells


def _no_object(row: Any) -> BadRow:
    return BadRow("not an object with columns", type(row).__name__)


# --- the schemas
