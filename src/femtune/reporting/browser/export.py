"""Export of the draws that match a filter, with all columns, as JSON lines or Parquet."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from femtune.reporting.browser.filters import Filter
from femtune.reporting.browser.index import Index, Stale
from femtune.runs.draws import DRAWS

Form = Literal["jsonl", "parquet"]
TYPES = {"jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}
EXPORTED = pa.schema(
    [("run", pa.string()), ("kind", pa.string()), *DRAWS, ("correct_answer", pa.string())]
)


def export(index: Index, asked: Filter, form: Form) -> Iterator[bytes]:
    """Yield the file in pieces, in the order in which draws are stored; the filter's order is ignored.

    Raises Stale if a shard cannot be read; the pieces until then are an incomplete file.
    """
    tables = _tables(index, asked)
    return _lines(tables) if form == "jsonl" else _parquet(tables)


def _tables(index: Index, asked: Filter) -> Iterator[pa.Table]:
    """Yield the matching draws with their run and correct answer, one table per shard."""
    where, values = asked.conditions()
    found = index.query(
        f"""
        SELECT s.shard, s.run, s.kind FROM draws d JOIN shards s USING (shard) WHERE {where}
        GROUP BY ALL ORDER BY any_value(s.position)
        """,
        values,
    )
    for number, run, kind in found:
        sql = f"""
            SELECT d.id, d.correct FROM draws d JOIN shards s USING (shard)
            WHERE d.shard = ? AND {where} ORDER BY d.id
        """
        rows = index.query(sql, [number, *values])
        try:
            stored = index.shard(number)
            taken = stored.select(DRAWS.names).cast(DRAWS).take([id & 0xFFFFFFFF for id, _ in rows])
        except (OSError, KeyError, pa.ArrowException, duckdb.Error) as error:
            raise Stale(f"a shard of {run} is no longer readable: {error}") from error
        own = [pa.array([name] * len(rows), pa.string()) for name in (run, kind)]
        correct = pa.array([answer for _, answer in rows], pa.string())
        yield pa.table([*own, *taken.columns, correct], schema=EXPORTED)


def _lines(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    for table in tables:
        yield "".join(f"{json.dumps(_storable(row))}\n" for row in table.to_pylist()).encode()


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with nan replaced by None, as JSON has no nan."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _parquet(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    sink = _Pieces()
    with pq.ParquetWriter(sink, EXPORTED) as writer:
        for table in tables:
            writer.write_table(table)
            yield sink.taken()
    yield sink.taken()


class _Pieces(io.RawIOBase):
    """An append-only buffer; `taken` returns and removes what was written."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._size += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._size

    def taken(self) -> bytes:
        made, self._parts = b"".join(self._parts), []
        return made
