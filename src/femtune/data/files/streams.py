"""Bytes and text of a file: its compression, its encoding, and what it is if not what its name says."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from femtune.data.files.kinds import Kind
from femtune.errors import DataError

# UTF-32 first, as its mark begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_STARTS = (
    (b"PK\x03\x04", "is a spreadsheet or a zip file: save it as CSV UTF-8, or unpack it"),
    (b"\x1f\x8b", "is compressed by gzip: name it .gz too"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: name it .zst too"),
    (b"PAR1", "is a Parquet file: name it .parquet"),
    (b"ARROW1", "is an Arrow file: name it .arrow"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file: run git lfs pull"),
    (b"<!DOCTYPE", "is a web page, not data: download the file itself"),
    (b"<html", "is a web page, not data: download the file itself"),
)
HEAD = 64  # bytes that tell what a file is


def open_text(file: Path, kind: Kind, newline: str | None = None) -> io.TextIOWrapper:
    """Open a file of text, in UTF-8, or in UTF-16 or 32 with a byte order mark.

    Raises DataError if it is something else than text.
    """
    with open_bytes(file, kind) as stream:
        head = stream.peek(HEAD)[:HEAD]
    check_start(file, head)
    encoding = encoding_of(head)
    if encoding == "utf-8" and b"\x00" in head:
        raise DataError(f"{file} has null bytes, as UTF-16 without a mark has. Save it as UTF-8.")
    return io.TextIOWrapper(open_bytes(file, kind), encoding=encoding, newline=newline)


def open_bytes(file: Path, kind: Kind) -> io.BufferedReader:
    """Open the bytes of a file, decompressed."""
    if kind.compression is None:
        return file.open("rb")
    # an open file, since pyarrow would read a name with a colon as a URI
    raw: Any = pa.CompressedInputStream(pa.PythonFile(file.open("rb")), kind.compression)
    return io.BufferedReader(raw)


def check_start(file: Path, head: bytes) -> None:
    """Refuse a file whose first bytes are those of something else. Raises DataError."""
    for start, what in _STARTS:
        if head.lstrip()[: len(start)].lower() == start.lower():
            raise DataError(f"{file} {what}.")


def encoding_of(head: bytes) -> str:
    """Return the encoding of a text by its mark, UTF-8 without one."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")


def stdin_lines() -> Iterable[str]:
    """Return the lines of standard input as they arrive, in the encoding that its mark tells."""
    buffer = getattr(sys.stdin, "buffer", None)
    if isinstance(buffer, io.BufferedReader) and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=encoding_of(buffer.peek(4)), errors="strict")
    return sys.stdin


def undecodable_line(file: Path, kind: Kind) -> int:
    """Return the number of the first line that is not UTF-8."""
    with open_bytes(file, kind) as lines:
        return next(number for number, line in enumerate(lines, 1) if not _is_utf8(line))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
