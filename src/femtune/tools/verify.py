"""Verification of a run: which files are damaged, and which can be restored (`femtune verify RUN`).

Every file is compared with the manifest by size and SHA-256; files that are not in the manifest are
read through. `repair` moves damaged files aside if the run's own command can make them again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from femtune._util.atomic_files import make_folder
from femtune.data.problems import load_problems
from femtune.errors import DataError, RunError
from femtune.estep.journal import journals, read_journal
from femtune.mstep.disk import free_bytes, sized
from femtune.run_folder import fingerprint
from femtune.runs import manifest
from femtune.runs.checkpoints import MASTER, is_out_of_patience
from femtune.runs.run import Run, locked, stored_config
from femtune.tools.stored_run import stored_schedule

ASIDE = "damaged"  # folder in the run's directory for damaged files


@dataclass(frozen=True)
class Fault:
    """A file that differs from what was stored."""

    path: str  # relative to the run's directory
    what: str
    remedy: str  # how the run's command restores it; "" if it can't


@dataclass(frozen=True, kw_only=True)
class RunCondition:
    """The condition of a run's directory."""

    root: Path
    num_files: int  # files that were compared or read through
    num_bytes: int
    free: int  # free bytes on its disk
    faults: Sequence[Fault]
    leftovers: Sequence[Path]  # of interrupted writes; replaced when the write is repeated
    state: str  # where the run resumes


def runs_in(folder: Path) -> list[Path]:
    """Return a run's directory, or those of all runs in a folder."""
    if (folder / "config.yaml").exists():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


def check_up(root: Path) -> RunCondition:
    """Check all files of a run, without writing. Raises RunError if its configuration can't be read."""
    stored_config(root)
    entries = manifest.recorded(root)
    found = {path: manifest.damage(root, entry) for path, entry in entries.items()}
    rest = manifest.unrecorded(root)
    found |= {path.relative_to(root).as_posix(): manifest.looked_through(path) for path in rest}
    if not any(found.values()) and (other := _other_problems(root)):
        found["problems.parquet"] = other
    bad = {path for path, what in found.items() if what}
    faults = [Fault(path, found[path], _remedy(root, path, bad)) for path in sorted(bad)]
    return RunCondition(
        root=root,
        num_files=len(found),
        num_bytes=sum(
            path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()
        ),
        free=free_bytes(root),
        faults=faults,
        leftovers=sorted([*root.rglob(".*.part"), *root.rglob(".*.launch-*")]),
        state=_state(root),
    )


def _other_problems(root: Path) -> str:
    """Return what is wrong with the stored problems; "" if they are those of the configuration."""
    groups = [root / f"{name}.parquet" for name in ("problems", "eval", "dev")]
    named = stored_config(root).get("problems")
    if not named or not groups[0].exists():
        return ""
    try:
        problems = [load_problems(path) if path.exists() else [] for path in groups]
    except DataError as error:
        return str(error)
    # a run without held-out problems may have passed one group, or an empty second one
    known = {fingerprint(*problems), fingerprint(*problems[:2]), fingerprint(*filter(None, problems))}
    return "" if named in known else "not the problems that config.yaml names"


_PLACES = re.compile(
    r"iteration-(\d+)/"
    r"(draws|\w+_answers|eval_scored|eval|dev|bound_scored|bound|scored|memory|selection|model|master"
    r"|examples\.parquet|metrics\.json|rationales\.json|scores\.json|)"
)


def _remedy(root: Path, path: str, bad: set[str]) -> str:
    """Return how the run's command restores a file; "" if it can't."""
    if "/" not in path:
        return "written again" if path == "environment.json" else "written again from the data"
    place = _PLACES.match(path)
    if place is None:
        return ""
    iteration, kind = int(place[1]), place[2]
    if kind == "eval_scored":  # by the base model
        return "scored again"
    if kind.endswith("_answers"):  # of the base model: only in `predict`, `evaluate` and baselines
        return "scored again"
    if kind == "selection" and _is_there(root, iteration):
        return "not needed: the examples are chosen"
    if kind == "selection" or (kind == "dev" and _chooses_examples(root)):
        return "drawn again"  # by the base
    if kind in ("draws", "eval", "dev", "bound", "bound_scored", "scored"):
        weights = iteration - (kind not in ("eval", "dev", "bound", "bound_scored"))
        if not weights or _is_there(root, weights):
            does = "drawn again" if kind in ("draws", "eval", "dev", "bound") else "scored again"
            return does + _after(root, weights, bad)
        return ""  # keep_last has removed the weights that drew or scored it
    if kind in ("examples.parquet", "memory"):
        return "written again from the draws"
    if kind == MASTER:
        return "not needed: the next M-step starts from the rounded weights of the model"
    if kind == "model":
        if _has_master(root, iteration, bad):
            return "rounded again from its float32 weights"
        if _chooses_examples(root):
            return "chosen again from the stored answers"
        start = iteration - 1
        if start and not _is_there(root, start) and _starts_from_previous(root, iteration):
            return ""
        return "trained again from the examples" + _after(root, start, bad)
    return "computed again" if kind in ("metrics.json", "rationales.json", "scores.json") else ""


def _after(root: Path, weights: int, bad: set[str]) -> str:
    """Return what must come first: retraining damaged weights."""
    own = f"iteration-{weights:03}/model/"
    return f", after the model of iteration {weights}" if any(p.startswith(own) for p in bad) else ""


