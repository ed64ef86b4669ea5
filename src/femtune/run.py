"""The run directory: what is in each file, each written once, all of it enough to go on from.

    config.yaml              the whole resolved configuration
    environment.json         versions and hardware
    problems.parquet, eval.parquet
    iteration-001/
        draws/00000.parquet  one shard a chunk: every draw, kept or not
        eval/00000.parquet   the same of the evaluation
        examples.parquet     what the M-step trains on; also TRL's prompt / completion columns
        model/               an ordinary Hugging Face folder
        metrics.json         written last: the iteration is done
    log.jsonl                a line an event

Whatever exists is whole: files are written beside their place, flushed, and renamed into it. So the
state of a run is which files exist, and the same command continues it.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import IO, Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from femtune.errors import RunError
from femtune.formats import Unreadable, read_yaml, reading_arrow
from femtune.types import Completion, Draw, DrawKey, FinishReason, Score
from femtune.words import brief

DRAWS = pa.schema(
    [
        ("iteration", pa.int32()),
        ("problem_id", pa.string()),
        ("stage", pa.int32()),
        ("index", pa.int32()),
        ("prompt", pa.string()),  # plain or hinted
        ("seed", pa.int64()),
        ("tokens", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("logprob", pa.float64()),  # nats
        ("error", pa.string()),
        ("reward", pa.float64()),
        ("answer", pa.string()),
        ("rationale", pa.string()),
        ("reason", pa.string()),  # "" where accepted
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Run:
    """A run directory, opened by `open_run`."""

    root: Path

    def iteration(self, number: int) -> Path:
        return self.root / f"iteration-{number:03}"

    def shard(self, iteration: int, kind: str, index: int) -> Path:
        """Where chunk `index` of the draws of that kind ("draws" or "eval") is stored."""
        return self.iteration(iteration) / kind / f"{index:05}.parquet"

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to log.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        with (self.root / "log.jsonl").open("ab+") as file:
            # a line that a kill cut off must not swallow this one
            torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(("\n" * torn + line + "\n").encode())


_BEFORE_CONFIG = {".lock", ".config.yaml.part"}  # what a run has that was killed as it began


@contextmanager
def open_run(root: Path, config: Mapping[str, Any], changeable: frozenset[str]) -> Iterator[Run]:
    """Make a run directory, or go on with the one that holds this very configuration.

    `changeable` names settings that may differ from the stored ones. Raises RunError where the
    directory can't be written, holds something else, or is in use by a living process.
    """
    check_run(root, config, changeable)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise RunError(
            f"{root} can't be made: {error.strerror}. Choose another --output-dir."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees a dead owner's lock
        except OSError as error:
            raise RunError(f"{root} is in use by another femtune process.") from error
        with replacing(root / "config.yaml") as part:
            part.write_text(_as_yaml(config))
        if not (root / "environment.json").exists():
            write_json(root / "environment.json", environment())
        yield Run(root)


def check_run(root: Path, config: Mapping[str, Any], changeable: frozenset[str]) -> None:
    """Whether `root` can become or already is the run of this configuration; writes nothing.

    Raises RunError where it can't be written or holds something else.
    """
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RunError(
            f"{root} can't be written ({there} is not writable): choose another --output-dir."
        )
    stored = root / "config.yaml"
    if stored.exists():
        asked = yaml.safe_load(_as_yaml(config))  # as it would be stored: YAML changes a few characters
        _refuse_other(root, read_config(root), asked, changeable)
    elif root.exists() and (strangers := sorted({p.name for p in root.iterdir()} - _BEFORE_CONFIG)):
        raise RunError(f"{root} is no run directory: it holds {strangers[:3]}. Choose another one.")


def read_config(root: Path) -> dict[str, Any]:
    """The configuration that a run directory holds. Raises RunError where it is damaged."""
    path = root / "config.yaml"
    try:
        stored = read_yaml(path)
    except Unreadable as error:
        raise RunError(f"{path} {error}. {_REDO}") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise RunError(f"{path} holds no names and values. {_REDO}")
    return stored


_REDO = "Put back what was in it, or begin anew in another --output-dir."


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _refuse_other(
    root: Path, old: Mapping[str, Any], new: Mapping[str, Any], changeable: frozenset[str]
) -> None:
    def lines(config: Mapping[str, Any]) -> list[str]:
        kept = {key: value for key, value in config.items() if key not in changeable}
        return yaml.safe_dump(kept, sort_keys=True).splitlines()

    difference = list(difflib.unified_diff(lines(old), lines(new), n=0, lineterm=""))[2:]
    changed = [line for line in difference if not line.startswith("@@")]
    if changed:
        raise RunError(
            f"{root} holds a run with another configuration (- stored, + asked for):\n  "
            + "\n  ".join(changed)
            + "\nGive the same settings to go on with it, or another --output-dir."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder at; it becomes `path`, whole, or never does."""
    part = path.with_name(f".{path.name}.part")
    if part.is_dir():  # left by a killed run
        shutil.rmtree(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        for file in [part, *part.rglob("*")] if part.is_dir() else [part]:
            _flush(file)
        os.replace(part, path)
        _flush(path.parent)
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror or error}.") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def write_draws(path: Path, draws: Sequence[Draw], timing: Mapping[str, float]) -> None:
    """Store one chunk's draws, with its seconds in the file's metadata under "timing"."""
    table = pa.Table.from_pydict(_columns(draws), schema=DRAWS)
    with replacing(path) as part, part.open("wb") as file:  # pyarrow takes a:b.parquet for a URI
        pq.write_table(table.replace_schema_metadata({"timing": json.dumps(timing)}), file)


