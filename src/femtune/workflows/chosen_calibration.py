"""Choose the calibration that `predict` and `evaluate` apply: a named one, or that of the model.

`femtune calibrate` stores its map as calibration.json beside the weights, unless --output names another
place. There it goes wherever the model goes, and applies to draws like those that it was fitted to.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from femtune.config import NO_CALIBRATION, Evaluate
from femtune.data.tasks.frames import scale_of
from femtune.engines.model_files import find_model
from femtune.errors import ConfigError, RunError
from femtune.evaluation.calibration import load_calibration
from femtune.evaluation.calibration_map import Calibration, check_scale
from femtune.model_info import ModelInfo, is_trained, model_folder, read_info
from femtune.types import Aggregate, Problem

log = logging.getLogger("femtune")

FILE = "calibration.json"  # in a model's folder

E = TypeVar("E", bound=Evaluate)


def new_place(model: str) -> Path:
    """Return where a map for a model is to be stored: in its folder.

    Raises ConfigError if that is no folder of a model that femtune trained, RunError if it has a map.
    """
    found = find_model(model)
    if not isinstance(found, Path) or not is_trained(found):
        raise ConfigError(
            f"{model} is no folder of a model that femtune trained, in which the calibration could be "
            "stored. Name a file: --output map.json."
        )
    if (found / FILE).exists():
        raise RunError(f"{found / FILE} exists already: remove it, or name another file with --output.")
    return found / FILE


def with_own(settings: E, model: str) -> E:
    """Return settings with the map in the model's folder, if none is named and it fits the draws."""
    if settings.calibration == NO_CALIBRATION:
        return replace(settings, calibration=None)
    folder = model_folder(model, settings)
    if settings.calibration is not None or folder is None or not (folder / FILE).is_file():
        return settings
    path = folder / FILE
    found = load_calibration(path)
    if reason := _unfit(found, settings, read_info(path.parent)):
        log.info("The model's calibration is not used: %s.", reason)
        return settings
    log.info("The model's own calibration is applied (--calibration %s turns it off).", NO_CALIBRATION)
    return replace(settings, calibration=str(path))


def _unfit(found: Calibration, settings: Evaluate, info: ModelInfo | None) -> str:
    """Return why a map does not suit the settings, "" if it does."""
    if settings.aggregate not in ("auto", found.of):
        return f"it is of {found.of}, and aggregate is {settings.aggregate}"
    asked = (settings.draws, settings.temperature)
    if asked != (found.draws, found.drawn_at):
        fitted = f"{found.draws} draws at temperature {found.drawn_at:g}"
        return f"it was fitted to {fitted}, and these are {asked[0]} at {asked[1]:g}"
    for name in ("task", "scale", "raters", "attributes"):
        own, now = getattr(info, name, None), getattr(settings, name)
        if own is not None and own != now:
            return f"it is of the {name} that the model was trained with"
    return ""


def read_calibration(settings: Evaluate) -> Calibration | None:
    """Read the map that settings name. Raises DataError, and ConfigError if it is of another kind."""
    if settings.calibration is None:
        return None
    found = load_calibration(Path(settings.calibration))
    if settings.aggregate not in ("auto", found.of):
        raise ConfigError(
            f"calibration {settings.calibration} is of {found.of}, and aggregate is "
            f"{settings.aggregate}. Fit it again with --aggregate {settings.aggregate}."
        )
    if found.of == "votes" and settings.draws == 1:
        raise ConfigError("calibration is of shares of votes: set draws 16 and temperature 1, say.")
    return found


def chosen_aggregate(settings: Evaluate, calibration: Calibration | None) -> Aggregate:
    """Return the source of answers: as set, else the one that the calibration was fitted to."""
    return settings.aggregate if calibration is None else calibration.of


def check_calibration(calibration: Calibration | None, problems: Sequence[Problem]) -> None:
    """Raise ConfigError if problems have another scale than the map, or none."""
    if calibration is None:
        return
    for scale in {scale_of(problem) for problem in problems}:
        if scale is None:
            raise ConfigError("a calibration is of answers on a scale, and these have none.")
        check_scale(calibration, scale.answers)
