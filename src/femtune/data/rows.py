"""Rows turned into problems; the faults of all rows are reported together.

`files` yields places and rows. A row that can't be parsed, or makes no problem, is a `BadRow`. Bad rows
are counted, and reported in one error at the end.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from femtune._util.text import SHOWN
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

    `source` is its name in messages, `unit` the unit of a place ("line" or "row"). Raises
    DataError if a row can't be used, or lacks a `required` column.
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

    def add(self, place: int, fault: BadRow) -> None:
        self.counts[fault.what] = self.counts.get(fault.what, 0) + 1
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
            f"{header_hint(row, missing[0])}"
        )


def header_hint(names: Iterable[str], wanted: str) -> str:
    """Return the flag to set, as a sentence to append, if names of columns look like cells of a row.

    >>> header_hint(["question", "label"], "prompt")
    ''
    """
    cells = [name for name in names if re.fullmatch(r"-?\d+([.,]\d+)?|.{50,}|.+[.?!]", name, re.DOTALL)]
    if not cells:
        return ""
    return f" If the first line is a row, set --no-header --columns {wanted}=1 and so on."
