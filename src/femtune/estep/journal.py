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
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO
from zlib import crc32

from femtune._util.atomic_files import cant_write, make_folder
from femtune.runs.run import as_columns, from_columns
from femtune.types import Draw, DrawKey

FLUSH_EVERY_S = 5.0  # a killed process loses nothing of the file; a power failure the last seconds


class Journal:
    """An open chunk's draws on disk. `draws` and `spent_s` are what was there when it was opened.

    Raises RunError where it can't be written.
    """

    def __init__(self, shard: Path) -> None:
        self.path = journal_of(shard)
        try:
            make_folder(shard.parent)
            self._file: IO[bytes] = self.path.open("ab", buffering=0)
            known = read_journal(self.path)
            self._file.truncate(known.num_bytes)
        except OSError as error:
            raise cant_write(self.path, error) from error
        self.draws, self.spent_s = known.draws, known.spent_s
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
    """Return the path of the journal of an open chunk."""
    return shard.with_name(f"{shard.stem}.open.jsonl")


def remove_journal(shard: Path) -> None:
    """Remove the journal: its draws are in the shard now, or are redrawn. Raises RunError."""
    path = journal_of(shard)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cant_write(path, error) from error


@dataclass(frozen=True)
class JournalContents:
    """The content of a journal."""

    draws: list[Draw]
    spent_s: tuple[float, float]  # on the chunk: the engine's, and all
    num_bytes: int  # of whole lines


def read_journal(path: Path) -> JournalContents:
    """Read the intact part of a journal; change nothing."""
    found: dict[DrawKey, Draw] = {}  # two workers may have written one chunk
    spent_s, num_bytes = (0.0, 0.0), 0
    with path.open("rb") as file:
        for line in file:
            check, _, text = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or check != b"%08x" % crc32(text):
                break
            (engine_s, total_s), columns = json.loads(text)
            spent_s = (engine_s, total_s)
            for draw in from_columns(columns):
                found.setdefault(draw.key, draw)
            num_bytes += len(line)
    return JournalContents(list(found.values()), spent_s, num_bytes)


def journals(folder: Path) -> list[Path]:
    """Return the journals of open chunks in a folder of shards."""
    return sorted(folder.glob("*.open.jsonl"))
