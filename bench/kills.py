"""Runs that are killed at random, and begun again by the same command, beside one that never was.

    python bench/kills.py                # 100 kills, about ten minutes on one core
    python bench/kills.py --kills 10 --seed 3

`femtune train` on the rubric world with the seedling (float32, CPU), by rejection(4) and star, once
going on from the draws of an open chunk (--resume draws), once drawing it anew (--resume chunks). Killed
by SIGKILL, SIGTERM and SIGINT, the latter two also twice in a row; half of the times are drawn over a
whole run, half over one phase of it. What is looked at when a run has come to its end: every draw
that was stored right after a kill, and equality with the run that nobody interrupted. Exit status 1
where anything differs.

A process of femtune takes seconds to import torch, so this one imports all and forks.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from femtune.cli.main import main as femtune
from femtune.comparison.demo import write_world
from femtune.estep import scheduler
from femtune.runs import manifest
from femtune.runs.draws import from_columns, read_draws

SETTINGS = [(scheme, resume) for resume in ("draws", "chunks") for scheme in ("rejection:4", "star")]
KILLS = {  # by name: the signals of one
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGTERM twice": [signal.SIGTERM] * 2,
    "SIGINT twice": [signal.SIGINT] * 2,
}
TWICE_WITHIN_S = 0.3
STATUS = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15, 0}, signal.SIGINT: {130, 0}}
PHASES = ("start", "E-step", "M-step", "evaluation", "between")
LONGEST_S = 300.0  # that a run, or its end after a signal, may take

Stored = dict[tuple[Any, ...], tuple[Any, ...]]  # by folder and key: tokens, text, reward


@dataclass
class Tally:
    """What came of the runs of one setting."""

    runs: int = 0
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # by signal and phase
    checked: int = 0  # draws that were stored right after a kill, over all kills
    lost: int = 0
    asked: int = 0  # requests to the engine
    draws: int = 0  # in the end results
    wrong: list[str] = field(default_factory=list)  # everything that is not as it should be


# --- a run in a process of its own


def begin(argv: list[str], notes: Path) -> int:
    """Fork a process that runs a command; gives its number. It notes requests in `notes`/asked."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored
        said = os.open(notes / "said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        note_requests(notes / "asked")
        status = femtune(argv)
        (notes / "modules").write_text(json.dumps([*sys.modules]))
    except KeyboardInterrupt:  # before femtune's own handler, or after it
        status = 130
    finally:
        os._exit(status)


def note_requests(path: Path) -> None:
    """A byte a request that the engine is given."""
    asked = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    pull = scheduler.OpenChunk.pull

    def noting(self: scheduler.OpenChunk, room: int) -> list[Any]:
        requests = pull(self, room)
        os.write(asked, b"." * len(requests))
        return requests

    scheduler.OpenChunk.pull = noting  # type: ignore[method-assign]  # in place of the method


def ended(pid: int, within_s: float) -> int | None:
    """A process's exit status, minus the signal that killed it, or None where it goes on."""
    deadline = time.monotonic() + within_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def events(root: Path) -> list[dict[str, Any]]:
    """Of a run's log, as far as they are whole."""
    path = root / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("}\n")]


def phase(root: Path) -> str:
    """Where a run is."""
    if not (root / "log.jsonl").exists():
        return "start"
    last = ([{"event": "session"}, *events(root)])[-1]["event"]
    return {"session": "start", "iteration": "between"}.get(last, last)


def durations(root: Path) -> dict[str, float]:
    """The longest of each phase, in seconds, of a run that was not interrupted."""
    found = dict.fromkeys(("E-step", "M-step", "evaluation"), 0.0)
    log = events(root)
    for one, after in pairwise(log):
        if one["event"] in found:
            found[one["event"]] = max(found[one["event"]], after["time"] - one["time"])
    return found


def wait_for_time(pid: int, root: Path, rng: random.Random, whole_s: float, spans: Any) -> int | None:
    """Wait until the time of a kill; gives the status of a run that has ended before."""
    if rng.random() < 0.5:
        return ended(pid, rng.uniform(0, whole_s))
    name, seen = rng.choice([*spans]), len(events(root)) if (root / "log.jsonl").exists() else 0
    while (status := ended(pid, 0.0)) is None:
        if (root / "log.jsonl").exists() and any(e["event"] == name for e in events(root)[seen:]):
            return ended(pid, rng.uniform(0, spans[name]))
        time.sleep(0.005)
    return status


