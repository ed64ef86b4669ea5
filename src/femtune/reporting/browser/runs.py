"""Discovery of runs, repeated at each request: runs and shards appear while the page is open.

Only paths given on the command line are opened. A folder that is no run stands for the runs in it,
such as the output of `femtune compare` and `femtune demo`.
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
from femtune.reporting.page.record import BASELINES

Kind = Literal["draws", "eval"]
KINDS: tuple[Kind, ...] = ("draws", "eval")
Stamp = tuple[int, int, int]  # inode, nanoseconds of the last change, bytes
SCORES: dict[Kind, str] = {"draws": "scored", "eval": "eval_scored"}  # folders of log-probabilities
PROBLEMS = {"draws": "problems.parquet", "eval": "eval.parquet"}  # the file of a kind's problems


@dataclass(frozen=True)
class Shard:
    """A file of draws; `stamp` shows whether it has changed."""

    run: str
    kind: Kind
    iteration: int
    path: Path
    _: KW_ONLY
    stamp: Stamp
    scores: Path  # log-probabilities of the same draws, if the file exists: see index.py
    scores_stamp: Stamp | None


@dataclass(frozen=True)
class Found:
    """A run: its displayed name, folder, and settings; {} without a config.yaml."""

    name: str
    root: Path
    config: Mapping[str, Any] = field(hash=False)

    def shards(self) -> Iterator[Shard]:
        """Yield shards by iteration, those of the E-step before those of the evaluation."""
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
        """Return the run's prompts. Raises ConfigError if its hint is invalid."""
        instruction, hint = self.config.get("instruction"), self.config.get("hint")
        form, system = self.config.get("answer_format"), self.config.get("system_prompt")
        return Prompts(
            instruction=str(instruction or ""),
            hint=str(hint or HINT),
            format=parse_format(str(form or "line")),
            system_prompt=str(system) if system else None,
        )

    def progress(self) -> tuple[int, int | None]:
        """Return the last completed iteration (-1 for none), and the planned last one, if known.

        A baseline has the iterations of its comparison among its settings, and makes none.
        """
        done = [
            path.parent.name.rpartition("-")[2] for path in self.root.glob("iteration-*/metrics.json")
        ]
        last = max((int(number) for number in done if number.isdecimal()), default=-1)
        known = None if self.config.get("scheme") in BASELINES else self.config.get("iterations")
        return last, known if isinstance(known, int) else None


def check_places(places: Sequence[Path]) -> None:
    """Raise RunError if a place has no run."""
    for place in places:
        if not _runs_in(place):
            raise RunError(
                f"{place} holds no run: no iteration-* and no config.yaml, nor does a folder in it. "
                "Give the folder of a train, sample or compare."
            )


def find_runs(places: Sequence[Path]) -> dict[str, Found]:
    """Return the runs at these places by name, in their order."""
    roots = dict.fromkeys(root for place in places for root in _runs_in(place))
    return {name: Found(name, root, settings(root)) for root, name in _names([*roots]).items()}


def _runs_in(place: Path) -> list[Path]:
    """Return the place itself if it is a run, else the runs in it."""
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
    except OSError:  # no permission to read it
        return False


def _names(roots: Sequence[Path]) -> dict[Path, str]:
    """Return folder names, with parent folders in front where names would be equal."""
    names = {root: root.name or "run" for root in roots}
    for depth in range(2, max((len(root.parts) for root in roots), default=0) + 1):
        again = {name for name, count in Counter(names.values()).items() if count > 1}
        names |= {root: ":".join(root.parts[-depth:]) for root in roots if names[root] in again}
    return names


def settings(root: Path) -> Mapping[str, Any]:
    """Return the contents of config.yaml; {} if it is missing or unreadable."""
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
    """Return what distinguishes a file from one that has replaced it."""
    return known.st_ino, known.st_mtime_ns, known.st_size


def _parquet(folder: Path) -> list[tuple[Path, Stamp]]:
    """Return the shards of a folder by name, with their stamps; files that vanish are skipped."""
    found: list[tuple[Path, Stamp]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                    found.append((Path(entry.path), stamp(entry.stat())))
    except OSError:
        return found
    return sorted(found)
