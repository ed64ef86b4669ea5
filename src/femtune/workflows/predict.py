"""Answers to new items from several rationales each, with a confidence: see `aggregate`.

    {"prompt": "Why?", "response": "So.", "id": "r7", "answer": "4", "confidence": 0.71,
     "abstained": false, "no_answer": null, "num_answered": 16, "votes": {"4": 12, "3": 4},
     "aggregate": "probabilities",
     "probabilities": {"1": 0.0, "2": 0.01, "3": 0.26, "4": 0.71, "5": 0.02},
     "distribution": {"1": 0.0, "2": 0.01, "3": 0.26, "4": 0.71, "5": 0.02},
     "expected": 3.74, "consistent": null, "rationale": "The response names ..."}

A pair is asked in both orders and is one item, with A and B as in the data. Items of a stream, "-", are
processed in chunks as they arrive. prediction_files.py puts input rows beside predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

from femtune.config import CHANGEABLE, Ask, Predict
from femtune.data.files.lines import json_lines
from femtune.data.files.reading import rows_once
from femtune.data.files.streams import stdin_lines
from femtune.data.objects import rows_of
from femtune.data.tasks.hub import is_hub_id
from femtune.data.tasks.load import TaskData, read_places
from femtune.data.tasks.published import SCHEMAS
from femtune.data.tasks.schemas import hub_source
from femtune.errors import DataError
from femtune.estep.scheduler import Sampler
from femtune.evaluation.aggregate import Prediction, item_id, prediction
from femtune.evaluation.calibration_map import Calibration
from femtune.evaluation.evaluate import ask_into, evaluation_draws
from femtune.evaluation.scored_answers import (
    Scored,
    Scoring,
    engine_scores,
    read_scored,
    score_into,
    uses_probabilities,
)
from femtune.model_info import info_for, reading, with_defaults
from femtune.resolve import Data, TaskInputs, read_inputs, task_options
from femtune.rewards.builtin import exact
from femtune.run_folder import (
    fingerprint,
    relied_on_model,
    resolved,
    shown_data,
    store_problems,
    with_pinned_date,
)
from femtune.runs.draws import by_problem, read_draws
from femtune.runs.run import Run, check_run, open_run
from femtune.sampler import SamplerBuilder, make_sampler_builder
from femtune.types import Draw, Problem, Sampling
from femtune.workflows.chosen_calibration import (
    check_calibration,
    chosen_aggregate,
    read_calibration,
    with_own,
)
from femtune.workflows.prediction_files import (
    PredictionCounts,
    Row,
    beside,
    check_output,
    problem_row,
    save_predictions,
    warn_of_clashes,
)

log = logging.getLogger("femtune")

T = TypeVar("T")

Places = list[tuple[int, Any]]
Rows = Callable[[], Iterator[tuple[int, Any]]]

# femtune's names of columns with answers, which items to predict may lack
ANSWERS = frozenset({"answer"}.union(*(schema.label_columns for schema in SCHEMAS)))

# settings that say what is made of votes, not how they are drawn
_OF_VOTES = CHANGEABLE | {"abstain_below", "input_columns"}


@dataclass(frozen=True)
class PredictResult:
    """Predictions stored in a file."""

    output: Path
    """File with one row per item."""
    draws: Path | None
    """Folder of the run with the draws; None for a stream, whose draws are not stored."""
    counts: PredictionCounts
    """Numbers of items: answered, abstained on, unreadable; and their mean confidence."""


def predictions(
    data: Data, model: str, settings: Predict, counts: PredictionCounts | None = None
) -> Iterator[Prediction]:
    """Return answers to items in the order of the data; `api.predict` documents their fields.

    They are counted in `counts` as they come. Raises ConfigError, DataError or ModelError at once,
    except for errors in a later line of a stream or while the model is loaded.
    """
    chosen = as_trained(settings, model)
    calibration = read_calibration(chosen)
    counts = counts or PredictionCounts()
    return counts.count(_predictions(_read(data, model, chosen), model, chosen, calibration, counts))


def _predictions(
    parts: Iterable[Part],
    model: str,
    settings: Predict,
    calibration: Calibration | None,
    counts: PredictionCounts,
) -> Iterator[Prediction]:
    builder = sampler = None
    with ExitStack() as stack:
        for part in parts:
            asked = part.asked
            counts.rows_left_out += asked.report.num_skipped
            check_calibration(calibration, asked.problems)
            aggregate = chosen_aggregate(settings, calibration)
            scores = uses_probabilities(aggregate, asked.problems, asked.prompts)
            if builder is None or sampler is None:
                warn_of_clashes(part.rows.values())
                # nothing is graded here, and a reward of the user's own may not bear a missing answer
                builder = make_sampler_builder(model, replace(asked, reward=exact()), asked.problems)
                sampling = Sampling(settings.max_new_tokens, settings.temperature)
                sampler = replace(stack.enter_context(builder.sampler(sampling)), demos=builder.demos)
            else:
                builder.check_lengths(asked.problems)
            scores = scores and engine_scores(sampler, aggregate)
            drawn = _drawn(asked.problems, sampler, settings, scores)
            yield from part.beside(made(drawn, calibration, settings.abstain_below))


def _drawn(
    problems: Sequence[Problem], sampler: Sampler, settings: Predict, scores: bool
) -> Iterator[tuple[Problem, Sequence[Draw], Scored]]:
    """Draw, and score the answers after each draw, by chunk."""
    by_id = {problem.id: problem for problem in problems}
    scoring = Scoring(problems, sampler) if scores else None
    sampler, add = (scoring.sampler, scoring.add) if scoring else (sampler, lambda draws: None)
    chunks = evaluation_draws(problems, sampler, draws=settings.draws, iteration=0, on_draws=add)
    for chunk in chunks:
        scored = scoring.finish(chunk.draws) if scoring else {}
        for name, draws in by_problem(chunk.draws):
            yield by_id[name], draws, scored


def made(
    drawn: Iterable[tuple[Problem, Sequence[Draw], Scored]],
    calibration: Calibration | None,
    abstain_below: float = 0.0,
) -> Iterator[Prediction]:
    """Yield predictions from problems and their draws, both orders of a pair together."""
    for _, group in groupby(drawn, key=lambda one: item_id(one[0])):
        orders = list(group)
        scored = {key: logprobs for _, _, each in orders for key, logprobs in each.items()}
        asked = [(problem, draws) for problem, draws, _ in orders]
        yield prediction(asked, calibration, abstain_below, scored)


def predict_into(data: Data, model: str, settings: Predict, output: Path) -> PredictResult:
    """Store predictions as a file, .jsonl, .parquet or .csv.

    The draws are stored first, in a run directory beside the file, so the same call resumes a stopped
    one. Draws of a stream are not stored, as a stream cannot be repeated. Raises what `predictions`
    raises, and RunError if the file exists already, or the directory holds other predictions.
    """
    check_output(output)
    settings = as_trained(settings, model)
    counts = PredictionCounts()
    if data == "-":
        save_predictions(predictions(data, model, settings, counts), output, settings.chunk_size)
        return PredictResult(output, None, counts)
    calibration = read_calibration(settings)
    [part] = _read(data, model, settings)
    asked = part.asked
    warn_of_clashes(part.rows.values())
    counts.rows_left_out = asked.report.num_skipped
    check_calibration(calibration, asked.problems)
    place = output.with_name(f"{output.name}.draws")
    config = _stored_config(data, model, asked, place)
    asked = with_pinned_date(asked, config)
    check_run(place, config, _OF_VOTES)
    # nothing is graded here, and a reward of the user's own may not bear a missing answer
    builder = make_sampler_builder(model, replace(asked, reward=exact()), asked.problems)
    with open_run(place, config, _OF_VOTES) as run:
        store_problems(run, [], asked.problems, {"eval": asked.report})
        drawn = _stored_draws(run, builder, asked.problems, settings, calibration)
        rows = part.beside(made(drawn, calibration, settings.abstain_below))
        save_predictions(counts.count(rows), output, settings.chunk_size)
    return PredictResult(output, place, counts)


def _stored_config(data: Data, model: str, asked: TaskInputs[Predict], place: Path) -> dict[str, Any]:
    """Return the configuration of the run that holds the draws."""
    marks = fingerprint(asked.problems)
    config = resolved(asked.settings, data=shown_data(data), model=model, problems=marks)
    return config | {"relies_on": relied_on_model(model, asked.settings, config, place)}


def _stored_draws(
    run: Run,
    builder: SamplerBuilder,
    problems: Sequence[Problem],
    settings: Predict,
    calibration: Calibration | None,
) -> Iterator[tuple[Problem, Sequence[Draw], Scored]]:
    """Draw for all problems into a run, score the answers if possible, and yield both."""
    aggregate = chosen_aggregate(settings, calibration)
    scores = uses_probabilities(aggregate, problems, builder.prompts)
    sampling = Sampling(settings.max_new_tokens, settings.temperature)
    with builder.sampler(sampling, folder=run.root) as sampler:
        sampler = replace(sampler, demos=builder.demos)
        scores = scores and engine_scores(sampler, aggregate)
        scoring = Scoring(problems, sampler) if scores else None
        folder = ask_into(run, "eval", problems, sampler, draws=settings.draws, scoring=scoring)
        scored: Scored = {}
        if scores:  # what was drawn before without scores, too
            scored = read_scored(score_into(run, "eval", problems, sampler))
    yield from stored_items(folder, problems, scored)


def stored_items(
    folder: Path, problems: Sequence[Problem], scored: Scored
) -> Iterator[tuple[Problem, Sequence[Draw], Scored]]:
    """Yield problems with their stored draws and the scores of all, in the order of the draws."""
    by_id = {problem.id: problem for problem in problems}
    for chunk, _ in read_draws(folder):
        for name, draws in by_problem(chunk):
            yield by_id[name], draws, scored


# --- reading items


def as_trained(settings: Predict, model: str) -> Predict:
    """Return settings with unset ones filled in from the model's folder: femtune.json, calibration."""
    return with_own(with_defaults(settings, info_for(model, settings), graded=False), model)


