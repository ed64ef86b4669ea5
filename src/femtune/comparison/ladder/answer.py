"""Answers to new items like a rung: by `predict`, or by what the rung itself is made of.

`predict` answers like most rungs, and `use` has its command. The most frequent answer, the likeliest
answer right after the prompt, and the regression are no model of its own: they are computed here, from
the rung's run. Their rows are those of `predict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from femtune.comparison.baseline_draws import answered
from femtune.comparison.baselines import both_orders
from femtune.comparison.ladder import chosen_examples
from femtune.comparison.ladder.rungs import OWN_MODEL, REGRESSION_DRAWS, Ground
from femtune.comparison.ladder.store import Rung
from femtune.comparison.regression import Features, features, predictions
from femtune.comparison.regression_baseline import frozen_model, groups_of
from femtune.config import CHANGEABLE, Ask, Predict
from femtune.data.tasks.frames import frame
from femtune.estep.answer_probs import direct_logprobs
from femtune.evaluation.evaluate import ask_into
from femtune.evaluation.scored_answers import Scored, possible
from femtune.model_info import reading
from femtune.resolve import Data, TaskInputs, read_inputs
from femtune.rewards.builtin import exact
from femtune.run_folder import fingerprint, resolved, shown_data
from femtune.runs.run import open_run
from femtune.sampler import make_sampler_builder
from femtune.types import Draw, Problem, Sampling
from femtune.workflows.predict import ANSWERS, Part, file_once, input_rows, made, predict_into
from femtune.workflows.prediction_files import PredictionCounts, save_predictions, warn_of_clashes

Drawn = Iterator[tuple[Problem, Sequence[Draw], Scored]]


def answer_like(rung: Rung, ground: Ground, new: Data, output: Path) -> PredictionCounts:
    """Answer new items like a rung, into a file; return the counts of the items.

    Raises what `predict` raises for the items.
    """
    settings = predict_settings(rung.name, ground)
    if rung.name not in ("majority", "direct", "regression"):
        model = rung.detail["model"] if rung.name in OWN_MODEL else ground.model
        return predict_into(new, str(model), settings, output).counts

    rows = file_once(new, settings)

    def read(settings: Predict) -> TaskInputs[Predict]:
        return read_inputs(new, settings, answers=False, model=ground.model, rows=rows)

    asked = reading(settings, read, ground.model, ANSWERS)
    asked = replace(asked, reward=exact())  # nothing is graded here
    part = Part(asked, input_rows(new, asked, rows))
    warn_of_clashes(part.rows.values())
    if rung.name == "direct":
        drawn = _direct(ground, asked)
    elif rung.name == "majority":
        drawn = _given(asked, [rung.detail["answer"]] * len(asked.problems))
    else:
        place = output.with_name(f"{output.name}.draws")
        drawn = _given(asked, _regression(rung, ground, asked, new, place))
    counts = PredictionCounts(rows_left_out=asked.report.num_skipped)
    save_predictions(counts.count(part.beside(made(drawn, None))), output)
    return counts


def predict_settings(name: str, ground: Ground) -> Predict:
    """Return the settings of `predict` that answer like a rung: those of its command in `use`."""
    known: dict[str, Any] = {each.name: getattr(ground.settings, each.name) for each in fields(Ask)}
    if name not in OWN_MODEL:
        known["scale"] = ground.asked.settings.scale
    if name == chosen_examples.NAME:
        known["demos"] = "auto"  # its own
    if name == "base":
        known["demos"] = "none"
    if name.endswith(("votes", "probabilities")):
        how: Any = name.rpartition("-")[2]
        return Predict(**known, draws=ground.draws, temperature=1.0, aggregate=how)
    return Predict(**known, draws=1, temperature=0.0, aggregate="votes")


def _given(asked: TaskInputs[Any], answers: Sequence[str]) -> Drawn:
    """Yield each problem with its answer as a draw."""
    draws = answered(asked.problems, answers, asked)
    return ((problem, [draw], {}) for problem, draw in zip(asked.problems, draws, strict=True))


def _direct(ground: Ground, asked: TaskInputs[Any]) -> Drawn:
    """Yield each problem with the probabilities of its answers right after the prompt."""
    builder = make_sampler_builder(ground.model, asked, asked.problems)
    with builder.sampler(Sampling(ground.settings.max_new_tokens)) as sampler:
        found = direct_logprobs(asked.problems, replace(sampler, demos=ground.builder.demos))
    likeliest = [each.likeliest if each else "" for each in found]
    for (problem, draws, _), logprobs in zip(_given(asked, likeliest), found, strict=True):
        yield problem, draws, {(problem.id, 0): logprobs} if possible(logprobs) else {}


def _regression(rung: Rung, ground: Ground, asked: TaskInputs[Any], new: Data, place: Path) -> list[str]:
    """Return the regression's answers, after drawing for the new items into a run."""
    problems, model = asked.problems, ground.model
    builder = make_sampler_builder(model, asked, problems)
    config = resolved(asked.settings, data=shown_data(new), model=model, problems=fingerprint(problems))
    with open_run(place, config, CHANGEABLE) as run:
        with builder.sampler(Sampling(ground.settings.max_new_tokens, 1.0)) as sampler:
            folder = ask_into(run, "eval", problems, sampler, draws=REGRESSION_DRAWS)
        known = frame(ground.train[0])
        assert known is not None  # as the rung was measured
        seen = features(frozen_model(builder), builder, problems, folder, known.scale)
    train = both_orders(ground.train, ground.asked.problems)
    truth = np.array([known.scale.index(problem.answer) for problem in train])
    with np.load(ground.folder / "regression/iteration-000/features.npz", allow_pickle=False) as stored:
        learned = Features(stored["draws_counts"], stored["draws_embedding"])
    found = predictions(known.form == "pair", known.scale, learned, truth, groups_of(train), seen)
    return found[rung.detail["row"]][0]