# --- what is stored


def stored(root: Path) -> tuple[Stored, list[str]]:
    """Every draw of shards and of whole lines in journals, and names of those in a shard twice."""
    found: Stored = {}
    twice = []
    for folder in (
        path for kind in ("draws", "eval", "bound") for path in root.glob(f"iteration-*/{kind}")
    ):
        name = folder.relative_to(root).as_posix()
        for chunk, _ in read_draws(folder):
            for draw in chunk:
                twice += [f"{name} {draw.key}"] if (name, draw.key) in found else []
                found[name, draw.key] = told(draw)
        for journal in folder.glob("*.open.jsonl"):
            for draw in journalled(journal):
                found.setdefault((name, draw.key), told(draw))
    return found, twice


def journalled(path: Path) -> Iterator[Any]:
    for line in path.read_bytes().splitlines(keepends=True):
        digest, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or digest != b"%08x" % crc32(text):
            return
        yield from from_columns(json.loads(text)[1])


def told(draw: Any) -> tuple[Any, ...]:
    """What must stay of a draw: all but its log-probability, which rounds by batch."""
    completion = draw.completion
    return (
        completion.tokens,
        completion.text,
        completion.finish_reason,
        draw.prompt_kind,
        draw.seed,
        draw.score,
    )


def timeless(metrics: Any) -> Any:
    """Metrics without seconds."""
    if not isinstance(metrics, dict):
        return metrics
    kept = {k: v for k, v in metrics.items() if k != "seconds" and not k.endswith("_s")}
    return {name: timeless(value) for name, value in kept.items()}


def result(root: Path) -> dict[str, Any]:
    """All that must be equal of two runs, by file; draws by what must stay of them."""
    made: dict[str, Any] = {"draws": stored(root)[0]}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.name in ("examples.parquet", "model.safetensors", "problems.parquet", "eval.parquet"):
            made[name] = path.read_bytes()
        elif path.name == "metrics.json":
            made[name] = timeless(json.loads(path.read_text()))
        elif path.is_symlink():
            made[name] = str(path.readlink())
    return made


def differences(root: Path, whole: dict[str, Any]) -> Iterator[str]:
    """What is not as in a run that was not interrupted, and what is left lying about."""
    made = result(root)
    for name in sorted({*made, *whole}):
        if made.get(name) != whole.get(name):
            yield f"{name} differs" if name in made else f"{name} is missing"
    for path in sorted(root.rglob("*")):
        if path.name.endswith((".part", ".open.jsonl")) or path.name in (".last", ".best"):
            yield f"{path.relative_to(root)} is left"
    for entry in manifest.recorded(root).values():
        if bad := manifest.damage(root, entry):
            yield f"{entry.path}: {bad}, says the manifest"
    for path in manifest.unrecorded(root):
        yield f"{path.relative_to(root)} is not in the manifest"


# --- the bench


@dataclass(frozen=True)
class Whole:
    """A run that was not interrupted."""

    result: dict[str, Any]
    seconds: float
    spans: dict[str, float]


def whole_run(argv: list[str], root: Path, notes: Path) -> Whole:
    begun = time.monotonic()
    status = ended(begin([*argv, "--output-dir", str(root)], notes), LONGEST_S)
    if status:
        raise SystemExit(f"a run without a kill failed:\n{(notes / 'said').read_text()}")
    return Whole(result(root), time.monotonic() - begun, durations(root))