def _columns(draws: Sequence[Draw]) -> dict[str, list[Any]]:
    return {
        "iteration": [d.key.iteration for d in draws],
        "problem_id": [d.key.problem_id for d in draws],
        "stage": [d.key.stage for d in draws],
        "index": [d.key.index for d in draws],
        "prompt": [d.prompt for d in draws],
        "seed": [d.seed for d in draws],
        "tokens": [d.completion.tokens for d in draws],
        "text": [d.completion.text for d in draws],
        "finish_reason": [d.completion.finish_reason for d in draws],
        "logprob": [d.completion.logprob for d in draws],
        "error": [d.completion.error for d in draws],
        "reward": [d.score.reward for d in draws],
        "answer": [d.score.answer for d in draws],
        "rationale": [d.score.rationale for d in draws],
        "reason": [d.score.reason for d in draws],
        "detail": [d.score.detail for d in draws],
    }


def read_draws(folder: Path) -> Iterator[tuple[list[Draw], dict[str, float]]]:
    """The chunks stored in a folder of shards, in order: draws and timing of each."""
    for path in sorted(folder.glob("*.parquet")):
        yield read_shard(path)


def read_shard(path: Path) -> tuple[list[Draw], dict[str, float]]:
    """One chunk: its draws and timing. Raises RunError where the file is damaged."""
    try:
        with reading_arrow():
            table = pq.read_table(pa.memory_map(str(path)))
            timing = json.loads((table.schema.metadata or {}).get(b"timing", b"null"))
            _check_shard(table, timing)
            return [_draw(row) for row in table.to_pylist()], timing
    except Unreadable as error:
        raise RunError(
            f"{path} {error}. It is damaged: remove it, and the same command draws it again."
        ) from error


def _check_shard(table: Any, timing: Any) -> None:
    """Raises Unreadable where it is no shard as `write_draws` makes them."""
    if not table.schema.equals(DRAWS) or any(column.null_count for column in table.columns):
        raise Unreadable("holds no draws as they are stored")
    if pc.list_flatten(table["tokens"]).null_count:
        raise Unreadable("holds draws without some of their tokens")
    for name, known in (("prompt", ("plain", "hinted")), ("finish_reason", get_args(FinishReason))):
        if strange := {*table[name].unique().to_pylist()} - {*known}:
            raise Unreadable(f"has a {name} of {brief(repr(strange.pop()))}, expected one of {known}")
    if not isinstance(timing, dict) or not all(isinstance(s, int | float) for s in timing.values()):
        raise Unreadable("lacks the seconds that its chunk took")


def _draw(row: Mapping[str, Any]) -> Draw:
    return Draw(
        DrawKey(row["iteration"], row["problem_id"], row["stage"], row["index"]),
        row["prompt"],
        row["seed"],
        Completion(
            tuple(row["tokens"]), row["text"], row["finish_reason"], row["logprob"], row["error"]
        ),
        Score(row["reward"], row["answer"], row["reason"], row["detail"], row["rationale"]),
    )


def by_problem(draws: Sequence[Draw]) -> Iterator[tuple[str, list[Draw]]]:
    """A chunk's draws, problem by problem: they are stored together."""
    for problem_id, group in groupby(draws, key=lambda draw: draw.key.problem_id):
        yield problem_id, list(group)


def environment() -> dict[str, Any]:
    """Versions and hardware, as they belong beside a result."""
    import torch

    packages = ("femtune", "torch", "transformers", "peft", "accelerate", "pyarrow", "numpy")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "packages": {name: version(name) for name in packages},
    }


def readable(file: IO[str]) -> Iterator[dict[str, Any]]:
    """The events of a log.jsonl; a line that is damaged, or was cut off by a kill, is left out."""
    for line in file:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
