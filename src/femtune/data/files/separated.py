"""Rows of tables of separated cells, .csv and .tsv: with a header or without, of any usual separator."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from femtune._util.text import first, repeated
from femtune.data.files.kinds import Kind
from femtune.data.files.streams import open_text
from femtune.data.rows import BadRow
from femtune.errors import DataError

log = logging.getLogger("femtune")

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_USUAL = {".csv": ",", ".tsv": "\t"}
_TRIED = 50  # records that a separator must fit


def read_table(file: Path, kind: Kind, header: bool = True) -> Iterator[tuple[int, Any]]:
    """Yield the line on which a record begins, and its cells by column.

    Without a header, columns are named 1, 2, ... Raises DataError for quotes that don't close.
    """
    named = _named_separator(file, kind)
    separator = named or _separator(file, kind, header)
    records = _records(file, kind, separator, skip=named is not None)
    start = next(records, (0, []))
    if header:
        # a column without a name is called by its number, as all are without a header
        names = [name or str(number) for number, name in enumerate(start[1], 1)]
        _check_names(file, names)
    else:
        names = [str(number) for number in range(1, len(start[1]) + 1)]
        records = chain([start], records)
    for line, cells in records:
        if len(cells) == len(names):
            yield line, dict(zip(names, cells, strict=True))
        elif cells:  # not a blank line
            width = f"{len(cells)} cells, {len(names)} columns"
            yield line, BadRow("wrong number of cells", width)


def _records(
    file: Path, kind: Kind, separator: str, *, skip: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line of each record, and its cells; `skip` leaves out the first line."""
    csv.field_size_limit(2**31 - 1)  # the default refuses prompts over 131,072 characters
    with open_text(file, kind, newline="") as lines:
        if skip:
            lines.readline()
        rows = csv.reader(lines, delimiter=separator, strict=True)
        line = 1 + skip
        try:
            for cells in rows:
                yield line, cells
                line = rows.line_num + 1 + skip
        except csv.Error as error:
            where = f"{file}, line {rows.line_num + skip}"
            raise DataError(f"{where}: {error}. Check the quotes.") from error


def _named_separator(file: Path, kind: Kind) -> str | None:
    """Return the separator that a first line `sep=;` names, as Excel writes it."""
    with open_text(file, kind) as lines:
        found = re.fullmatch(r"sep=(.)", lines.readline(10).strip("\r\n"))
    if found is None:
        return None
    log.warning("%s: its first line says that %r separates the cells.", file, found[1])
    return found[1]


def _separator(file: Path, kind: Kind, header: bool) -> str:
    """Return the separator of a table: the usual one, or the one that splits its first records evenly.

    Raises DataError if both do.
    """
    usual = _USUAL[kind.suffix]
    widths = {separator: _widths(file, kind, separator) for separator in _SEPARATORS}
    even = [each for each, found in widths.items() if found[0] > 1 and len({*found}) == 1]
    if usual in even and len(even) > 1 and len(widths[usual]) > 1:
        others = first([_SEPARATORS[each] for each in even if each != usual])
        raise DataError(
            f"{file}: {_SEPARATORS[usual]} and {others} both split its first lines evenly. Quote the "
            "cells, or save it as .jsonl."
        )
    if usual in even or (not even and widths[usual][0] > 1):
        return usual
    # a header that is one column by the usual separator, and several by another
    likely = even or [each for each, found in widths.items() if found[0] > 1 and header]
    if not likely:
        return usual
    found = max(likely, key=lambda each: widths[each][0])
    log.warning("%s: its cells are separated by %s.", file, _SEPARATORS[found])
    return found


def _widths(file: Path, kind: Kind, separator: str) -> list[int]:
    """Return the number of cells of the first records; [0] if a separator can't read them."""
    try:
        records = islice(_records(file, kind, separator), _TRIED)
        return [len(cells) for _, cells in records if cells] or [0]
    except DataError:
        return [0]


def _check_names(file: Path, names: list[str]) -> None:
    if (twice := repeated(names)) is not None:
        raise DataError(
            f"{file}: column `{twice}` occurs twice in the first line: rename one. If that line is a "
            "row, set --no-header, and --columns prompt=1 and so on."
        )
