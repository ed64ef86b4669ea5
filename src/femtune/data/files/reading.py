"""Rows of a file of any kind, or of a folder of shards."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from femtune._util.text import first
from femtune.data.files.columnar import read_arrow, read_parquet, saved_files
from femtune.data.files.kinds import ending, find_kind, kind_of, looks_like_file
from femtune.data.files.lines import read_json, read_lines
from femtune.data.files.separated import read_table
from femtune.data.files.streams import undecodable_line
from femtune.errors import ConfigError, DataError

log = logging.getLogger("femtune")

# words in the names of files that are sides of a split, not shards of one table
_SPLITS = {"train", "training", "test", "testing", "valid", "validation", "val", "dev", "eval"}


class ShardPlace(int):
    """A place in one file of a folder; its text names the file, as in "3 of part-1.jsonl"."""

    file: str

    @classmethod
    def of(cls, file: Path, place: int) -> ShardPlace:
        made = cls(place)
        made.file = file.name
        return made

    def __str__(self) -> str:
        return f"{int(self)} of {self.file}"


def file_rows(file: Path, header: bool = True) -> Iterator[tuple[int, Any]]:
    """Yield place (line or row, from 1) and row of a file or folder; an invalid row is a BadRow.

    With header=False, the first line of a .csv or .tsv file is a row, and columns are named 1, 2, ...
    Raises DataError if the file is missing, empty, of unknown kind, or damaged as a whole, ConfigError
    if it is of a kind whose rows name their columns.
    """
    file = file.expanduser()
    if not file.is_dir():
        yield from _rows(_existing(file), header)
        return
    shards, others = _shards(file)
    named = first([shard.name for shard in shards])
    beside = f"; not read: {first(others)}" if others else ""
    log.warning("%s: the rows are those of %d files, %s%s.", file, len(shards), named, beside)
    columns: list[str] = []
    for shard in shards:
        own = _rows(_existing(shard), header)
        for number, (place, row) in enumerate(own):
            if number == 0 and isinstance(row, dict) and kind_of(shard).form != "lines":
                columns = columns or [*row]
                _check_alike(shard, [*row], columns)
            yield ShardPlace.of(shard, place), row


def rows_once(file: Path, header: bool = True) -> Callable[[], Iterator[tuple[int, Any]]]:
    """Return a function that yields what `file_rows` does; the file is read at the first call only.

    All rows stay in memory.
    """
    kept: list[tuple[int, Any]] = []

    def rows() -> Iterator[tuple[int, Any]]:
        if not kept:
            kept.extend(file_rows(file, header))
        return iter(kept)

    return rows


def file_unit(file: Path) -> str:
    """Return the unit in which places of a file or folder are counted: "row" or "line"."""
    file = file.expanduser()
    if file.is_dir():
        file = _shards(file)[0][0]
    kind = find_kind(file)
    return "line" if kind is not None and kind.form in ("lines", "table") else "row"


def _rows(file: Path, header: bool) -> Iterator[tuple[int, Any]]:
    kind = kind_of(file)
    if not header and kind.form != "table":
        raise ConfigError(f"{file}: no-header is for .csv and .tsv files. Leave it out.")
    try:
        match kind.form:
            case "lines":
                yield from read_lines(file, kind)
            case "json":
                yield from read_json(file, kind)
            case "table":
                yield from read_table(file, kind, header)
            case "parquet":
                yield from read_parquet(file)
            case _:
                yield from read_arrow(file)
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            message = f"{file}: not {error.encoding.upper()} ({error.reason}). Save the file as UTF-8."
        else:
            line = undecodable_line(file, kind)
            message = f"{file}, line {line}: not UTF-8. Save the file as UTF-8."
        raise DataError(message) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{file} can't be read: {reason}. Create the file again.") from error


def _existing(file: Path) -> Path:
    """Return the file if it exists and can be read. Raises DataError that suggests alternatives."""
    if str(file) == "-":
        raise DataError("-: only predict reads standard input. Give a file.")
    if not file.exists():
        folder = file.parent
        near = get_close_matches(file.name, os.listdir(folder), 3) if folder.is_dir() else []
        hint = f"There is {', '.join(near)}." if near else f"The folder is {folder.resolve()}."
        raise DataError(f"no file {file}. {hint}")
    kind_of(file)
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty: it needs one problem in each row.")
    return file


# --- folders


def _shards(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files of a folder whose rows are one table, in sorted order, and what else is there.

    Raises DataError for files of several kinds, for splits, and for a folder without any.
    """
    there = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    shards = saved_files(folder)
    if shards is not None:
        return shards, []
    shards = [path for path in there if path.is_file() and _is_shard(path)]
    folders = [path.name for path in there if path.is_dir()]
    if not shards:
        inside = f" Give a folder of it: {first(folders)}." if folders else ""
        raise DataError(f"{folder} is a folder without a file of data.{inside}")
    names = [path.name for path in shards if find_kind(path)] or [shards[0].name]
    kinds = sorted({ending(path) for path in shards})
    splits = sorted({word for name in names for word in re.split(r"[^a-z]+", name.lower())} & _SPLITS)
    for several, what in ((kinds, "files of several kinds"), (splits, "several splits")):
        if len(several) > 1:
            raise DataError(
                f"{folder} is a folder of {what}, {', '.join(several)}: give one file of it: "
                f"{first(names)}."
            )
    return shards, [path.name for path in there if path not in shards]


def _is_shard(path: Path) -> bool:
    described = path.name.lower() in ("dataset_info.json", "dataset_infos.json", "metadata.json")
    return looks_like_file(path.name) and ending(path) not in (".md", ".txt") and not described


def _check_alike(shard: Path, names: list[str], others: list[str]) -> None:
    """Refuse a shard with other columns than the first one's. Raises DataError."""
    if {*names} != {*others}:
        differ = first([f"`{name}`" for name in sorted({*names} ^ {*others})])
        raise DataError(f"{shard} has other columns than the files before it: {differ} differ.")
