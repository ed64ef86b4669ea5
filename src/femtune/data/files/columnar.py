"""Rows of Parquet and Arrow files, and of the folders that `datasets.save_to_disk` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from femtune._util.parsing import Unreadable, read_json, reading_arrow
from femtune._util.text import brief, first, repeated
from femtune.data.files.streams import HEAD, check_start
from femtune.data.rows import BadRow
from femtune.errors import DataError

JSON_COLUMNS = b"femtune.json"  # key of Parquet metadata: columns stored as JSON text


def read_parquet(file: Path) -> Iterator[tuple[int, Any]]:
    _check(file, b"PAR1")
    try:
        with reading_arrow():
            # as pyarrow would read a name with a colon as a URI
            source = pq.ParquetFile(pa.memory_map(str(file)))
            as_json = _json_columns(source.schema_arrow)
            batches = source.iter_batches(batch_size=1024)
        yield from enumerate(_rows(batches, source.schema_arrow, as_json, "Parquet"), 1)
    except Unreadable as error:
        raise DataError(f"{file} {error}. Create the file again.") from error


def read_arrow(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of an Arrow file, or stream, which `datasets` writes."""
    _check(file, b"ARROW1")
    try:
        with reading_arrow("Arrow"):
            mapped = pa.memory_map(str(file))
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            if is_file:
                opened = pa.ipc.open_file(mapped)
                batches = (opened.get_batch(at) for at in range(opened.num_record_batches))
            else:
                opened = batches = pa.ipc.open_stream(mapped)
        yield from enumerate(_rows(batches, opened.schema, [], "Arrow"), 1)
    except Unreadable as error:
        raise DataError(f"{file} {error}. Create the file again.") from error


def _check(file: Path, own: bytes) -> None:
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    if not head.startswith(own):
        check_start(file, head)


def _rows(batches: Any, schema: Any, as_json: Sequence[str], form: str) -> Iterator[Any]:
    """Yield the rows of record batches. Raises Unreadable for values that Python does not have."""
    if (twice := repeated(schema.names)) is not None:
        raise Unreadable(f"has the column `{twice}` twice")
    batches = iter(batches)
    while True:
        with reading_arrow(form):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist(maps_as_pydicts="strict")
        if batch is None:
            return
        for row in rows:
            yield _from_json(row, as_json) if as_json else row


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


# --- folders of datasets.save_to_disk


def saved_files(folder: Path) -> list[Path] | None:
    """Return the Arrow files of a saved data set in their order; None for any other folder.

    Raises DataError for several splits, or a folder that lacks some of its files.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataError(f"{folder} holds the splits {first(splits)}: give the folder of one of them.")
    state = folder / "state.json"
    if not state.is_file() or not any(folder.glob("*.arrow")):
        return None
    try:
        found = read_json(state)
        names = [str(each["filename"]) for each in found["_data_files"]]
    except (Unreadable, KeyError, TypeError) as error:
        raise DataError(f"{state} does not list the files of a data set. Save it again.") from error
    files = [folder / Path(name).name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder} lacks {first(missing)}, which state.json lists. Save it again.")
    if found.get("_indices_data_files"):  # written by datasets before 2.0
        raise DataError(f"{folder} selects rows by indices: load it with `datasets`, and save it again.")
    return files
