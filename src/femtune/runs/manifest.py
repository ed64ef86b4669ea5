"""What a run's files are to be: a line for each in manifest.jsonl, with its size and SHA-256.

    {"path": "iteration-001/draws/00000.parquet", "bytes": 48213, "sha256": "9f86d0..."}

The last line of a path counts; one without a checksum says that the file was removed on purpose. Lines
are written by the process that holds the run's lock, also for what workers and launched processes made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from femtune._util.atomic_files import append_lines, read_lines, sha256
from femtune._util.safetensors_header import read_header
from femtune.errors import ModelError, RunError

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """A file as it was stored."""

    path: str  # from the run's directory, with /
    bytes: int
    sha256: str  # "": removed


def recorded(root: Path) -> dict[str, Entry]:
    """The files that a run must have, by path."""
    entries = {}
    for line in read_lines(root / MANIFEST):
        path, size, digest = line.get("path"), line.get("bytes"), line.get("sha256")
        if isinstance(path, str) and isinstance(size, int) and isinstance(digest, str):
            entries[path] = Entry(path, size, digest)
    return {path: entry for path, entry in entries.items() if entry.sha256}


def record(root: Path, paths: Iterable[Path]) -> None:
    """Enter files, or all that are in folders. Raises RunError where that fails."""
    try:
        entries = [
            Entry(_name(root, file), file.stat().st_size, sha256(file))
            for path in paths
            for file in files_of(path)
        ]
    except OSError as error:
        raise RunError(
            f"{error.filename or root} can't be read: {error.strerror or error}. It was just stored: "
            "look at the disk."
        ) from error
    append_lines(root / MANIFEST, [json.dumps(asdict(entry)) for entry in entries], durable=True)


def record_removed(root: Path, path: Path) -> None:
    """Enter that a file, or all that was in a folder, is gone on purpose."""
    name = _name(root, path)
    gone = [Entry(each, 0, "") for each in recorded(root) if each == name or each.startswith(f"{name}/")]
    append_lines(root / MANIFEST, [json.dumps(asdict(entry)) for entry in gone], durable=True)


def files_of(path: Path) -> Iterator[Path]:
    """A file, or all in a folder; without what is not finished: journals, and names with a dot first.

    And without cards, README.md: their owner may write into them.
    """
    if path.is_dir():
        for inside in sorted(path.iterdir()):
            if inside.name[0] != "." and not inside.name.endswith((".open.jsonl", "README.md")):
                yield from files_of(inside)
    elif path.is_file():
        yield path


def unrecorded(root: Path) -> list[Path]:
    """Files of a run that the manifest lacks; of those whose content is to stay as it is."""
    entries = recorded(root)
    places = [*sorted(root.glob("iteration-*")), *sorted(root.glob("*.parquet"))]
    places.append(root / "environment.json")
    return [file for place in places for file in files_of(place) if _name(root, file) not in entries]


def damage(root: Path, entry: Entry) -> str:
    """Return what is wrong with a file that has an entry; "" if nothing is."""
    path = root / entry.path
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != entry.bytes:
        return f"{size:,} bytes of {entry.bytes:,}"
    try:
        return "" if sha256(path) == entry.sha256 else "other bytes than were stored"
    except OSError as error:
        return f"can't be read: {error.strerror or error}"


def looked_through(path: Path) -> str:
    """Return what is wrong with a file without an entry, judged by its own form; "" if nothing is.

    A kill comes between a file and its line in the manifest, too.
    """
    try:
        if path.suffix == ".parquet":
            pq.read_table(pa.memory_map(str(path)), page_checksum_verification=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            read_header(path)
    except (OSError, ValueError, RecursionError, pa.ArrowException, ModelError) as error:
        return f"can't be read: {' '.join(str(error).split())[:200]}"
    return ""


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