def _has_master(root: Path, iteration: int, bad: set[str]) -> bool:
    """Return True if a model's folder has complete float32 weights beside it."""
    own = f"iteration-{iteration:03}/{MASTER}/"
    return (root / own / "m_step.json").exists() and not any(p.startswith(own) for p in bad)


def _is_there(root: Path, iteration: int) -> bool:
    return (Run(root).iteration(iteration) / "model").exists()


def _chooses_examples(root: Path) -> bool:
    return stored_config(root).get("m_step") == "examples"


def _starts_from_previous(root: Path, iteration: int) -> bool:
    return stored_schedule(stored_config(root)).origin(iteration) == "previous"


def _state(root: Path) -> str:
    """Describe how far a run is, from its files."""
    run, wanted = Run(root), stored_config(root).get("iterations")
    last = wanted if isinstance(wanted, int) else 0
    folders = sorted(root.glob("iteration-*"))
    done = [folder for folder in folders if (folder / "metrics.json").exists()]
    numbers = {int(folder.name.rpartition("-")[2]) for folder in done}
    if wanted is None and done:
        return "done"
    if numbers and last in numbers and numbers >= set(range(last + 1)):
        return f"done: {last} iterations"
    history = [json.loads((folder / "metrics.json").read_text()) for folder in done]
    if history and is_out_of_patience(history, int(stored_config(root).get("patience") or 0)):
        return f"done: {len(done) - 1} iterations, out of patience"
    number = next(number for number in range(last + 2) if number not in numbers)
    parts = [*_open_parts(run.iteration(number))]
    return f"resumes at iteration {number}" + (f": {', '.join(parts)}" if parts else "")


def _open_parts(folder: Path) -> Iterator[str]:
    """Yield the stored parts of an unfinished iteration."""
    for kind, name in (
        ("draws", "of the E-step"),
        ("scored", "of log-probabilities"),
        ("selection", "of the choice of examples"),
        ("dev", "of the development part"),
        ("eval", "of the evaluation"),
        ("bound", "of the bound"),
    ):
        if shards := len(list((folder / kind).glob("*.parquet"))):
            yield f"{shards} chunk{'s' * (shards > 1)} {name} stored"
        for path in journals(folder / kind):
            if known := len(read_journal(path).draws):
                yield f"{known} draws of an open chunk {name}"
    for name, what in (("examples.parquet", "examples"), ("model", "model")):
        if (folder / name).exists():
            yield f"{what} stored"


def repair(found: RunCondition) -> list[Path]:
    """Move damaged files that can be restored aside; return their new paths.

    They go to RUN/damaged/, where nothing is overwritten. Their iteration counts as unfinished until the
    run's command has restored it. Raises RunError if the run is in use.
    """
    root, moved = found.root, []
    with locked(root):
        targets = {root / _unit(fault.path) for fault in found.faults if fault.remedy}
        for target in sorted(targets):
            iteration = target.relative_to(root).parts[0]
            # log-probabilities belong to the draws beside them; draws made again may differ by rounding
            scored = target.parent.with_name("scored") / target.name
            beside = [
                target.parent.with_name(f"{target.parent.name}_{kind}") / target.name
                for kind in ("answers", "scored")
            ]
            of_draws = [scored] if target.parent.name == "draws" else beside
            computed = [
                root / iteration / name for name in ("metrics.json", "rationales.json", "scores.json")
            ]
            for path in (target, *of_draws, *computed):
                if iteration.startswith("iteration-") or path == target:
                    manifest.record_removed(root, path)
                    if path.exists():
                        moved.append(_set_aside(root, path))
    return moved


def _unit(path: str) -> str:
    """Return what is restored as a unit: a folder of weights, else the file."""
    place = re.match(rf"iteration-\d+/(model|{MASTER})/", path)
    return place[0].rstrip("/") if place else path


def _set_aside(root: Path, path: Path) -> Path:
    name = path.relative_to(root)
    number = 1
    while (place := root / ASIDE / str(number) / name).exists():
        number += 1
    try:
        make_folder(place.parent)
        os.replace(path, place)
    except OSError as error:
        raise RunError(
            f"{path} can't be moved to {ASIDE}/: {error.strerror}. Fix its permissions."
        ) from error
    return place


def lines(found: RunCondition) -> Iterator[tuple[bool, str, str]]:
    """Yield a flag (True if fine), a name and a description for each line in the terminal."""
    yield True, "run", f"{found.root}: {found.state}"
    sizes = f"{sized(found.num_bytes)}; {sized(found.free)} free on its disk"
    yield True, "files", f"{found.num_files:,} compared with the manifest; {sizes}"
    for fault in found.faults:
        remedy = fault.remedy or "can't be made again"
        yield False, "damaged", f"{fault.path}: {fault.what} ({remedy})"
    for path in found.leftovers:
        yield (
            True,
            "unfinished",
            f"{path.relative_to(found.root)}: an interrupted write; replaced when it is repeated",
        )
    if not found.faults:
        yield True, "damage", "none"


def as_json(found: RunCondition) -> str:
    """Return the condition as one line of JSON."""
    return json.dumps(
        {
            "run": str(found.root),
            "state": found.state,
            "num_files": found.num_files,
            "bytes": found.num_bytes,
            "free_bytes": found.free,
            "damaged": [fault.__dict__ for fault in found.faults],
            "unfinished": [str(path.relative_to(found.root)) for path in found.leftovers],
        }
    )
