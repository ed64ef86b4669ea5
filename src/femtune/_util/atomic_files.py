"""Atomic writes: a file is written beside its place, flushed, and renamed, so it is complete or absent.

An interrupted write (a kill, a full disk, a lost machine) leaves only a `.NAME.part`. Nothing reads
that file, and the next attempt replaces it. A file to which lines are appended (log, manifest, journal)
may end in a truncated line; readers skip it.
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
    """Yield a path beside `path` to write a file or a folder at, then rename it to `path`.

    Raises RunError where it can't be written. The partial file is then removed, so that a full disk
    has room again.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        remove(part)  # left by a killed run
        make_folder(path.parent)
        yield part
        if part.is_dir():
            _share(part)
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


def _share(folder: Path) -> None:
    """Give the files of a new folder the mode of any new file, by the umask.

    safetensors lets only the owner read what it writes, and a server often is another user.
    """
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def _of_system(error: Exception) -> OSError | None:
    """Return the OSError behind an error, also where a Rust library reports one as text."""
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def cant_write(path: Path, error: OSError) -> RunError:
    """Build the error for a file that could not be written."""
    return RunError(
        f"{path} can't be written: {error.strerror or error}. What is stored is kept. Free disk space "
        "or fix the permissions, then run the same command again to resume."
    )


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and flush the parent of each new one."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file or a folder to disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file, atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def append_lines(path: Path, lines: Sequence[str], *, durable: bool = False) -> None:
    """Append complete lines in one write. Raises RunError where that fails.

    A truncated last line, left by a kill, is first ended with a line break.
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
    """Yield the objects of a JSON Lines file, without damaged lines; nothing if there is no file."""
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
    """Return the SHA-256 of a file's bytes in hex, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
