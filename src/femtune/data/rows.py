"""Rows of files, turned into problems; the faults of all rows are reported together.

The reader of each kind of file yields places and rows. A row that can't be parsed, or makes no
problem, is a `BadRow`. Bad rows are counted, and reported in one error at the end.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from femtune._util.parsing import Unreadable, reading_arrow
from femtune._util.text import SHOWN, brief, first
from femtune.errors import DataError
from femtune.types import Problem, Prompt

# Names for our columns in other data sets: suggested to the user, never used automatically.
ALIASES = {
    "prompt": ("question", "problem", "instruction", "query", "input", "text"),
    "answer": (
        *("solution", "ground_truth", "label", "target", "response_score", "score", "rating"),
        *("gold", "reference", "output"),
    ),
}
JSON_COLUMNS = b"femtune.json"  # key of Parquet metadata: columns stored as JSON text


def read_problems(file: Path, renamed: Mapping[str, str], required: Sequence[str]) -> list[Problem]:
    """Return the problems of a file, in its order; `renamed` maps femtune's column names to the file's.

    Raises DataError if the file or a row of it can't be used, or lacks a `required` column.
    """
    problems = problems_of_rows(
        file_rows(file), str(file), file_unit(file), renamed, required, named=file.stem
    )
    if not problems:
        raise DataError(f"{file} holds no rows: it needs one problem in each row.")
    return problems


def problems_of_rows(
    rows: Iterable[tuple[int, Any]],
    source: str,
    unit: str,
    renamed: Mapping[str, str],
    required: Sequence[str],
    *,
    named: str,
) -> list[Problem]:
    """Return the problems of places and rows; one without an id is called `named` and its number.

    `source` is its name in messages, `unit` the unit of a place ("line" or "row"). Raises the errors of
    `read_problems`.
    """
    faults, checked = Faults(source, unit), False
    problems: list[Problem] = []
    places: dict[str, int] = {}
    for number, (place, row) in enumerate(rows, 1):
        try:
            values = _object(row)
            if not checked:
                _check_columns(source, values, renamed, required)
                checked = True
            values |= {name: values.get(column) for name, column in renamed.items()}
            problem = _problem(f"{named}-{number}", values, required)
            if problems and type(problem.prompt) is not type(problems[0].prompt):
                raise BadRow("`prompt` is text in some rows and a list of messages in others")
            if problem.id in places:
                raise BadRow(
                    "duplicate `id`",
                    f'"{problem.id}", first in {faults.unit} {places[problem.id]}',
                )
        except BadRow as fault:
            faults.add(place, fault)
        else:
            places[problem.id] = place
            problems.append(problem)
    faults.report()
    return problems


def file_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield place (line or row, from 1) and row of a file of any kind; an invalid row is a BadRow.

    Raises DataError if the file is missing, empty, of unknown kind, or damaged as a whole.
    """
    file = _existing(file)
    try:
        yield from _READERS[file.suffix.lower()](file)
    except UnicodeDecodeError as error:
        message = f"{file}, line {_undecodable_line(file)}: not UTF-8. Save the file as UTF-8."
        raise DataError(message) from error


def file_unit(file: Path) -> str:
    """Return the unit in which places of a file are counted: "row" or "line"."""
    return "row" if file.suffix.lower() in (".json", ".parquet") else "line"


# --- rows


