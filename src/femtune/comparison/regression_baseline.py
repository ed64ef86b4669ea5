"""Baselines of regression: on a frozen judge's hidden states and scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from femtune._util.atomic_files import replacing
from femtune.comparison.baseline_draws import (
    Baseline,
    answered,
    base_metrics,
    best_device,
    draw_all,
    judged,
    store_scores,
)
from femtune.comparison.regression import Features, features, predictions, with_values
from femtune.config import Train
from femtune.data.tasks.frames import frame
from femtune.errors import DataError
from femtune.loop import Progress
from femtune.metric_types import EvaluationMetrics, IterationMetrics
from femtune.resolve import TaskInputs
from femtune.runs.run import Run
from femtune.sampler import SamplerBuilder
from femtune.types import Problem


def check_regression(problems: Sequence[Problem]) -> None:
    """Refuse problems that no regression can be fitted to. Raises DataError."""
    known = frame(problems[0])
    if known is None or not known.scale or known.form not in ("rating", "pair"):
        raise DataError("baseline regression needs ratings or pairs: --task judge or summarize.")
    answers = sorted({problem.answer for problem in problems})
    if len(answers) < 2:
        raise DataError(
            f"baseline regression: all {len(problems)} training answers are {answers[0]}, and it takes "
            "two different ones. Give more data, or leave it out of --baselines."
        )
    if len({*groups_of(problems)}) < 2:
        raise DataError(
            "baseline regression: all training problems are of one item, and cross-validation takes "
            "two. Give more data, or leave it out of --baselines."
        )


def groups_of(problems: Sequence[Problem]) -> list[str]:
    """Return each problem's group: problems of one item are never split between folds."""
    return [(known.item if (known := frame(p)) else "") or f"id {p.id}" for p in problems]


def run_regression(
    run: Run,
    asked: TaskInputs[Train],
    builder: SamplerBuilder,
    settings: Baseline,
    train: Sequence[Problem],
    test: Sequence[Problem],
    progress: Progress,
) -> IterationMetrics:
    known = frame(train[0])
    assert known is not None  # check_regression
    groups = {"draws": train, "eval": test}
    run.log("E-step", iteration=0)
    draw_all(run, builder, settings, groups, progress)
    begun = time.perf_counter()
    run.log("M-step", iteration=0)
    seen = _stored_features(run, builder, groups, known.scale)
    truth = np.array([known.scale.index(problem.answer) for problem in train])
    found = predictions(
        known.form == "pair", known.scale, seen["draws"], truth, groups_of(train), seen["eval"]
    )
    fit_s = time.perf_counter() - begun
    drawn = {kind: base_metrics(run, kind, problems) for kind, problems in groups.items()}
    made: dict[str, EvaluationMetrics] = {}
    rows = {name: answered(test, answers, asked) for name, (answers, _) in found.items()}
    store_scores(run, test, rows)
    for name, (_, values) in found.items():
        metrics = judged(test, rows[name])
        if values is not None:
            metrics = with_values(metrics, test, values, known.scale)
        made[name] = cast(EvaluationMetrics, {**metrics, **drawn["eval"]})
    best = "logistic+embedding" if known.form == "pair" else "ls+embedding"
    return {
        "e_step": drawn["draws"],
        "m_step": {"seconds": round(fit_s, 3)},
        "evaluation": made[best],
        "evaluations": made,
    }


def frozen_model(builder: SamplerBuilder) -> Any:
    """Read the builder's model, for its hidden states."""
    from femtune.engines.hf.model import read_model  # torch is slow to import

    settings = builder.settings
    return read_model(builder.base, settings.engine_dtype, best_device(settings.device), False)


def _stored_features(
    run: Run, builder: SamplerBuilder, groups: Mapping[str, Sequence[Problem]], scale: Sequence[str]
) -> dict[str, Features]:
    """Return features of training and held-out problems, read from features.npz or stored there."""
    path = run.iteration(0) / "features.npz"
    if not path.exists():
        model = frozen_model(builder)
        made: dict[str, Any] = {}
        for kind, problems in groups.items():
            folder = run.iteration(0) / kind
            seen = features(model, builder, problems, folder, scale)
            made |= {f"{kind}_counts": seen.counts, f"{kind}_embedding": seen.embedding}
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **made)
    with np.load(path, allow_pickle=False) as stored:
        return {kind: Features(stored[f"{kind}_counts"], stored[f"{kind}_embedding"]) for kind in groups}
