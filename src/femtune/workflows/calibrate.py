"""Fit a map of votes or probabilities to calibrated ones, on a validation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from femtune.config import Ask, Calibrate, Evaluate
from femtune.data.answers import Scale
from femtune.data.tasks.frames import scale_of
from femtune.errors import ConfigError
from femtune.evaluation.answer_metrics import judged_by_probabilities
from femtune.evaluation.calibration import cross_fitted_effect, fit_calibration, save_calibration
from femtune.evaluation.evaluate import as_item
from femtune.evaluation.scored_answers import of_draws, read_scored
from femtune.loop import Progress
from femtune.model_info import as_trained, reading
from femtune.resolve import Data, read_inputs
from femtune.run_folder import check_new
from femtune.runs.draws import by_problem, read_draws
from femtune.types import Aggregate, Draw, Problem
from femtune.workflows.chosen_calibration import new_place
from femtune.workflows.evaluate import evaluate_as_set


@dataclass(frozen=True)
class CalibrateResult:
    """A map from shares of votes, or from probabilities, to calibrated ones."""

    calibration: Path
    """File of the map, which evaluate and predict use, or take as their setting `calibration`."""
    run: Path
    """Folder of the run with the draws that it was fitted to."""
    metrics: dict[str, Any] = field(repr=False)
    """`ece` and `brier` before and after, cross-fitted: by maps fitted without the item."""


def run_calibrate(
    data: Data,
    model: str,
    settings: Calibrate,
    output: Path | None,
    output_dir: str | Path | None,
    progress: Progress,
    *,
    reward: Callable[..., Any] | None = None,
) -> CalibrateResult:
    """Fit a map on a validation split and store it at `output`, or else in the model's folder.

    The draws are those of `evaluate` with the same settings, stored in the same way. Raises ConfigError
    if the answers have no scale, or several, DataError if there are too few.
    """
    if output is None:
        output = new_place(model)
    check_new(output, "--output")
    settings = as_trained(settings, model)
    kept = {each.name: getattr(settings, each.name) for each in fields(Ask)}
    asking = Evaluate(
        **kept,
        draws=settings.draws,
        temperature=settings.temperature,
        aggregate=settings.aggregate,
    )

    def read(asking: Evaluate) -> list[Problem]:
        return read_inputs(data, asking, reward, model=model, log_rows=False).problems

    problems = reading(asking, read, model)
    scale = _only_scale(problems)
    found = evaluate_as_set(data, model, asking, output_dir, progress, reward=reward)
    by_id = {problem.id: problem for problem in problems}
    drawn = [
        (by_id[name], draws) for chunk, _ in read_draws(found.draws) for name, draws in by_problem(chunk)
    ]
    items = [as_item(problem, draws) for problem, draws in drawn]
    scores = _probabilities(drawn, found.draws.with_name("eval_answers"), settings.aggregate)
    fitted = fit_calibration(items, scale.answers, settings.kind, scores)
    effect = cross_fitted_effect(items, scale.answers, settings.kind, scores)
    fitted = replace(fitted, draws=settings.draws, drawn_at=settings.temperature)
    save_calibration(fitted, output)
    metrics = {"num_problems": len(items), "kind": settings.kind, "draws": settings.draws}
    return CalibrateResult(output, found.run, metrics | {"of": fitted.of} | effect)


def _only_scale(problems: list[Problem]) -> Scale:
    """Return the scale that all problems share. Raises ConfigError."""
    scales = {scale_of(problem) for problem in problems}
    scale = scales.pop()
    if scale is None or scales:
        several = "these have none" if scale is None else f"these are on {len(scales) + 1}"
        raise ConfigError(f"A calibration needs answers on one scale, and {several}.")
    return scale


def _probabilities(
    drawn: list[tuple[Problem, list[Draw]]], folder: Path, aggregate: Aggregate
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return the probability of each answer [items, scale]; None if only votes are used."""
    if aggregate == "votes" or not (scored := read_scored(folder)):
        return None
    rows = [judged_by_probabilities(each, of_draws(scored, draws)) for each, draws in drawn]
    return np.array([[*row.shares.values()] for row in rows])
