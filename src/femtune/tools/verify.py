"""What there is of a run, what of it is damaged, and what can be made again: `femtune verify RUN`.

Every file is compared with the manifest, by size and SHA-256; what the manifest lacks is read through.
`mend` sets aside what is damaged and can be made again, so that the run's own command makes it.
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
from femtune.runs.checkpoints import MASTER
from femtune.runs.run import Run, locked, stored_config
from femtune.tools.stored_run import stored_schedule

ASIDE = "damaged"  # in the run's directory: what was set aside


@dataclass(frozen=True)
class Fault:
    """A file that is not what was stored."""

    path: str  # from the run's directory
    what: str
    remedy: str  # how it is made again; "" where it can't be


@dataclass(frozen=True, kw_only=True)
class RunCondition:
    """What was found in a run's directory."""

    root: Path
    num_files: int  # that were compared or read through
    num_bytes: int
    free: int  # bytes, on its disk
    faults: Sequence[Fault]
    leftovers: Sequence[Path]  # of writes that a kill cut off: replaced when they are made again
    state: str  # where the run goes on


def runs_in(folder: Path) -> list[Path]:
    """A run's directory, or all those in a folder of several."""
    if (folder / "config.yaml").exists():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


def check_up(root: Path) -> RunCondition:
    """Look through a run; writes nothing. Raises RunError where its configuration can't be read."""
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
    """What is wrong with the problems, if they are not those that the configuration names."""
    groups = [root / "problems.parquet", root / "eval.parquet"]
    named = stored_config(root).get("problems")
    if not named or not groups[0].exists():
        return ""
    try:
        problems = [load_problems(path) if path.exists() else [] for path in groups]
    except DataError as error:
        return str(error)
    # a run without held-out problems was given one group or an empty second one
    known = {fingerprint(*problems), fingerprint(*filter(None, problems))}
    return "" if named in known else "other problems than config.yaml names"


_PLACES = re.compile(
    r"iteration-(\d+)/"
    r"(draws|\w+_answers|eval_scored|eval|bound_scored|bound|recalled|scored|memory|model|master"
    r"|examples\.parquet|metrics\.json|rationales\.json|)"
)


def _remedy(root: Path, path: str, bad: set[str]) -> str:
    """How a file is made again by the run's command; "" where it can't be."""
    if "/" not in path:
        return "written anew" if path == "environment.json" else "written again from the data"
    place = _PLACES.match(path)
    if place is None:
        return ""
    iteration, kind = int(place[1]), place[2]
    if kind == "eval_scored":  # by the base
        return "scored again"
    if kind.endswith("_answers"):  # of the base: only `predict`, `evaluate` and baselines have them
        return "scored again"
    if kind in ("draws", "eval", "bound", "bound_scored", "recalled", "scored"):
        weights = iteration - (kind not in ("eval", "bound", "bound_scored"))
        if kind == "draws" and _draws_from_base(root):
            weights = 0
        if not weights or _is_there(root, weights):
            does = "drawn again" if kind in ("draws", "eval", "bound") else "scored again"
            return does + _after(root, weights, bad)
        return ""  # keep_last has removed the weights that drew or scored it
    if kind in ("examples.parquet", "memory"):
        return "written again from the draws"
    if kind == MASTER:
        return "not needed: the next M-step starts from the rounded weights of the model"
    if kind == "model":
        if _has_master(root, iteration, bad):
            return "rounded again from its float32 weights"
        start = iteration - 1
        if start and not _is_there(root, start) and _starts_from_previous(root, iteration):
            return ""
        return "trained again from the examples" + _after(root, start, bad)
    return "computed again" if kind in ("metrics.json", "rationales.json") else ""


def _after(root: Path, weights: int, bad: set[str]) -> str:
    """What comes first: weights that are to be trained again themselves."""
    own = f"iteration-{weights:03}/model/"
    return f", after the model of iteration {weights}" if any(p.startswith(own) for p in bad) else ""


def _has_master(root: Path, iteration: int, bad: set[str]) -> bool:
    """Return whether whole float32 weights lie beside a model."""
    own = f"iteration-{iteration:03}/{MASTER}/"
    return (root / own / "m_step.json").exists() and not any(p.startswith(own) for p in bad)


def _is_there(root: Path, iteration: int) -> bool:
    return (Run(root).iteration(iteration) / "model").exists()


def _draws_from_base(root: Path) -> bool:
    data = stored_config(root).get("scheme_data")
    return isinstance(data, dict) and data.get("proposal") == "base"


def _starts_from_previous(root: Path, iteration: int) -> bool:
    return stored_schedule(stored_config(root)).origin(iteration) == "previous"


def _state(root: Path) -> str:
    """Where a run is, as its files tell."""
    run, wanted = Run(root), stored_config(root).get("iterations")
    last = wanted if isinstance(wanted, int) else 0
    folders = sorted(root.glob("iteration-*"))
    done = [folder for folder in folders if (folder / "metrics.json").exists()]
    numbers = {int(folder.name.rpartition("-")[2]) for folder in done}
    if wanted is None and done:
        return "done"
    if numbers and last in numbers and numbers >= set(range(last + 1)):
        return f"done: {last} iterations"
    number = next(number for number in range(last + 2) if number not in numbers)
    parts = [*_open_parts(run.iteration(number))]
    return f"goes on with iteration {number}" + (f": {', '.join(parts)}" if parts else "")


def _open_parts(folder: Path) -> Iterator[str]:
    """What is stored of an iteration that is not done."""
    for kind, name in (
        ("recalled", "of remembered draws' log-probabilities"),
        ("draws", "of the E-step"),
        ("scored", "of log-probabilities"),
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
    """Set aside what is damaged and can be made again; gives where it is now.

    Goes to RUN/damaged/, where nothing is overwritten. An iteration that was done is not, until the
    run's command has made it whole. Raises RunError where the run is in use.
    """
    root, moved = found.root, []
    with locked(root):
        targets = {root / _unit(fault.path) for fault in found.faults if fault.remedy}
        for target in sorted(targets):
            iteration = target.relative_to(root).parts[0]
            # nats are of the draws beside them, and rounding may give other draws
            scored = target.parent.with_name("scored") / target.name
            beside = [
                target.parent.with_name(f"{target.parent.name}_{kind}") / target.name
                for kind in ("answers", "scored")
            ]
            of_draws = [scored] if target.parent.name == "draws" else beside
            computed = [root / iteration / name for name in ("metrics.json", "rationales.json")]
            for path in (target, *of_draws, *computed):
                if iteration.startswith("iteration-") or path == target:
                    manifest.record_removed(root, path)
                    if path.exists():
                        moved.append(_set_aside(root, path))
    return moved


def _unit(path: str) -> str:
    """Return what is made at a time: a folder of weights as a whole, else the file."""
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
        raise RunError(f"{path} can't be set aside: {error.strerror}.") from error
    return place


def lines(found: RunCondition) -> Iterator[tuple[bool, str, str]]:
    """Whether it is well, what, and how it is: for the terminal."""
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
            f"{path.relative_to(found.root)}: cut off; replaced when it is made again",
        )
    if not found.faults:
        yield True, "damage", "none"


def as_json(found: RunCondition) -> str:
    """All of it, as a line."""
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
