"""The run directory: what is in each file, each written once, all of it enough to resume from.

    config.yaml              format number, and the whole resolved configuration
    environment.json         versions, hardware and git state as the run began
    problems.parquet, eval.parquet
    rows.json            which rows of the data were left out and why, how labels were read
    iteration-001/
        draws/00000.parquet  one shard a chunk: every draw, kept or not
        draws/00001.open.jsonl   the draws of a chunk that is still open: see journal.py
        eval/00000.parquet   the same of the evaluation
        bound/, bound_scored/    and of what bounds the likelihood: see likelihood_bound.py
        eval_scored/, rationales.json   what rationales are worth to the base: see rationales.py
        examples.parquet     what the M-step trains on; also TRL's prompt / completion columns
        model/               an ordinary Hugging Face folder
        metrics.json         written last: the iteration is done
    teacher.json             which model drew in iteration 1, and its licence: see teacher.py
    requests.jsonl           what was asked of an API and answered: see chat/request_log.py
    best, last               links to models
    manifest.jsonl           size and SHA-256 of each file: see manifest.py
    log.jsonl                a line an event; older ones in log.1.jsonl and so on

Whatever exists is whole: files are written beside their place, flushed, and renamed into it. So the
state of a run is which files exist, and the same command continues it.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import yaml

from femtune._util.atomic_files import append_lines, cant_write, read_lines, replacing, write_json
from femtune._util.environment import differences, environment
from femtune._util.parsing import Unreadable, read_yaml
from femtune.errors import RunError
from femtune.runs import manifest

events = logging.getLogger("femtune")

LOG_BYTES = 16 << 20  # of log.jsonl, before it is set aside
OLD_LOGS = 4  # that are kept
FORMAT = 2  # of a run's files; raised by whatever makes older runs unreadable


@dataclass(frozen=True)
class Run:
    """A run directory, opened by `open_run`."""

    root: Path
    # files that this process has stored or checked, so that none is read twice
    trusted: set[Path] = field(default_factory=set, compare=False, repr=False)
    # descriptor of the lock that is held
    lock: int | None = field(default=None, compare=False, repr=False)

    def iteration(self, number: int) -> Path:
        return self.root / f"iteration-{number:03}"

    def shard(self, iteration: int, kind: str, index: int) -> Path:
        """Return where chunk `index` of a kind of draws ("draws" or "eval") is stored."""
        return self.iteration(iteration) / kind / f"{index:05}.parquet"

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to log.jsonl."""
        self.check_place()
        path = self.root / "log.jsonl"
        try:
            if path.exists() and path.stat().st_size > LOG_BYTES:
                for old in reversed(log_files(self.root)[-OLD_LOGS:]):
                    number = int(old.name.split(".")[1]) if old != path else 0
                    old.rename(self.root / f"log.{number + 1}.jsonl")
        except OSError as error:
            raise cant_write(path, error) from error
        append_lines(path, [json.dumps({"time": round(time.time(), 3), "event": event, **fields})])

    def check_place(self) -> None:
        """Raises RunError where the directory was removed or moved since it was opened."""
        if self.lock is None:
            return
        try:
            there = os.path.samestat(os.fstat(self.lock), (self.root / ".lock").stat())
        except OSError:
            there = False
        if not there:
            raise RunError(
                f"{self.root} was removed or moved during the run. Put it back in its place, without "
                "what may have been written there since. Then the same command resumes."
            )

    def record(self, *paths: Path) -> None:
        """Enter what was just stored, files or folders, into the manifest."""
        self.check_place()
        manifest.record(self.root, paths)
        self.trusted.update(paths)

    def write_json(self, path: Path, value: Any) -> None:
        """Store a JSON file and enter it."""
        write_json(path, value)
        self.record(path)

    def record_rest(self) -> None:
        """Enter what the manifest lacks, once looked through: a kill may come before a file's line.

        Raises RunError that names what is damaged.
        """
        files = manifest.unrecorded(self.root)
        self._refuse({file: manifest.looked_through(file) for file in files})
        if files:
            manifest.record(self.root, files)

    def verify(self, *paths: Path) -> None:
        """Look whether files, or all in folders, are what was stored, before they are relied on.

        Raises RunError that names what is damaged.
        """
        todo = [path for path in paths if path not in self.trusted and path.exists()]
        if not todo:
            return
        self.record_rest()
        entries = manifest.recorded(self.root)
        for path in todo:
            own = path.relative_to(self.root).as_posix()
            names = [name for name in entries if name == own or name.startswith(f"{own}/")]
            self._refuse({self.root / name: manifest.damage(self.root, entries[name]) for name in names})
            self.trusted.add(path)

    def _refuse(self, found: Mapping[Path, str]) -> None:
        bad = [f"{path.relative_to(self.root)} ({what})" for path, what in found.items() if what]
        if bad:
            more = f" and {len(bad) - 3} more" * (len(bad) > 3)
            raise RunError(
                f"{self.root}: damaged since it was stored: {', '.join(bad[:3])}{more}. "
                f"`femtune verify {self.root}` says what can be made again, and with --repair sets it "
                "aside, so that the same command makes it."
            )


