"""Which runs there are, found anew at each look: runs and shards appear while one reads.

Only what stands on the command line is ever opened. A folder that is no run stands for the runs in it,
as `femtune compare` and `femtune demo` leave them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from femtune.data.answer_format import parse_format
from femtune.data.prompts import HINT, Prompts
from femtune.errors import RunError

Kind = Literal["draws", "eval"]
KINDS: tuple[Kind, ...] = ("draws", "eval")
Stamp = tuple[int, int, int]  # inode, nanoseconds of the last change, bytes
SCORES: dict[Kind, str] = {"draws": "scored", "eval": "eval_scored"}  # folders beside theirs
PROBLEMS = {"draws": "problems.parquet", "eval": "eval.parquet"}  # where a kind's problems are


@dataclass(frozen=True)
class Shard:
    """A file of draws; with `stamp` it is known whether it is still the same."""

    run: str
    kind: Kind
    iteration: int
    path: Path
    _: KW_ONLY
    stamp: Stamp
    scores: Path  # of the same draws, if it is there: see index.py
    scores_stamp: Stamp | None


@dataclass(frozen=True)
class Found:
    """A run: its folder, the name that it has here, and its settings; {} where it has no config.yaml."""

    name: str
    root: Path
    config: Mapping[str, Any] = field(hash=False)

    def shards(self) -> Iterator[Shard]:
        """In the order of iterations, of each the E-step's before the evaluation's."""
        for folder in sorted(self.root.glob("iteration-*")):
            number = folder.name.rpartition("-")[2]
            if not number.isdecimal():
                continue
            for kind in KINDS:
                scored = dict(_parquet(folder / SCORES[kind]))
                for path, known in _parquet(folder / kind):
                    scores = folder / SCORES[kind] / path.name
                    yield Shard(
                        self.name,
                        kind,
                        int(number),
                        path,
                        stamp=known,
                        scores=scores,
                        scores_stamp=scored.get(scores),
                    )

    def prompts(self) -> Prompts:
        """Those that the run asked with. Raises ConfigError where its hint is none."""
        instruction, hint = self.config.get("instruction"), self.config.get("hint")
        form, system = self.config.get("answer_format"), self.config.get("system_prompt")
        return Prompts(
            instruction=str(instruction or ""),
            hint=str(hint or HINT),
            format=parse_format(str(form or "line")),
            system_prompt=str(system) if system else None,
        )

    def progress(self) -> tuple[int, int | None]:
        """The last iteration that is done (-1: none), and the one that is to be the last, if known."""
        done = [
            path.parent.name.rpartition("-")[2] for path in self.root.glob("iteration-*/metrics.json")
        ]
        last = max((int(number) for number in done if number.isdecimal()), default=-1)
        known = self.config.get("iterations")
        return last, known if isinstance(known, int) else None


def check_places(places: Sequence[Path]) -> None:
    """Raises RunError where a place has no run."""
    for place in places:
        if not _runs_in(place):
            raise RunError(
                f"{place} holds no run: no iteration-* and no config.yaml, nor does a folder in it. "
                "Give the folder of a train, sample or compare."
            )


def find_runs(places: Sequence[Path]) -> dict[str, Found]:
    """The runs that are at these places now by name, in their order."""
    roots = dict.fromkeys(root for place in places for root in _runs_in(place))
    return {name: Found(name, root, settings(root)) for root, name in _names([*roots]).items()}


def _runs_in(place: Path) -> list[Path]:
    """The place itself, or the runs in it."""
    place = place.resolve()
    if _is_run(place):
        return [place]
    try:
        return sorted(path for path in place.iterdir() if path.is_dir() and _is_run(path))
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "config.yaml").is_file() or any(folder.glob("iteration-*/"))
    except OSError:  # not ours to read
        return False


def _names(roots: Sequence[Path]) -> dict[Path, str]:
    """Folder names, with the folder above before it where two are called alike."""
    names = {root: root.name or "run" for root in roots}
    for depth in range(2, max((len(root.parts) for root in roots), default=0) + 1):
        again = {name for name, count in Counter(names.values()).items() if count > 1}
        names |= {root: ":".join(root.parts[-depth:]) for root in roots if names[root] in again}
    return names


def settings(root: Path) -> Mapping[str, Any]:
    """What config.yaml says, {} where there is none, or one that can't be read."""
    path = root / "config.yaml"
    try:
        return _settings(path, path.stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=256)
def _settings(path: Path, changed: int) -> Mapping[str, Any]:
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return stored if isinstance(stored, dict) else {}


def stamp(known: os.stat_result) -> Stamp:
    """What tells a file from one that has taken its place."""
    return known.st_ino, known.st_mtime_ns, known.st_size


def _parquet(folder: Path) -> list[tuple[Path, Stamp]]:
    """The shards of a folder by name, with their stamps. What vanishes meanwhile is not there."""
    found: list[tuple[Path, Stamp]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                    found.append((Path(entry.path), stamp(entry.stat())))
    except OSError:
        return found
    return sorted(found)
