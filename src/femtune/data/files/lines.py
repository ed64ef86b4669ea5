"""Rows of JSON: one object a line, or one list of objects."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from femtune._util.text import first, repeated
from femtune.data.files.kinds import Kind
from femtune.data.files.streams import open_text
from femtune.data.rows import BadRow
from femtune.errors import DataError

log = logging.getLogger("femtune")


def read_lines(file: Path, kind: Kind) -> Iterator[tuple[int, Any]]:
    with open_text(file, kind) as lines:
        head = lines.readline()
        while head.isspace():
            head = lines.readline()
        if head.strip() == "[":
            raise DataError(f"{file} holds one JSON list over several lines: name it .json.")
    with open_text(file, kind) as lines:
        yield from json_lines(lines)


def json_lines(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield place, from 1, and row for each line of JSON as it arrives; blank lines are skipped."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, _decode(line.rstrip())
        except json.JSONDecodeError as error:
            yield number, BadRow("not JSON", f"{error.msg}, column {error.colno}")
        except (ValueError, RecursionError) as error:  # a number too long, a list nested too deeply
            yield number, BadRow("not JSON", str(error))


def read_json(file: Path, kind: Kind) -> Iterator[tuple[int, Any]]:
    with open_text(file, kind) as opened:
        text = opened.read()
    try:
        found = _decode(text) if text.strip() else []
    except json.JSONDecodeError as error:
        hint = " If each line is an object, name it .jsonl." if error.msg == "Extra data" else ""
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{file}, {where}: not JSON ({error.msg}).{hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}).") from error
    yield from enumerate(_rows(file, found), 1)


def _rows(file: Path, found: Any) -> list[Any]:
    """Return the list of a JSON file, or the only list of objects under a key of its object."""
    if isinstance(found, list):
        return found
    if not isinstance(found, Mapping):
        raise DataError(f"{file} holds a JSON {type(found).__name__}: it must be a list of objects.")
    lists = [key for key, value in found.items() if _is_rows(value)]
    if len(lists) == 1:
        others = [key for key in found if key != lists[0]]
        beside = f"; not read: {first(others)}" if others else ""
        log.warning("%s: rows are those under `%s`%s.", file, lists[0], beside)
        return list(found[lists[0]])
    if lists:
        raise DataError(
            f"{file} holds several lists of objects, {first([f'`{key}`' for key in lists])}: keep one, "
            "or save each as a file of its own."
        )
    columns = all(isinstance(value, list | Mapping) for value in found.values()) and bool(found)
    hint = " If pandas wrote it, set orient='records' in to_json." if columns else ""
    keys = first([f"`{key}`" for key in found]) or "nothing"
    raise DataError(
        f"{file} holds a JSON dict with {keys}: it must be a list of objects, or have one under a key."
        f"{hint}"
    )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; a key that occurs twice is refused, as all but the last value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"the key `{repeated(name for name, _ in pairs)}` occurs twice")
    return made


_decode = json.JSONDecoder(object_pairs_hook=_without_twins).decode
