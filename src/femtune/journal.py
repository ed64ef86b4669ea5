"""Draws of a chunk that is still open: appended as they are graded, read when the chunk is opened again.

    draws/00003.open.jsonl      beside the shard draws/00003.parquet that it becomes part of

A line is a checksum and the draws that were graded together, in the columns of run.DRAWS, with the
seconds that were spent on the chunk until then. A kill costs the draws that the engine was writing, no
others. What a line lacks at its end, or has wrong, ends the reading.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from zlib import crc32

from femtune.files import cant_write, make_folder
from femtune.run import as_columns, from_columns
from femtune.types import Draw

FLUSH_EVERY_S = 5.0  # a killed process loses nothing of the file; a power failure the last seconds


class Journal:
    """An open chunk's draws on disk. `draws` and `spent_s` are what was there when it was opened.

    Raises RunError where it can't be written.
    """

    def __init__(self, shard: Path) -> None:
        self.path = journal_of(shard)
        try:
            make_folder(shard.parent)
            self._file: IO[bytes] = self.path.open("ab+", buffering=0)
            self.draws, self.spent_s, whole = _read(self._file)
            self._file.truncate(whole)
        except OSError as error:
            raise cant_write(self.path, error) from error
        self._flushed = time.monotonic()

    def append(self, draws: Sequence[Draw], spent_s: tuple[float, float]) -> None:
        """Store draws, with the chunk's seconds so far: the engine's, and all."""
        text = json.dumps([spent_s, as_columns(draws)], separators=(",", ":")).encode()
        try:
            line = memoryview(b"%08x %b\n" % (crc32(text), text))
            while line:  # a disk that gets full takes a part of it first
                line = line[self._file.write(line) :]
            if time.monotonic() - self._flushed > FLUSH_EVERY_S:
                os.fsync(self._file.fileno())
                self._flushed = time.monotonic()
        except OSError as error:
            raise cant_write(self.path, error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._file.close()


def journal_of(shard: Path) -> Path:
    """Where the draws of an open chunk are."""
    return shard.with_name(f"{shard.stem}.open.jsonl")


def remove_journal(shard: Path) -> None:
    """What was in it is in the shard now, or is to be drawn anew. Raises RunError."""
    path = journal_of(shard)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cant_write(path, error) from error


def _read(file: IO[bytes]) -> tuple[list[Draw], tuple[float, float], int]:
    """Draws, the seconds spent on them, and how many bytes of the file are whole."""
    file.seek(0)
    found: dict[Any, Draw] = {}  # by key: two workers may have written one chunk
    spent_s, whole = (0.0, 0.0), 0
    for line in file:
        sum_, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or sum_ != b"%08x" % crc32(text):
            break
        (engine_s, total_s), columns = json.loads(text)
        spent_s = (engine_s, total_s)
        for draw in from_columns(columns):
            found.setdefault(draw.key, draw)
        whole += len(line)
    return list(found.values()), spent_s, whole
