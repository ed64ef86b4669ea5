"""An in-memory DuckDB: one writer at a time, concurrent readers, closable at any time."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb


class Closed(Exception):
    """The database was closed while a query was running."""


class Database:
    """A database that must be closed; use `con` only inside `alone`, `query` anywhere."""

    def __init__(self, tables: str) -> None:
        self._lock = threading.RLock()
        self._asking: set[duckdb.DuckDBPyConnection] = set()
        self._closed = False
        self._folder = tempfile.TemporaryDirectory(prefix="femtune-view-", ignore_cleanup_errors=True)
        self.folder = self._folder.name  # for spilled data and symbolic links
        quiet = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        self.con = duckdb.connect(config={**quiet, "temp_directory": f"{self.folder}/spilled"})
        self.con.execute(tables)

    def close(self) -> None:
        """Interrupt running queries, also in other threads, and close."""
        if self._closed:
            return
        self._closed = True
        while not self._lock.acquire(timeout=0.05):
            self.con.interrupt()
        try:
            while self._asking:
                for cursor in [*self._asking]:
                    cursor.interrupt()
                time.sleep(0.01)
            self.con.close()
            self._folder.cleanup()
        finally:
            self._lock.release()

    def query(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Return rows, on a separate cursor: requests run concurrently. Raises Closed."""
        if self._closed:
            raise Closed
        cursor = self.con.cursor()
        self._asking.add(cursor)
        try:
            return cursor.execute(sql, values).fetchall()
        except duckdb.InterruptException as error:
            raise Closed from error
        finally:
            self._asking.discard(cursor)
            cursor.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the writer's lock. Raises Closed."""
        with self._lock:
            if self._closed:
                raise Closed
            try:
                yield
            except duckdb.InterruptException as error:
                raise Closed from error
