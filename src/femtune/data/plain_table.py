"""Problems of a plain table of prompts and answers, the task `table`."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from femtune._util.text import number_text
from femtune.data.column_names import flags_for
from femtune.data.columns import cell, check_column
from femtune.data.messages import check_text, read_prompt
from femtune.data.rows import DUPLICATE, BadRow, ColumnsError, Faults, header_hint
from femtune.errors import DataError
from femtune.types import Problem


def problems_of_rows(
    rows: Iterable[tuple[int, Any]],
    source: str,
    unit: str,
    renamed: Mapping[str, str],
    required: Sequence[str],
    *,
    named: str,
    places: dict[str, int] | None = None,
) -> list[Problem]:
    """Return the problems of places and rows; one without an id is called `named` and its number.

    `source` is its name in messages, `unit` the unit of a place ("line" or "row"); `places` receives the
    place of each problem by its id. Raises DataError if a row can't be used, or lacks a `required`
    column.
    """
    faults, checked = Faults(source, unit), False
    problems: list[Problem] = []
    places = {} if places is None else places
    for number, (place, row) in enumerate(rows, 1):
        try:
            values = _object(row)
            if not checked:
                _check_columns(source, values, renamed, required)
                checked = True
            # the row itself stays as it is: a caller may show it beside its prediction
            values = values | {name: cell(values, column) for name, column in renamed.items()}
            if renamed.get("id") == "":  # --columns id= leaves the file's ids out
                del values["id"]
            problem = _problem(f"{named}-{number}", values, required)
            if problems and type(problem.prompt) is not type(problems[0].prompt):
                raise BadRow("`prompt` is text in some rows and a list of messages in others")
            if problem.id in places:
                raise BadRow(
                    DUPLICATE,
                    f'"{problem.id}", first in {faults.unit} {places[problem.id]}',
                )
        except BadRow as fault:
            faults.add(place, fault)
        else:
            places[problem.id] = place
            problems.append(problem)
    faults.report()
    return problems


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
    prompt, answer = read_prompt(values["prompt"], "prompt"), values.get("answer")
    graded = "answer" in required or answer not in (None, "")
    return Problem(problem_id, prompt, _canonical("answer", answer) if graded else "", others)


def _canonical(name: str, value: Any) -> str:
    """Return a cell as text; 4.0 becomes "4"."""
    if value is None:
        raise BadRow(f"`{name}` is empty")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return number_text(value)
    if not isinstance(value, str):
        found = type(value).__name__ if not isinstance(value, float) else str(value)
        raise BadRow(f"`{name}` must be text or a number", found)
    return check_text(name, value).strip()


def _check_columns(
    file: str, row: Mapping[str, Any], renamed: Mapping[str, str], required: Sequence[str]
) -> None:
    """Check that the first row has the required columns. Raises DataError that suggests flags."""
    for name, source in renamed.items():
        check_column(row, source, name, file)
    has = ", ".join(row) or "no column at all"
    missing = [name for name in required if name not in row and name not in renamed]
    if missing:
        names = " and ".join(f"`{name}`" for name in missing)
        what = f"{file} has no column {names}; it has {has}."
        if conversation := _conversation(row, missing):
            raise DataError(f"{what} These flags would read it:\n  --columns {conversation}")
        hint = header_hint(row, missing[0])
        raise ColumnsError(what, f" If they have other names, set {flags_for(missing, row)}{hint}", row)


def _conversation(row: Mapping[str, Any], missing: Sequence[str]) -> str:
    """Return what maps a column of messages that ends with the assistant's, or ""."""
    for name, value in row.items():
        if missing == ["prompt", "answer"] and isinstance(value, list) and len(value) > 1:
            last = value[-1]
            if isinstance(last, Mapping) and last.get("role") == "assistant":
                return shlex.join([f"prompt={name}[:-1]", f"answer={name}[-1].content"])
    return ""