# settings of schemes that were removed, where a stored run made no use of them
_RETIRED: tuple[tuple[str, Any], ...] = (("first", []), ("proposal", "current"), ("min_gain", 0.0))
# what a run has that was killed as it began
_BEFORE_CONFIG = {".lock", ".config.yaml.part"}


@contextmanager
def open_run(root: Path, config: Mapping[str, Any], changeable: frozenset[str]) -> Iterator[Run]:
    """Make a run directory, or resume the one that holds this very configuration.

    `changeable` names settings that may differ from the stored ones. Raises RunError where the
    directory can't be written, holds something else, or is in use by a living process.
    """
    check_run(root, config, changeable)
    with locked(root) as lock:
        with replacing(root / "config.yaml") as part:
            part.write_text(_as_yaml(config))
        run = Run(root, lock=lock)
        _tell_environment(run)
        run.record_rest()
        yield run
        run.record_rest()


@contextmanager
def locked(root: Path) -> Iterator[int]:
    """Keep other processes from a run directory, which is made; gives the lock's descriptor.

    A dead process holds no lock, nor does what it has forked. Raises RunError where another
    holds it, or none can be had. (filelock would lock in the same way, and not name the holder.)
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("ab+", buffering=0)  # nothing left to write when it is closed
    except OSError as error:
        raise RunError(
            f"{root} can't be written ({error.strerror}): choose another --output-dir."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees a dead owner's lock
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunError(
                    f"{root} can't be locked ({error.strerror}), so two processes could spoil it: "
                    "choose an --output-dir on another file system."
                ) from error
            raise RunError(f"{root} is in use by another femtune process{_owner(lock)}.") from error
        _write_owner(lock)
        _let_go_in_children()
        _held.add(lock.fileno())
        try:
            yield lock.fileno()
        finally:
            _held.discard(lock.fileno())


_held: set[int] = set()  # descriptors of this process's locks


def _let_go() -> None:
    """In a forked child, which would hold a lock beyond its parent's death."""
    if _held:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in _held:
            os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)
        _held.clear()


@cache
def _let_go_in_children() -> None:
    """Have forked children let go of this process's locks; there is no way to take that back."""
    os.register_at_fork(after_in_child=_let_go)


def _write_owner(lock: IO[bytes]) -> None:
    try:
        lock.truncate(0)
        lock.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
    except OSError:
        pass  # a full disk: the name is for messages alone


def _owner(lock: IO[bytes]) -> str:
    lock.seek(0)
    pid, _, host = lock.readline().decode(errors="replace").strip().partition(" ")
    return f" (process {pid} on {host})" if host else ""


def _tell_environment(run: Run) -> None:
    """Store what the run was started with, and log what differs when it resumes."""
    path, now = run.root / "environment.json", environment()
    if not path.exists():
        write_json(path, now)
        return
    try:
        begun = json.loads(path.read_text())
    except (OSError, ValueError):
        begun = None
    changed = differences(begun if isinstance(begun, dict) else {}, now)
    if changed:
        run.log("session", changed=changed)
    versions = {name: pair for name, pair in changed.items() if name.startswith("packages.")}
    if versions:
        shown = ", ".join(f"{n.partition('.')[2]} {a} -> {b}" for n, (a, b) in versions.items())
        events.warning(
            "%s was started with other versions (%s). Draws from now on may differ by rounding "
            "from those of an unchanged installation.",
            *(run.root, shown),
        )