class BadRow(Exception):
    """A row that makes no problem: the kind of fault, equal for all such rows, and its details."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.what, self.detail = what, detail


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
        lines = [
            f"{self.source}: rows that can't be used: {total}. Correct or remove them. {advice}".rstrip()
        ]
        for what, count in self.counts.items():
            more = f" and {count - SHOWN} more" if count > SHOWN else ""
            units = self.unit if count == 1 else f"{self.unit}s"
            lines.append(f"  {what}: {units} {', '.join(self.shown[what])}{more}")
        raise DataError("\n".join(lines))


def _object(row: Any) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("not an object with prompt and answer", type(row).__name__)
    return row


def _problem(default_id: str, values: dict[str, Any], required: Sequence[str]) -> Problem:
    for name in required:
        if name not in values:
            raise BadRow(f"`{name}` is missing")
    others = {
        sys.intern(name): value  # saves memory: a reader makes new key strings for every row
        for name, value in values.items()
        if name not in ("id", "prompt", "answer") and value is not None
    }
    problem_id = _canonical("id", values["id"]) if "id" in values else default_id
    prompt, answer = _prompt(values["prompt"]), values.get("answer")
    graded = "answer" in required or answer not in (None, "")
    return Problem(problem_id, prompt, _canonical("answer", answer) if graded else "", others)


def _canonical(name: str, value: Any) -> str:
    """Return a cell as text; 4.0 becomes "4"."""
    if value is None:
        raise BadRow(f"`{name}` is empty")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else str(value)
    if not isinstance(value, str):
        found = type(value).__name__ if not isinstance(value, float) else str(value)
        raise BadRow(f"`{name}` must be text or a number", found)
    return _text(name, value).strip()


def _text(name: str, value: str) -> str:
    if not value.strip():
        raise BadRow(f"`{name}` is empty")
    return _valid(name, value)


def _valid(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"`{name}` is not valid Unicode", error.reason) from None
    return value


def _prompt(value: Any) -> Prompt:
    if value is None or isinstance(value, str):
        return _text("prompt", value or "")
    if not isinstance(value, list):
        wrong = "`prompt` must be text or a list of messages"
        raise BadRow(wrong, type(value).__name__)
    if not value:
        raise BadRow("`prompt` is empty")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            wrong = "`prompt` has a message without `role` and `content` as text"
            raise BadRow(wrong, f"message {number}")
        for text in (message["role"], message["content"]):
            _valid("prompt", text)
        messages.append({key: text for key, text in message.items() if text is not None})
    if messages[-1]["role"] != "user":
        raise BadRow('the last message of `prompt` is not of role "user"', messages[-1]["role"])
    _text("prompt", messages[-1]["content"])
    return messages


def _check_columns(
    file: str, row: Mapping[str, Any], renamed: Mapping[str, str], required: Sequence[str]
) -> None:
    """Check that the first row has the required columns. Raises DataError that suggests flags."""
    has = ", ".join(row) or "no column at all"
    for name, source in renamed.items():
        if source not in row:
            near = get_close_matches(source, list(row), 1)
            hint = f" Did you mean {name}={near[0]}?" if near else ""
            raise DataError(f"{file} has no column `{source}` for `{name}`; it has {has}.{hint}")
    missing = [name for name in required if name not in row and name not in renamed]
    if missing:
        lowered = {name.lower(): name for name in reversed(list(row))}
        flags = [
            f"--columns {name}={lowered[alias]}"
            for name in missing
            for alias in (name, *ALIASES[name])
            if alias in lowered
        ]
        names = " and ".join(f"`{name}`" for name in missing)
        what = " or ".join(flags) or f"--columns {missing[0]}=<the file's name for it>"
        raise DataError(
            f"{file} has no column {names}; it has {has}. If it has another name, set {what}."
        )


# --- files


def _read_jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        yield from json_lines(lines)


def json_lines(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield place, from 1, and row for each line of JSON as it arrives; blank lines are skipped."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            yield number, BadRow("not JSON", f"{error.msg}, column {error.colno}")
        except (ValueError, RecursionError) as error:  # a number too long, a list nested too deeply
            yield number, BadRow("not JSON", str(error))


def _read_json(file: Path) -> Iterator[tuple[int, Any]]:
    text = file.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        hint = " If each line is an object, name it .jsonl." if error.msg == "Extra data" else ""
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{file}, {where}: not JSON ({error.msg}).{hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}).") from error
    if not isinstance(rows, list):
        raise DataError(f"{file} holds a JSON {type(rows).__name__}: it must be a list of objects.")
    yield from enumerate(rows, 1)


def _read_table(file: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default refuses prompts over 131,072 characters
    with file.open(encoding="utf-8-sig", newline="") as lines:
        delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise DataError(
                    f"{file}: column `{twice[0]}` occurs twice in the first line: rename one."
                )
            for cells in rows:
                if len(cells) == len(header):
                    yield rows.line_num, dict(zip(header, cells, strict=True))
                elif cells:
                    width = f"{len(cells)} cells, {len(header)} columns"
                    yield rows.line_num, BadRow("wrong number of cells", width)
        except csv.Error as error:
            raise DataError(f"{file}, line {rows.line_num}: {error}. Check the quotes.") from error


def _read_parquet(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        with reading_arrow():
            # as pyarrow would read a name with a colon as a URI
            source = pq.ParquetFile(pa.memory_map(str(file)))
            as_json = _json_columns(source.schema_arrow)
            batches = source.iter_batches(batch_size=1024)
        number = 0
        while True:
            with reading_arrow():
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist(maps_as_pydicts="strict")
            if not rows:
                return
            for row in rows:
                number += 1
                yield number, _from_json(row, as_json)
    except Unreadable as error:
        raise DataError(f"{file} {error}. Create the file again.") from error


def _json_columns(schema: Any) -> list[str]:
    """Return the columns stored as JSON text. Raises Unreadable if the metadata don't fit the file."""
    named = json.loads((schema.metadata or {}).get(JSON_COLUMNS, b"[]"))
    if not isinstance(named, list) or not {*map(str, named)} <= {*schema.names}:
        raise Unreadable(f"has metadata {JSON_COLUMNS.decode()!r} that do not list columns of the file")
    return named


def _from_json(row: dict[str, Any], as_json: Sequence[str]) -> dict[str, Any] | BadRow:
    made = {}
    for name in as_json:
        try:
            made[name] = None if row[name] is None else json.loads(row[name])
        except (ValueError, TypeError, RecursionError) as error:
            return BadRow(f"`{name}` is not the JSON that it was stored as", brief(str(error)))
    return row | made


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}


def _existing(file: Path) -> Path:
    """Return the file if it exists and can be read. Raises DataError that suggests alternatives."""
    if file.is_dir():
        readable = sorted(found.name for found in file.iterdir() if found.suffix in _READERS)
        inside = f"give one file of it: {first(readable)}" if readable else "give a file"
        raise DataError(f"{file} is a folder: {inside}.")
    if not file.exists():
        folder = file.parent
        near = get_close_matches(file.name, os.listdir(folder), 3) if folder.is_dir() else []
        hint = f"There is {', '.join(near)}." if near else f"The folder is {folder.resolve()}."
        raise DataError(f"no file {file}. {hint}")
    if file.suffix.lower() not in _READERS:
        known = ", ".join(_READERS)
        raise DataError(f'{file} is of unknown kind "{file.suffix}": use one of {known}.')
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty: it needs one problem in each row.")
    return file


def _undecodable_line(file: Path) -> int:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return number
