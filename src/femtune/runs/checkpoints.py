"""The models of a run: which are kept, what `best` and `last` point to, and whether there is room.

A model is named best by its accuracy on the development part, the first of equals, so that the held-out
part measures a model that it did not choose. The newest is always kept, as the run resumes from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from femtune._util.atomic_files import remove
from femtune._util.parsing import Unreadable, read_json
from femtune.errors import RunError
from femtune.metric_types import IterationMetrics
from femtune.runs.manifest import record_removed
from femtune.runs.run import Run

MASTER = "master"  # beside an iteration's model: its float32 weights, where the model has 16 bits


def best_of(history: Sequence[IterationMetrics]) -> int:
    """Return the iteration with the best model by the development part; without one, the last.

    Of equally accurate ones it is the first. The base, iteration 0, is left out.

    >>> best_of([{"iteration": 1, "development": {"accuracy": 0.5}}, {"iteration": 2}])
    1
    """
    measured = [each for each in history if each["iteration"] and "development" in each]
    if not measured:
        return int(history[-1]["iteration"])
    return int(max(measured, key=lambda each: each["development"]["accuracy"])["iteration"])


def is_out_of_patience(history: Sequence[IterationMetrics], patience: int) -> bool:
    """Return True if so many iterations went by without a better model; 0 is endless patience.

    It is after a measurement alone: with eval_every 5 the next one may be better.
    """
    if not patience or "development" not in history[-1]:
        return False
    return int(history[-1]["iteration"]) - best_of(history) >= patience


def describe_best(history: Sequence[IterationMetrics]) -> str:
    """Say which iteration `best` is and why.

    >>> describe_best([{"iteration": 1, "development": {"accuracy": 0.5, "num_problems": 40}}])
    'iteration 1, accuracy 0.500 on 40 development problems'
    """
    best = best_of(history)
    found = next((each.get("development") for each in history if each["iteration"] == best), None)
    if found is None:
        return f"iteration {best}, the last: there is no development part to choose by"
    problems = f"{found['num_problems']} development problems"
    return f"iteration {best}, accuracy {found['accuracy']:.3f} on {problems}"


def best_model(root: Path) -> tuple[Path, str] | None:
    """Return the model that a run's folder stands for, `best`, and why; None if it is no such run."""
    link = root / "best"
    if not (root / "config.yaml").is_file() or not link.is_symlink() or not link.is_dir():
        return None
    paths = sorted(root.glob("iteration-[0-9]*/metrics.json"))
    try:
        return link, describe_best([read_json(path) for path in paths])
    except Unreadable as error:
        raise RunError(f"{root}: a metrics.json {error}. See `femtune verify {root}`.") from error


def keep_models(run: Run, history: Sequence[IterationMetrics], keep_last: int) -> None:
    """Link the best and the last model, and remove those that are not kept: see `thin_out`."""
    link_models(run, history)
    thin_out(run, history, keep_last)


def link_models(run: Run, history: Sequence[IterationMetrics]) -> None:
    """Links `last` and `best` to the models of their iterations."""
    for name, iteration in (("last", history[-1]["iteration"]), ("best", best_of(history))):
        link, model = run.root / name, run.iteration(iteration).relative_to(run.root) / "model"
        if link.is_symlink() and link.readlink() == model:
            continue
        if link.is_dir() and not link.is_symlink():
            raise RunError(
                f"{link} is a folder and must be a link: links were followed when the run was copied. "
                f"Remove it: its model is in {model.parent} too. Then the same command resumes."
            )
        new = run.root / f".{name}"
        try:
            new.unlink(missing_ok=True)
            new.symlink_to(model)
            os.replace(new, link)
        except OSError as error:
            raise RunError(f"{link} can't be made: {error.strerror}.") from error


def check_models(run: Run, history: Sequence[IterationMetrics]) -> None:
    """Check that `best` and `last` of a run that was done before are what was stored.

    Raises RunError that names what is damaged or missing.
    """
    for name, iteration in (("last", history[-1]["iteration"]), ("best", best_of(history))):
        model = run.iteration(iteration) / "model"
        if not model.is_dir():
            raise RunError(
                f"{model}, the run's {name} model, is missing. Put it back, or start again in another "
                "--output-dir."
            )
        run.verify(model)


def thin_out(run: Run, history: Sequence[IterationMetrics], keep_last: int) -> None:
    """Remove models but the last `keep_last` ones and the best; 0 keeps all.

    Their iterations keep draws, examples and metrics, from which a model can be made again. Which one is
    best is known as far as the run has gone: one that was removed does not become best later.
    """
    if not keep_last:
        return
    best, last = best_of(history), int(history[-1]["iteration"])
    for iteration in range(1, last - keep_last + 1):
        model = run.iteration(iteration) / "model"
        if iteration != best and _remove(run, model):
            run.log("model removed", iteration=iteration)


def _remove(run: Run, folder: Path) -> bool:
    """Remove a folder of a run on purpose: whole or not there, also when killed in between."""
    gone = folder.with_name(f".{folder.name}.part")
    try:
        remove(gone)  # a kill left it half removed
        if not folder.exists():
            return False
        record_removed(run.root, folder)
        os.replace(folder, gone)
        remove(gone)
        return True
    except OSError as error:
        raise RunError(f"{folder} can't be removed: {error.strerror or error}.") from error


def drop_masters(run: Run, newest: int) -> None:
    """Remove float32 weights of iterations before `newest`: the next M-step starts from its own."""
    for iteration in range(1, newest):
        _remove(run, run.iteration(iteration) / MASTER)


def next_start(model: Path) -> Path:
    """Return the weights that an M-step continues from: a model's float32 ones, if they are kept."""
    master = model.with_name(MASTER)
    return master if model.name == "model" and master.exists() else model