def log_files(root: Path) -> list[Path]:
    """A run's logs that are there, the newest first."""
    numbered = [root / f"log.{number}.jsonl" for number in range(1, OLD_LOGS + 1)]
    return [path for path in (root / "log.jsonl", *numbered) if path.exists()]


def read_log(root: Path) -> Iterator[dict[str, Any]]:
    """A run's events, the oldest first; a line that a kill cut off is left out."""
    for path in reversed(log_files(root)):
        yield from read_lines(path)


def check_run(root: Path, config: Mapping[str, Any], changeable: frozenset[str]) -> None:
    """Check that `root` can become, or is, the run of this configuration; write nothing.

    Raises RunError where it can't be written or holds something else.
    """
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RunError(
            f"{root} can't be written ({there} is not writable): choose another --output-dir."
        )
    if (root / "config.yaml").exists():
        asked = yaml.safe_load(_as_yaml(config))  # as it would be stored: YAML changes a few characters
        del asked["format"]
        stored = stored_config(root)
        relied, relies = stored.pop("relies_on", None), asked.pop("relies_on", None)
        _refuse_other(root, stored, asked, changeable)
        if relies is not None:
            _check_relied_on(root, relied, relies)
    elif root.exists() and (strangers := sorted({p.name for p in root.iterdir()} - _BEFORE_CONFIG)):
        raise RunError(f"{root} is not a run directory: it holds {strangers[:3]}. Choose another one.")


# how a refusal names each entry
_RELIED = {
    "weights": "the base model's weights",
    "model_config": "the base model's config.json or generation_config.json",
    "tokenizer": "the base model's tokenizer",
    "chat_template": "the chat template or template_args",
    "served_model": "the model's name on the server",
    "teacher": "the teacher's weights",
    "teacher_files": "the teacher's config, tokenizer or chat template",
    "demos": "the worked examples",
    "model_examples": "the worked examples of the model",
    "reward": "the code of the reward",
    "reward_columns": "the data's columns that the reward reads",
}


def _check_relied_on(root: Path, stored: Any, now: Mapping[str, str]) -> None:
    """Refuse to resume a run whose weights, tokenizer, reward, ... changed. Raises RunError."""
    if not isinstance(stored, Mapping):
        raise RunError(
            f"{root} was made by an older femtune, which did not record hashes of the model, tokenizer "
            "and reward: whether they are still the same can't be checked. Start again in another "
            "--output-dir."
        )
    changed = [name for name in {**_RELIED, **stored, **now} if stored.get(name) != now.get(name)]
    if changed:
        what = " and ".join(_RELIED.get(name, name) for name in changed)
        raise RunError(
            f"{root} can't be resumed: {what} changed since it was started. Restore what it was started "
            "with, or start again in another --output-dir."
        )


def stored_config(root: Path) -> dict[str, Any]:
    """Return the configuration of a run, without its format.

    Raises RunError if it is missing, damaged, or made by another version of femtune.
    """
    path = root / "config.yaml"
    if not path.exists():
        raise RunError(f"{root} is no run: it has no config.yaml. Give the folder of a run.")
    redo = "Put back what was in it, or start again in another --output-dir."
    try:
        stored = read_yaml(path)
    except Unreadable as error:
        raise RunError(f"{path} {error}. {redo}") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise RunError(f"{path} holds no names and values. {redo}")
    if (found := stored.pop("format", None)) != FORMAT:
        raise RunError(
            f"{root} was made by another version of femtune: its format is {found}, and this version "
            f"reads format {FORMAT}. Use the version that its environment.json names, or start again "
            "in another --output-dir."
        )
    if isinstance(scheme := stored.get("scheme_data"), dict):
        stored["scheme_data"] = {k: v for k, v in scheme.items() if (k, v) not in _RETIRED}
    return stored


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False, allow_unicode=True)


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
            + "\nGive the same settings to resume it, or another --output-dir."
        )
