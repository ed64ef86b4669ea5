"""A small run that is ended at each kind of write that it makes: see test_kills.py.

    python -m tests.write_points FOLDER SEED kills       by SIGKILL
    python -m tests.write_points FOLDER SEED errors      by a disk that fails, or is full, from there on

A write is whatever changes a file or a folder of the run, or flushes it; half of a line, too. Its kind
is what it does to which file, numbers aside. A run is begun again, as the same command would, until
it is done, ended each time at a kind at which none was ended before; and another run, until all have
been. An error must come out as a RunError.

Forks a process for each: this one never computes anything, so that its children may. Prints each end,
and what was not as in the run that nobody interrupted; exit status 1 where there is any.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import transformers

import femtune.runs.run
from femtune.data.problems import save_problems
from femtune.errors import RunError
from femtune.runs import manifest
from femtune.runs.run import open_run
from femtune.sampler import no_foreign_bars
from femtune.schemes.named import parse_scheme

from .models import byte_tokenizer, tiny_model
from .test_loop import TEST, TRAIN, Fuse, state, steps, timeless

ITERATIONS = 3  # so that a model is removed
SCHEME = "rejection:2+chain"  # so that what is remembered is stored
ENDED = 3  # exit status where an error came out as it should


def whole_run(root: Path, base: Path, keep_last: int = 0) -> list[dict[str, Any]]:
    """As `femtune train` would, with an engine that needs no time."""
    with open_run(root, {"scheme": SCHEME}, frozenset()) as run:
        for name, group in (("problems", TRAIN), ("eval", TEST)):
            if not (root / f"{name}.parquet").exists():
                save_problems(group, root / f"{name}.parquet")
        scheme = parse_scheme(SCHEME)
        made = steps(root, base, Fuse(), scheme=scheme, iterations=ITERATIONS, keep_last=keep_last)
        made.run = run
        return made.iterate()


MOST_RUNS = 4


def differences(root: Path, whole: Path, history: Any, expected: Any) -> list[str]:
    """What is not as in the whole run, or left lying about."""
    made, wanted = state(root), state(whole)
    found = [f"{name} differs" for name in {*made, *wanted} if made.get(name) != wanted.get(name)]
    found += ["metrics differ"] * (timeless_all(history) != timeless_all(expected))
    found += [
        f"{entry.path}: {bad}"
        for entry in manifest.recorded(root).values()
        if (bad := manifest.damage(root, entry))
    ]
    found += [f"{path} is not in the manifest" for path in manifest.unrecorded(root)]
    names = {path.relative_to(root).as_posix() for path in root.rglob("*")}
    return found + [f"{name} is left or missing" for name in names ^ names_of(whole)]


def names_of(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def timeless_all(history: Sequence[Any]) -> list[Any]:
    return [timeless(metrics) for metrics in history]


# --- points


class Points:
    """What is written below `root`, by kind; `ends` says of one "kills", and the process is killed, or
    "errors", and the disk fails from there on.
    """

    def __init__(self, root: Path, ends: Callable[[str], str]) -> None:
        self.root, self.ends = str(root), ends
        self.error = 0

    def reach(self, what: str, path: str, before: Callable[[], Any] = lambda: None) -> None:
        if not path.startswith(self.root + "/"):
            return
        how = self.ends(re.sub(r"\d+", "N", f"{what} {path.removeprefix(self.root + '/')}"))
        if how == "kills":
            before()
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "errors":
            before()
            full = [] if what in ("unlink", "rmdir") else [errno.ENOSPC]  # which fails no removal
            self.error = random.choice([*full, errno.EROFS, errno.EIO])
        if self.error and not (self.error == errno.ENOSPC and what in ("unlink", "rmdir")):
            raise OSError(self.error, os.strerror(self.error), path)

    def watch(self) -> None:
        """Replace what writes by what tells of it first."""
        for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "symlink", "fsync"):
            setattr(os, name, partial(self.told, name, getattr(os, name)))
        io.open = builtins.open = partial(self.opened, builtins.open)

    def told(self, name: str, do: Callable[..., Any], first: Any, *more: Any, **named: Any) -> Any:
        path = first
        if name == "fsync":
            path = os.readlink(f"/proc/self/fd/{first}")
        elif name == "symlink":
            path = more[0]
        elif named.get("dir_fd") is not None:
            folder = named["dir_fd"]
            path = f"{os.readlink(f'/proc/self/fd/{folder}')}/{first}"
        self.reach(name, os.path.abspath(path))
        return do(first, *more, **named)

    def opened(
        self, do: Callable[..., Any], file: Any, mode: str = "r", *more: Any, **named: Any
    ) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return do(file, mode, *more, **named)
        path = os.path.abspath(file)
        self.reach("open", path)
        return Torn(do(file, mode, *more, **named), partial(self.reach, path=path))


class Torn:
    """A file whose writes are cut in the middle where the process is to end."""

    def __init__(self, file: Any, reach: Callable[..., None]) -> None:
        self._file, self._reach = file, reach

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._reach("write half of", before=half)
        return self._file.write(data)

    def truncate(self, *size: int) -> int:
        self._reach("truncate")
        return self._file.truncate(*size)

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# --- processes


def forked(do: Callable[[], Any]) -> int:
    """The exit status of a child that does it; minus the signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = int(do() or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, seed: int, how: str, halves: bool = False) -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in ("AutoModelForCausalLM", "LlamaForCausalLM", "Trainer"):
        getattr(transformers, name)  # imported here, for all children
    femtune.runs.run.environment = dict  # asks git, a second each time
    base, whole, told = folder / "base", folder / "whole", folder / "told"
    rng = random.Random(seed)

    def prepare() -> None:
        no_foreign_bars()
        tiny_model(base, "llama", tokenizer=byte_tokenizer())
        kinds: dict[str, str] = {}
        Points(whole, lambda kind: kinds.setdefault(kind, "")).watch()
        whole_run(whole, base, keep_last=1)
        told.write_text("\n".join(kinds))

    def attempt(root: Path, left: set[str], share: float, seed: int) -> int:
        """A run to its end, or to one of these kinds of points; gives whether it ended wrong."""
        no_foreign_bars()
        random.seed(seed)

        def ends(kind: str) -> str:
            if points.error or kind not in left or random.Random(f"{kind}{seed}").random() > share:
                return ""
            os.write(note, kind.encode())
            return how

        note = os.open(told, os.O_WRONLY | os.O_TRUNC)
        points = Points(root, ends)
        points.watch()
        try:
            history = whole_run(root, base, keep_last=1)
        except RunError:
            return ENDED
        left.clear()
        found = differences(root, whole, history, whole_run(whole, base, keep_last=1))
        print("".join(f"    {each}\n" for each in found), end="")
        return bool(found)

    if forked(prepare):
        return 1
    # each kind by one of the two if "halves" is asked for, as in CI; else all by this one
    kinds = told.read_text().splitlines()
    left = {*(kinds[how == "errors" :: 2] if halves else kinds)}
    num_kinds, num_ended, wrong = len(left), 0, 0
    for number in range(MOST_RUNS):
        root, ended = folder / f"run-{number}", True
        while ended:
            share = 1.0 if number else 0.5
            status = forked(partial(attempt, root, left, share, rng.getrandbits(32)))
            ended = bool(kind := told.read_text())
            if ended:
                left.remove(kind)
                num_ended += 1
                right = status == (-signal.SIGKILL if how == "kills" else ENDED)
                wrong += not right
                verdict = "" if right else f"  WRONG: status {status}"
                print(f"run {number} ended at: {kind}{verdict}", flush=True)
        wrong += bool(status)
        print(f"run {number} came to its end {'WRONG' if status else 'like the whole one'}", flush=True)
        if not left:
            break
    print(
        f"{num_ended} {how} at {num_kinds} kinds of writes, {wrong} wrong; not reached: {sorted(left)}"
    )
    return bool(wrong or left)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], "halves" in sys.argv[4:]))
