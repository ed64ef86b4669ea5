"""Rows in memory: lists of dicts, and tables of pandas, polars, pyarrow and `datasets`.

Tables are recognized by their methods, so that no library is imported for them. What stands for a
missing value there (null, NaN, NA) is None in a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import pyarrow as pa

from femtune._util.parsing import Unreadable, reading_arrow
from femtune._util.text import first, repeated
from femtune.errors import DataError
from femtune.types import Problem

TAKEN = (
    "Give a path, the id of a data set on the Hub, a list of dicts or of problems, or a table of "
    "pandas, polars, pyarrow or datasets."
)
_OF_PANDAS = re.compile(r"__index_level_\d+__")  # an index without a name


class ArrowTable(Protocol):
    """A table that gives its columns as Arrow: of pandas, polars or pyarrow, for example."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class ListedTable(Protocol):
    """A table that gives a list of dicts, as `datasets.Dataset`."""

    def to_list(self) -> list[Any]: ...


Table = ArrowTable | ListedTable


def rows_of(data: Any) -> list[Problem] | list[dict[str, Any]]:
    """Return the rows of a list or table, or problems as they are.

    Raises DataError for anything else, such as several splits, or an iterator.
    """
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        if data and all(isinstance(each, Problem) for each in data):
            return list(data)
        return [_row(each, data) for each in data]
    names = getattr(data, "column_names", getattr(data, "columns", None))
    if hasattr(data, "__arrow_c_stream__") and names is not None:
        return _arrow_rows(data)
    if hasattr(data, "to_list") and hasattr(data, "__len__") and names is not None:
        return [_row(each, data) for each in data.to_list()]
    if hasattr(data, "iloc") and names is not None:  # pandas before 2.2
        return _pandas_rows(data)
    raise DataError(_why_not(data))


def _row(row: Any, data: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"data is a {type(data).__name__} of {type(row).__name__}. {TAKEN}")
    return {name: None if _is_missing(value) else _plain(value) for name, value in row.items()}


def _arrow_rows(data: Any) -> list[dict[str, Any]]:
    names = [*map(str, getattr(data, "column_names", getattr(data, "columns", ())))]
    if (twice := repeated(names)) is not None:
        raise DataError(f"data has the column `{twice}` twice: rename one.")
    try:
        with reading_arrow("rows"):
            table = pa.table(data)
            kept = [name for name in table.column_names if not _OF_PANDAS.fullmatch(name)]
            return cast(list[dict[str, Any]], table.select(kept).to_pylist(maps_as_pydicts="strict"))
    except Unreadable as error:
        if hasattr(data, "iloc"):
            return _pandas_rows(data)  # a column of several types
        raise DataError(f"data {error}. Give a list of dicts.") from error


def _pandas_rows(frame: Any) -> list[dict[str, Any]]:
    whole = frame.astype(object).where(frame.notna(), None)
    return [_row(row, frame) for row in whole.to_dict("records")]


def _plain(value: Any) -> Any:
    """Return numbers and arrays of numpy and torch as numbers and lists, within lists and dicts too."""
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value


def _is_missing(value: Any) -> bool:
    """Return True for NaN, and for the NA and NaT of pandas."""
    return (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")


def _why_not(data: Any) -> str:
    """Say why data can't be taken, and what to give."""
    kind = type(data).__name__
    if isinstance(data, Mapping):
        keys = [str(key) for key in data]
        if kind == "dict" or not keys:
            return f"data is a dict with {first(keys) or 'nothing in it'}. {TAKEN}"
        return f"data is a {kind} with the splits {first(keys)}: give one of them, data[{keys[0]!r}]."
    if isinstance(data, Iterable) and not hasattr(data, "__len__"):
        return f"data is a {kind}, which can be read only once: give list(...) of it. {TAKEN}"
    return f"data is a {kind}. {TAKEN}"