@dataclass(frozen=True)
class Part:
    """Items to predict, and the input row of each by its id."""

    asked: TaskInputs[Any]
    rows: Mapping[str, Row]

    def beside(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yield predictions with the columns of their input rows, if these are wanted."""
        for one in predictions:
            yield beside(one, self.rows[one["id"]]) if self.rows else one


def _read(data: Data, model: str, settings: Predict) -> Iterable[Part]:
    """Read the inputs, in one part; for a stream, in parts as they arrive."""
    if data == "-":
        return _read_stream(model, settings)

    rows = file_once(data, settings)

    def read(settings: Predict) -> TaskInputs[Predict]:
        return read_inputs(data, settings, answers=False, model=model, rows=rows)

    asked = reading(settings, read, model, ANSWERS)
    return [Part(asked, input_rows(data, asked, rows) if settings.input_columns else {})]


def file_once(data: Data, settings: Ask) -> Rows | None:
    """Return what yields a file's rows, for its items and again beside them; None for other data."""
    is_file = isinstance(data, (str, Path)) and not is_hub_id(str(data))
    return rows_once(Path(str(data)), settings.header) if is_file else None


def input_rows(data: Data, asked: TaskInputs[Any], rows: Rows | None) -> dict[str, Row]:
    """Return the input row of each item by its id; of an item of several raters, the first one's.

    `rows` yields those of a file. Of objects, and where it is not known which row an item is of, the row
    has what the problem knows.
    """
    places: dict[int, Any] = {}
    if rows is not None:
        places = dict(rows())
    elif isinstance(data, (str, Path)):
        config, split = asked.settings.data_config, asked.settings.split
        places = dict(hub_source(str(data), asked.settings.task, config=config, split=split))
    elif not isinstance(data, TaskData):
        places = dict(enumerate(rows_of(data), 1))
    return _by_item(asked, places)


def _by_item(asked: TaskInputs[Any], places: Mapping[int, Any]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for problem in asked.problems:
        row = places.get(asked.places.get(problem.id, 0))
        known = row if isinstance(row, Mapping) else problem_row(problem)
        rows.setdefault(item_id(problem), known)
    return rows


def _read_stream(model: str, settings: Predict) -> Iterator[Part]:
    lines = _named(json_lines(stdin_lines()), "id" in task_options(settings).columns)
    try:
        while rows := list(islice(lines, settings.chunk_size)):

            def read(settings: Predict, rows: Places = rows) -> TaskInputs[Predict]:
                options = task_options(settings)
                found = read_places(rows, "stdin", settings.task, options, answers=False)
                return read_inputs(found, settings, answers=False, model=model)

            asked = reading(settings, read, model, ANSWERS)
            # ratings in the first part may show the scale, which then holds for all parts
            settings = replace(settings, scale=asked.settings.scale)
            yield Part(asked, _by_item(asked, dict(rows)) if settings.input_columns else {})
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: not UTF-8 ({error.reason}).") from error


def _named(lines: Iterator[tuple[int, Any]], renamed: bool) -> Iterator[tuple[int, Any]]:
    """Yield rows with an id, stdin-<line> if they have none, unique over all parts of a stream."""
    for place, row in lines:
        if isinstance(row, dict) and not renamed and row.get("id") in (None, ""):
            row = {**row, "id": f"stdin-{place}"}
        yield place, row
