"""Columns by name, or by a path into nested cells, such as `choices[].text` or `summaries[0].text`.

A dot leads into an object, `[0]` to an item of a list, counted from 0, `[-1]` to the last one, `[]` to
all of them as a list, and `[:-1]` to all but the last. A key that itself has a dot or brackets in it is
found first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from femtune._util.text import brief, first, near
from femtune.data.nested import parse_nested
from femtune.data.rows import BadRow, ColumnsError
from femtune.errors import DataError


class _Stops(Exception):
    """The end of a path before its goal: where, and what is there."""

    def __init__(self, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing  # True if an object lacks the key, as JSON may leave out what is null


def cell(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column or path; None where it is missing or null, and for no column, "".

    >>> row = {"question": {"stem": "Why?", "choices": [{"text": "a"}, {"text": "b"}]}}
    >>> cell(row, "question.stem"), cell(row, "question.choices[].text")
    ('Why?', ['a', 'b'])

    Raises BadRow where the path leads through something else than an object or list.
    """
    try:
        return _follow(row, column, "") if column else None
    except _Stops as stop:
        if stop.missing:
            return None
        raise BadRow(f"`{column}` has no value", str(stop)) from None


def check_column(row: Mapping[str, Any], column: str, name: str, source: str) -> None:
    """Check that a first row has the column or path that is mapped to a name.

    Raises DataError that says where a path stops, and what is there.
    """
    if column in row or not column:
        return
    if root_of(column, row) not in row:
        has = ", ".join(f"`{key}`" for key in row) or "no column at all"
        close = near(column, row).replace("Did you mean ", f"Did you mean {name}=")
        what = f"{source} has no column `{column}` for `{name}`; it has {has}.{close}"
        raise DataError(what) if close else ColumnsError(what, "", row)
    try:
        _follow(row, column, "")
    except _Stops as stop:
        raise DataError(f"{source} has no column `{column}` for `{name}`: {stop}.") from None


def root_of(column: str, names: Collection[str]) -> str:
    """Return the column of a table in which a path begins.

    >>> root_of("question.stem", {"question"}), root_of("a.b.c", {"a.b"}), root_of("a.b", {"c"})
    ('question', 'a.b', 'a')
    """
    found = _key(column, names)
    return re.split(r"[.\[]", column)[0] if found is None else found


def _key(path: str, names: Collection[str]) -> str | None:
    """Return the longest name with which a path begins."""
    fits = [
        name
        for name in names
        if path == name or (name and path.startswith(name) and path[len(name)] in ".[")
    ]
    return max(fits, key=len, default=None)


def _follow(value: Any, path: str, at: str) -> Any:
    """Return the value at the end of a path; `at` is the part before it. Raises _Stops."""
    if not path or value is None:
        return value
    if isinstance(value, str):
        value = _opened(value, at)
    if path.startswith("["):
        return _follow_list(value, path, at)
    path = path.removeprefix(".")
    if not isinstance(value, Mapping):
        raise _Stops(f"`{at}` is {_shown(value)}, not an object")
    key = _key(path, value)
    if key is None:
        wanted = re.split(r"[.\[]", path)[0]
        keys = first([f"`{name}`" for name in value]) or "no key"
        where = f"`{at}` has no `{wanted}`; it has {keys}" if at else f"there is no `{wanted}`"
        raise _Stops(where, missing=True)
    return _follow(value[key], path[len(key) :], f"{at}.{key}" if at else key)


def _follow_list(value: Any, path: str, at: str) -> Any:
    found = re.match(r"\[(:?)(-?\d+)?\]", path)
    if found is None or found[0] == "[:]":
        raise _Stops(f"`{path}` needs the form [], [0], [-1] or [:-1]")
    if not isinstance(value, list):
        raise _Stops(f"`{at}` is {_shown(value)}, not a list")
    rest, at, number = path[found.end() :], at + found[0], int(found[2] or 0)
    if found[2] is None or found[1]:
        return _follow_each(value[:number] if found[1] else value, rest, at)
    if not -len(value) <= number < len(value):
        raise _Stops(f"there is no `{at}`; the list has {len(value)} items")
    return _follow(value[number], rest, at)


def _follow_each(items: list[Any], path: str, at: str) -> list[Any]:
    """Return the value of each item, None where it lacks the key. Raises _Stops if all lack it."""
    found, stop = [], None
    for item in items:
        try:
            found.append(_follow(item, path, at))
        except _Stops as error:
            if not error.missing:
                raise
            found.append(None)
            stop = stop or error
    if stop is not None and not any(each is not None for each in found):
        raise stop
    return found


def _opened(text: str, at: str) -> Any:
    """Return the list or object that a text cell holds."""
    try:
        return parse_nested(text)
    except ValueError:
        raise _Stops(f"`{at}` is {_shown(text)}, not a list or object") from None


def _shown(value: Any) -> str:
    names = {str: "text", dict: "an object", list: "a list", bool: "true or false"}
    kind = names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
    return f"{kind} ({brief(repr(value), 40)})"
