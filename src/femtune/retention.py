"""The models of a run: which are kept, what `best` and `last` point to, and whether there is room.

A model is named best by its held-out accuracy, the first of equals. The newest is always kept, as the
run goes on from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from femtune.errors import ModelError, RunError
from femtune.files import remove
from femtune.headers import num_parameters
from femtune.manifest import record_removed
from femtune.run import Run
from femtune.training import Training

_BYTES = 4  # of a trained number: weights and adapters are trained and stored in float32


def best_of(history: Sequence[Mapping[str, Any]]) -> int:
    """The iteration with the best model; the last one where none was measured.

    >>> best_of([{"iteration": 0}, {"iteration": 1, "evaluation": {"accuracy": 0.5}}, {"iteration": 2}])
    1
    """
    trained = [each for each in history if each["iteration"] and "evaluation" in each]
    if not trained:
        return int(history[-1]["iteration"])
    return int(max(trained, key=lambda each: each["evaluation"]["accuracy"])["iteration"])


def link_models(run: Run, history: Sequence[Mapping[str, Any]]) -> None:
    """Links `last` and `best` to the models of their iterations."""
    for name, iteration in (("last", history[-1]["iteration"]), ("best", best_of(history))):
        link, model = run.root / name, run.iteration(iteration).relative_to(run.root) / "model"
        if link.is_symlink() and link.readlink() == model:
            continue
        if link.is_dir() and not link.is_symlink():
            raise RunError(
                f"{link} is a folder where a link is to be: links were followed as the run was copied. "
                f"Remove it: its model is in {model.parent} too, and the same command goes on."
            )
        new = run.root / f".{name}"
        try:
            new.unlink(missing_ok=True)
            new.symlink_to(model)
            os.replace(new, link)
        except OSError as error:
            raise RunError(f"{link} can't be made: {error.strerror}.") from error


def thin_out(run: Run, history: Sequence[Mapping[str, Any]], keep_last: int) -> None:
    """Remove models but the last `keep_last` ones and the best; 0 keeps all.

    Their iterations keep draws, examples and metrics, from which a model can be made again. Which one is
    best is known as far as the run has gone: one that was removed does not become best later.
    """
    if not keep_last:
        return
    best, last = best_of(history), int(history[-1]["iteration"])
    for iteration in range(1, last - keep_last + 1):
        model = run.iteration(iteration) / "model"
        gone = model.with_name(".model.part")  # whole or not there, also when killed in between
        if iteration == best or not (model.exists() or gone.exists()):
            continue
        try:
            remove(gone)  # a kill left it half removed
            if model.exists():
                record_removed(run.root, model)
                os.replace(model, gone)
                remove(gone)
                run.log("model removed", iteration=iteration)
        except OSError as error:
            raise RunError(f"{model} can't be removed: {error.strerror or error}.") from error


def model_bytes(start: Path, training: Training) -> int:
    """Bytes that the model of an M-step will take, at least: 0 where the start does not tell."""
    if training.use_peft and not (start / "adapter_config.json").exists():
        return 0  # a new adapter, far smaller than what it is for
    try:
        return _BYTES * num_parameters(start)
    except ModelError:
        return 0  # whoever reads the weights will say so


def check_room(out: Path, start: Path, training: Training) -> None:
    """Refuse an M-step whose model the disk has no room for, before it is begun. Raises RunError."""
    needed = model_bytes(start, training)
    free = free_bytes(out)
    if needed > free:
        raise RunError(
            f"{out} would take {sized(needed)}, and {sized(free)} are free there. Make room, or set "
            "--keep-last 1 so that older models are removed; the same command goes on."
        )


def free_bytes(path: Path) -> int:
    """Free bytes where a path is, or will be."""
    return shutil.disk_usage(
        next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    ).free


def sized(number: float) -> str:
    """Bytes for people.

    >>> sized(4_210), sized(4_210_000), sized(2.5e9)
    ('4 kB', '4 MB', '2.5 GB')
    """
    for unit, size, least in (("GB", 1e9, 1e8), ("MB", 1e6, 1e6)):
        if number >= least:
            return f"{number / size:.{int(unit == 'GB')}f} {unit}"
    return f"{number / 1e3:.0f} kB"