def killed_run(
    argv: list[str], root: Path, notes: Path, whole: Whole, most: int, rng: random.Random, tally: Tally
) -> int:
    """One run, killed up to `most` times, to its end; gives the number of kills."""
    snapshots: Stored = {}
    kills = 0
    for folder in (root, notes):
        folder.mkdir()
    root.rmdir()
    while True:
        pid = begin([*argv, "--output-dir", str(root)], notes)
        if kills == most:
            status = ended(pid, LONGEST_S)
            break
        if (status := wait_for_time(pid, root, rng, whole.seconds, whole.spans)) is not None:
            break  # done before
        name = rng.choice([*KILLS])
        at = phase(root)
        for number, signal_ in enumerate(KILLS[name]):
            status = ended(pid, rng.uniform(0, TWICE_WITHIN_S)) if number else None
            if status is None:
                os.kill(pid, signal_)
        if status is None and (status := ended(pid, LONGEST_S)) is None:
            os.kill(pid, signal.SIGKILL)
            tally.wrong.append(f"{root.name}: still there after {name} in {at}")
        if status not in STATUS[KILLS[name][0]]:
            tally.wrong.append(f"{root.name}: status {status} after {name} in {at}")
        kills += 1
        tally.kills[name, at] += 1
        now = stored(root)[0]
        tally.checked += len(now)
        snapshots |= now
    # a signal within a __del__ is heeded, and shown
    said = re.sub(r"(Exception ignored in: .*\n)Traceback", r"\1", (notes / "said").read_text())
    if status != 0 or "Traceback" in said:
        tally.wrong.append(f"{root.name}: ended with status {status}: {said[-2000:]}")
    final, twice = stored(root)
    lost = [key for key, draw in snapshots.items() if final.get(key) != draw]
    tally.lost += len(lost)
    tally.asked += (notes / "asked").stat().st_size
    tally.draws += len(final)
    tally.runs += 1
    found = [*(f"{key} was lost" for key in lost), *(f"{key} is there twice" for key in twice)]
    found += differences(root, whole.result)
    tally.wrong += [f"{root.name}: {each}" for each in found]
    return kills


def report(tallies: dict[tuple[str, str], Tally]) -> None:
    counts = sum((tally.kills for tally in tallies.values()), Counter[tuple[str, str]]())
    print(f"\n| kills | {' | '.join(PHASES)} | all |\n|---|{'---|' * (len(PHASES) + 1)}")
    for name in KILLS:
        row = [counts[name, at] for at in PHASES]
        print(f"| {name} | {' | '.join(map(str, row))} | {sum(row)} |")
    row = [sum(counts[name, at] for name in KILLS) for at in PHASES]
    print(f"| all | {' | '.join(map(str, row))} | {sum(row)} |\n")
    print("| scheme | resume | runs | kills | draws looked at | lost | asked again, of all | wrong |")
    print("|---|---|---|---|---|---|---|---|")
    for (scheme, resume), tally in tallies.items():
        again = f"{tally.asked - tally.draws:,} of {tally.draws:,}"
        cells = [
            scheme,
            resume,
            tally.runs,
            tally.kills.total(),
            f"{tally.checked:,}",
            tally.lost,
            again,
        ]
        print(f"| {' | '.join(map(str, cells))} | {len(tally.wrong)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=2)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    rng, begun = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = write_world("rubric", folder / "world", args.problems, 24)
        base = ["train", str(train), "--eval-data", str(test), "--task", "judge", "--raters", "named"]
        base += ["--scale", "1,5", "--model", "seedling", "--max-new-tokens", "64", "--use-cpu"]
        base += ["--iterations", str(args.iterations), "--chunk-size", "24", "--learning-rate", "1e-3"]
        base += ["--show", "quiet"]
        wholes: dict[str, Whole] = {}
        tallies = {setting: Tally() for setting in SETTINGS}
        number = kills = 0
        while kills < args.kills:
            for (scheme, resume), tally in tallies.items():
                if kills == args.kills:
                    break
                argv = [*base, "--scheme", scheme]
                if scheme not in wholes:
                    notes = folder / f"whole-{len(wholes)}"
                    notes.mkdir()
                    wholes[scheme] = whole_run(argv, notes / "run", notes)
                    if len(wholes) == 1:  # what took it so long
                        for module in json.loads((notes / "modules").read_text()):
                            with suppress(Exception):
                                importlib.import_module(module)
                        wholes[scheme] = whole_run(argv, notes / "again", notes)
                    print(f"{scheme}: {wholes[scheme].seconds:.1f} s, phases {wholes[scheme].spans}")
                argv += ["--resume", resume]
                root, notes = folder / f"run-{number}", folder / f"notes-{number}"
                most = min(12, args.kills - kills)
                done = killed_run(argv, root, notes, wholes[scheme], most, rng, tally)
                number, kills = number + 1, kills + done
                passed = time.monotonic() - begun
                print(f"run {number}: {scheme}, {resume}, {done} kills; {passed:.0f} s", flush=True)
    report(tallies)
    wrong = [f"{scheme} {resume} {each}" for (scheme, resume), t in tallies.items() for each in t.wrong]
    print("\n" + ("\n".join(wrong) if wrong else "All runs ended like the one that was not killed."))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
