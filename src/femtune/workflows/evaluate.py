"""Measure how well a model answers problems that it was not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from femtune.config import CHANGEABLE, Evaluate, Train
from femtune.errors import ConfigError
from femtune.estep.scheduler import Sampler
from femtune.evaluation.aggregate import item_id
from femtune.evaluation.answer_metrics import side_by_side
from femtune.evaluation.calibration_map import Calibration
from femtune.evaluation.evaluate import evaluation_metrics
from femtune.evaluation.rationales import read_all
from femtune.evaluation.scored_answers import engine_scores, read_scored, score_into, uses_probabilities
from femtune.loop import LoopConfig, Progress, Steps
from femtune.metric_types import BothWays, EvaluateMetrics
from femtune.model_info import as_trained, reading
from femtune.resolve import Data, TaskInputs, make_loop_config, read_inputs
from femtune.run_folder import run_place, store_problems, with_pinned_date
from femtune.runs.draws import read_draws
from femtune.runs.run import Run, open_run
from femtune.sampler import make_sampler_builder, trained_from
from femtune.types import Aggregate, Demos, Problem, Sampling
from femtune.workflows.chosen_calibration import check_calibration, read_calibration, with_own
from femtune.workflows.predict import (
    Part,
    Rows,
    file_once,
    input_rows,
    made,
    stored_items,
)
from femtune.workflows.prediction_files import (
    CORRECT,
    PredictionCounts,
    check_output,
    save_predictions,
    warn_of_clashes,
)
from femtune.workflows.worked_examples import store_demos

# metrics shown of an untrained model with worked examples, beside those without them
_SHOWN = (
    *("accuracy", "accuracy_ci", "accuracy_unforced", "accuracy_unforced_ci", "answered"),
    *("forced_share", "truncated_share", "spearman", "spearman_ci", "mae", "mae_ci"),
    *("within_one_percent", "within_one_percent_ci"),
    *("median_relative_error", "median_relative_error_ci"),
)


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """The accuracy and other measures of a model on held-out problems.

    For a closed set of answers, `metrics` has "by_votes" and "by_probabilities" with the measures of
    both. With a calibration, "calibrated" has the measures of the calibrated votes or probabilities.
    """

    run: Path
    """Folder of the run."""
    draws: Path
    """Folder with all draws."""
    accuracy: float
    """Share of problems answered correctly."""
    accuracy_ci: tuple[float, float] | None
    """95% interval of the accuracy by bootstrap over problems; None if it is undefined."""
    metrics: EvaluateMetrics = field(repr=False)
    """All measures by name; an interval has the suffix `_ci`."""
    counts: PredictionCounts | None = None
    """Numbers of the items in the file of predictions; None without such a file."""


def run_evaluate(
    data: Data,
    model: str,
    settings: Evaluate,
    output_dir: str | Path | None,
    progress: Progress,
    *,
    reward: Callable[..., Any] | None = None,
    reader_problems: int = 0,
    output: Path | None = None,
) -> EvaluateResult:
    """Measure a model on problems; unset settings come from its femtune.json.

    With a calibration of votes, `ece`, `brier` and measures of the expected rating are of calibrated
    votes; `ece_raw` and `brier_raw` are of the votes themselves. The draws are the same either way.

    With `reader_problems` the model's base reads the rationales of so many problems: see
    `rationales.rationale_metrics`. Raises ModelError if that base is not available. `output` is a file
    for the predictions beside their input rows, as `predict` writes them, with the correct answer.
    """
    if output is not None:
        check_output(output)
    if reader_problems < 0:
        raise ConfigError(f"reader_problems must be at least 0, got {reader_problems}.")
    settings = with_own(as_trained(settings, model), model)
    return evaluate_as_set(
        data,
        model,
        settings,
        output_dir,
        progress,
        reward=reward,
        reader_problems=reader_problems,
        output=output,
    )


def evaluate_as_set(
    data: Data,
    model: str,
    settings: Evaluate,
    output_dir: str | Path | None,
    progress: Progress,
    *,
    reward: Callable[..., Any] | None = None,
    reader_problems: int = 0,
    output: Path | None = None,
) -> EvaluateResult:
    """Measure a model by the given settings only, without its femtune.json."""
    reader = _reader(model, settings) if reader_problems else None
    config = _loop_config(settings)
    calibration = read_calibration(settings)
    rows = None if output is None else file_once(data, settings)
    read = partial(read_inputs, data, reward=reward, model=model, rows=rows)
    asked: TaskInputs[Evaluate] = reading(settings, read, model)
    how = _combine(settings, calibration, asked)
    place, stored = run_place(
        output_dir,
        "evaluate",
        data,
        model,
        asked.settings,
        asked.problems,
        reward=asked.reward,
        demos=asked.demos,
    )
    if settings.calibration is not None:
        stored["calibration"] = _named(settings.calibration)
    asked = with_pinned_date(asked, stored)
    builder = make_sampler_builder(model, asked, asked.problems)
    with open_run(place, stored, CHANGEABLE) as run:
        store_problems(run, [], asked.problems, {"eval": asked.report})
        store_demos(run, builder)
        with builder.sampler(Sampling(settings.max_new_tokens), folder=run.root) as sampler:
            steps = Steps(
                run=run,
                base=builder.base,
                problems=[],
                eval_problems=asked.problems,
                config=config,
                sampler=sampler,
                tokenizer=builder.tokenizer,
                progress=progress,
            )
            metrics = _measure(steps, builder.demos, how)
            rationales = read_all(steps, reader_problems, reader)
        run.write_json(run.iteration(0) / "metrics.json", {"iteration": 0, "evaluation": metrics})
    counts = None if output is None else _save(run.iteration(0), data, asked, rows, calibration, output)
    interval = metrics.get("accuracy_ci")
    return EvaluateResult(
        run=run.root,
        draws=run.iteration(0) / "eval",
        accuracy=metrics["accuracy"],
        accuracy_ci=None if interval is None else (interval[0], interval[1]),
        metrics=metrics | ({"rationales": rationales[0]} if rationales else {}),
        counts=counts,
    )


def _named(calibration: str) -> str:
    """Return the name of a calibration's file with the hash of its content."""
    digest = hashlib.blake2b(Path(calibration).read_bytes(), digest_size=12).hexdigest()
    return f"{calibration} (blake2b {digest})"


