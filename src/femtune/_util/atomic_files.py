"""Files that are whole or not there: written beside their place, flushed, and renamed into it.

Whatever a kill, a full disk or a lost machine cuts off is a `.NAME.part`, which nothing reads and the
next attempt replaces. Lines that are appended (logs, manifests, journals) may be cut off at the end of
the file alone; a reader leaves such a line out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from femtune.errors import RunError

_BLOCK = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder at; it becomes `path`, whole, or never does.

    Raises RunError where it can't be written; what was begun is removed then, so that a full disk has
    room again.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        remove(part)  # left by a killed run
        make_folder(path.parent)
        yield part
        for file in [part, *part.rglob("*")] if part.is_dir() else [part]:
            flush(file)
        os.replace(part, path)
        flush(path.parent)
    except Exception as error:
        with suppress(OSError):
            remove(part)
        if found := _of_system(error):
            raise cant_write(path, found) from error
        raise


def _of_system(error: Exception) -> OSError | None:
    """An error of the system, also where a library in Rust (safetensors, say) tells it as text."""
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def cant_write(path: Path, error: OSError) -> RunError:
    """What to say of a file that could not be written."""
    return RunError(
        f"{path} can't be written: {error.strerror or error}. What is stored stays: make room, or give "
        "leave to write, and the same command goes on."
    )


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each flushed into the one that holds it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have what was written to a file or a folder survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def append_lines(path: Path, lines: Sequence[str], *, durable: bool = False) -> None:
    """Append whole lines in one write. Raises RunError where that fails.

    A line that a kill had cut off is ended first, so that it swallows none of these.
    """
    try:
        with path.open("ab+") as file:
            torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(("\n" * torn + "".join(f"{line}\n" for line in lines)).encode())
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError as error:
        raise cant_write(path, error) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, none where it is not there; a damaged line is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex, as `sha256sum` gives it."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
