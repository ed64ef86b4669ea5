"""Predictions beside the rows that they are of: JSON lines, Parquet or CSV, and a closing line.

A row of the output has the columns of its input row, then the fields of the prediction. An input column
that is called as a field is (`answer`, say) is written as `input_answer`. An input's `id` that is the
prediction's is written once.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from femtune._util.atomic_files import replacing
from femtune._util.text import number_text
from femtune.data.files.columnar import JSON_COLUMNS
from femtune.data.problems import native_array
from femtune.errors import ConfigError
from femtune.evaluation.aggregate import Prediction
from femtune.run_folder import check_new
from femtune.types import Problem

log = logging.getLogger("femtune")

Row = Mapping[str, Any]

SHARES = pa.list_(pa.struct([("answer", pa.string()), ("share", pa.float64())]))
PREDICTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("answer", pa.string()),  # null without an answer
        ("confidence", pa.float64()),  # null if no draw could be read
        ("abstained", pa.bool_()),
        ("no_answer", pa.string()),  # the reason: abstained, or unreadable
        ("num_answered", pa.int32()),
        ("votes", pa.list_(pa.struct([("answer", pa.string()), ("count", pa.int32())]))),
        ("aggregate", pa.string()),  # votes or probabilities: the source of the answer
        ("probabilities", SHARES),  # mean of pi(y | x, z), not calibrated; null where not scored
        ("distribution", SHARES),  # null for free-form answers
        ("expected", pa.float64()),
        ("consistent", pa.bool_()),
        ("rationale", pa.string()),
    ]
)
CORRECT = "correct_answer"  # further field of an evaluation's predictions
FIELDS = (*PREDICTIONS.names, CORRECT)
ENDINGS = (".jsonl", ".parquet", ".csv")


# --- input rows


def beside(prediction: Prediction, row: Row) -> Prediction:
    """Return a prediction after the columns of its input row.

    >>> beside({"id": "7", "answer": "4"}, {"id": 7, "prompt": "2 + 2?", "answer": None})
    {'id': '7', 'prompt': '2 + 2?', 'input_answer': None, 'answer': '4'}
    """
    made: Prediction = {}
    for name, value in row.items():
        if name == "id" and _is_id(value, prediction["id"]):
            made["id"] = prediction["id"]
        else:
            made[_free_name(name, row)] = value
    return made | prediction


def _is_id(value: Any, name: str) -> bool:
    text = number_text(value) if isinstance(value, float) else str(value).strip()
    return text == name


def _free_name(name: str, row: Row) -> str:
    """Return a name for an input column that no field, and no other column, has."""
    if name not in FIELDS:
        return name
    other = f"input_{name}"
    while other in row:
        other = f"input_{other}"
    return other


def warn_of_clashes(rows: Iterable[Row]) -> None:
    """Log which input columns have other names in the output."""
    names = dict.fromkeys(name for row in rows for name in row if name in FIELDS and name != "id")
    if names:
        renamed = ", ".join(f"{name} as input_{name}" for name in names)
        log.warning("Columns of the input have the names of a prediction's columns: %s.", renamed)


def problem_row(problem: Problem) -> Row:
    """Return a problem that was given as an object as a row."""
    given = {"answer": problem.answer} if problem.answer else {}
    others = {name: value for name, value in problem.columns.items() if name != "frame"}
    return {"prompt": problem.prompt, **given, **others}


# --- counts


@dataclass(kw_only=True)
class PredictionCounts:
    """Numbers of items by what became of them; as text, the closing line of a prediction."""

    items: int = 0
    answered: int = 0
    abstained: int = 0
    unreadable: int = 0
    rows_left_out: int = 0
    confidences: list[float] = field(default_factory=list, repr=False)

    def count(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yield predictions, counted."""
        for one in predictions:
            self.items += 1
            self.answered += one["no_answer"] is None
            self.abstained += one["no_answer"] == "abstained"
            self.unreadable += one["no_answer"] == "unreadable"
            if one["no_answer"] is None:
                self.confidences.append(one["confidence"])
            yield one

    @property
    def mean_confidence(self) -> float | None:
        """Mean confidence of the answers; None without any."""
        return sum(self.confidences) / len(self.confidences) if self.confidences else None

    def __str__(self) -> str:
        mean = self.mean_confidence
        said = f"{self.items:,} items: {self.answered:,} answered"
        said += f" (mean confidence {mean:.2f})" if mean is not None else ""
        said += f", {self.abstained:,} abstained, {self.unreadable:,} unreadable"
        return said + (f"; {self.rows_left_out:,} rows left out" if self.rows_left_out else "")


# --- files


def check_output(path: Path) -> None:
    """Refuse, before any work, a file that exists, is not writable, or is of unknown kind."""
    check_new(path, "--output")
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--output {path} must end in .jsonl, .parquet or .csv.")


def save_predictions(predictions: Iterable[Prediction], path: Path, at_once: int = 1024) -> None:
    """Write predictions; the file appears when all are written. Raises RunError if that fails.

    Of Parquet, `at_once` are in a row group, and votes, probabilities and distribution are lists: see
    `PREDICTIONS`. In CSV they are JSON, and an empty cell is a null.
    """
    with replacing(path) as part:
        if path.suffix == ".jsonl":
            with part.open("w", encoding="utf-8") as lines:
                lines.writelines(f"{as_line(one)}\n" for one in predictions)
        elif path.suffix == ".csv":
            _write_csv([*predictions], part)
        else:
            with part.open("wb") as file:  # pyarrow would read a name with a colon as a URI
                pq.write_table(_table([*predictions]), file, row_group_size=at_once)


def as_line(one: Prediction) -> str:
    """Return a prediction as a line of JSON; what JSON lacks, such as a date, is text."""
    line = json.dumps(one, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, in a column of the input
        return json.dumps(one, default=str)
    return line


def _write_csv(rows: Sequence[Prediction], path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)  # lines end in \r\n, else a single \r in a cell would not be quoted
        names = _columns(rows)
        writer.writerow(names)
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, (Mapping, list, tuple, bool)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _table(rows: Sequence[Prediction]) -> pa.Table:
    arrays: dict[str, Any] = {}
    as_json = []
    for name in _columns(rows):
        values = [row.get(name) for row in rows]
        if name in PREDICTIONS.names:
            lists = [_listed(name, value) for value in values]
            arrays[name] = pa.array(lists, PREDICTIONS.field(name).type)
        elif (array := native_array(values)) is not None:
            arrays[_valid(name)] = array
        else:  # of mixed types
            as_json.append(_valid(name))
            texts = [None if value is None else json.dumps(value, default=str) for value in values]
            arrays[_valid(name)] = pa.array(texts, pa.string())
    return pa.table(arrays).replace_schema_metadata({JSON_COLUMNS: json.dumps(as_json).encode()})


def _columns(rows: Sequence[Prediction]) -> list[str]:
    """Return the columns of all rows: those of the input first."""
    names = dict.fromkeys(name for row in rows for name in row)
    own = [name for name in names if name in FIELDS and name != "id"]
    others = [name for name in names if name not in own]
    return [*others, *own] if rows else PREDICTIONS.names


def _listed(name: str, value: Any) -> Any:
    """Return votes or shares by answer as a list of objects; other values as they are."""
    if not isinstance(value, Mapping):
        return value
    number = "count" if name == "votes" else "share"
    return [{"answer": answer, number: each} for answer, each in value.items()]


def _valid(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