def _reader(model: str, settings: Evaluate) -> Path:
    """Return the folder of the base that reads a model's rationales."""
    if settings.engine == "chat":
        raise ConfigError(
            "reader_problems needs log-probabilities of the model's base, and --engine chat has none: "
            "leave it out."
        )
    return trained_from(model)


def _save(
    folder: Path,
    data: Data,
    asked: TaskInputs[Evaluate],
    rows: Rows | None,
    calibration: Calibration | None,
    output: Path,
) -> PredictionCounts:
    """Write the predictions of an iteration's stored draws, with the correct answer of each."""
    part = Part(asked, input_rows(data, asked, rows))
    counts = PredictionCounts(rows_left_out=asked.report.num_skipped)
    by_probabilities = (folder / "eval_answers").is_dir() and asked.settings.aggregate != "votes"
    scored = read_scored(folder / "eval_answers") if by_probabilities else {}
    correct = {item_id(problem): problem.answer for problem in reversed(asked.problems)}
    items = made(stored_items(folder / "eval", asked.problems, scored), calibration)
    warn_of_clashes(part.rows.values())
    graded = ({**one, CORRECT: correct[one["id"]]} for one in part.beside(items))
    save_predictions(counts.count(graded), output)
    return counts


def _loop_config(settings: Evaluate) -> LoopConfig:
    """Return the settings of an evaluation as those of a run without training."""
    return make_loop_config(
        Train(
            eval_draws=settings.draws,
            eval_temperature=settings.temperature,
            force_answers=settings.force_answers,
        )
    )


@dataclass(frozen=True)
class _Combination:
    """The way to combine several draws of a problem into one answer."""

    calibration: Calibration | None
    aggregate: Aggregate
    scores: bool  # True if answers are scored, if the engine can


def _combine(
    settings: Evaluate, calibration: Calibration | None, asked: TaskInputs[Evaluate]
) -> _Combination:
    """Choose how draws are combined. Raises ConfigError if the settings do not suit the problems."""
    check_calibration(calibration, asked.problems)
    of_probabilities = calibration is not None and calibration.of == "probabilities"
    aggregate: Aggregate = "probabilities" if of_probabilities else settings.aggregate
    scores = uses_probabilities(aggregate, asked.problems, asked.prompts)
    return _Combination(calibration, aggregate, scores)


def _measure(steps: Steps, demos: Demos, how: _Combination) -> EvaluateMetrics:
    """Draw and measure, and repeat with worked examples if there are any."""
    run, problems, sampler = steps.run, steps.eval_problems, steps.sampler
    scores = how.scores and engine_scores(sampler, how.aggregate)
    metrics: dict[str, Any] = {**steps.evaluate(0, scores=scores)}
    shown: dict[str, Any] = {**steps.evaluate(0, demos, scores=scores)} if demos else {}
    both: dict[str, Any] = {}
    if scores:
        both |= _both_ways(run, "eval", problems, sampler, how.calibration)
        if demos:
            own = replace(sampler, demos=demos)
            made = _both_ways(run, "eval_demos", problems, own, None)
            both |= {f"{name}_with_examples": each for name, each in made.items()}
    metrics |= {f"{name}_with_examples": shown[name] for name in _SHOWN if name in shown}
    if how.calibration is not None and how.calibration.of == "votes":
        metrics = _calibrated(metrics, problems, run.iteration(0) / "eval", how.calibration)
    return cast(EvaluateMetrics, metrics | both)


def _both_ways(
    run: Run,
    kind: str,
    problems: Sequence[Problem],
    sampler: Sampler,
    calibration: Calibration | None,
) -> BothWays:
    """Measure the stored draws of a kind by votes and by probabilities, which are computed first."""
    folder = score_into(run, kind, problems, sampler)
    by_id = {problem.id: problem for problem in problems}
    scored, stored = read_scored(folder), read_draws(run.iteration(0) / kind)
    return side_by_side(by_id, stored, scored, calibration)


def _calibrated(
    raw: dict[str, Any], problems: Sequence[Problem], draws: Path, calibration: Calibration
) -> dict[str, Any]:
    """Return the measures with a calibration of votes, and the raw ones that it changes."""
    by_id = {problem.id: problem for problem in problems}
    metrics = evaluation_metrics(by_id, read_draws(draws), calibration)
    kept = {"ece": "ece_raw", "ece_ci": "ece_raw_ci", "brier": "brier_raw", "brier_ci": "brier_raw_ci"}
    same = {"truncated_share": raw["truncated_share"]}
    return raw | metrics | same | {name: raw[own] for own, name in kept.items() if own in raw}
