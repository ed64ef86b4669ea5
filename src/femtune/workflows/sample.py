"""Run one E-step: draw rationales that lead to the correct answers, as a data set for any trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from femtune.config import CHANGEABLE, Sample, Train
from femtune.data.tasks.load import trained_on
from femtune.loop import LoopConfig, Progress, Steps
from femtune.metric_types import EStepMetrics
from femtune.reporting.cards import write_data_card
from femtune.resolve import (
    Data,
    TaskInputs,
    check_varied,
    make_loop_config,
    named_scheme,
    read_inputs,
    sampling,
)
from femtune.run_folder import check_storable, run_place, store_problems, with_pinned_date
from femtune.runs.run import open_run
from femtune.sampler import make_sampler_builder
from femtune.types import Problem, Scheme
from femtune.workflows.worked_examples import store_demos, usable_demos


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """Draws of one E-step, and the examples from the kept ones."""

    run: Path
    """Folder of the run."""
    examples: Path
    """Parquet file with the columns prompt, completion and weight, among others."""
    draws: Path
    """Folder with all draws, kept or not."""
    metrics: EStepMetrics = field(repr=False)
    """Number of problems and draws, shares that were kept, tokens and seconds."""
    num_problems: int
    num_kept: int
    """Problems with at least one draw that was kept."""


def run_sample(
    data: Data,
    model: str,
    settings: Sample,
    output_dir: str | Path | None,
    progress: Progress,
    *,
    scheme: Scheme | None = None,
    reward: Callable[..., Any] | None = None,
) -> SampleResult:
    """Draw for each problem, filter, and store draws and examples.

    Raises NothingKept if no draw is kept; the draws are still stored.
    """
    if scheme is not None:
        check_storable(scheme)
    draws = sampling(settings, scheme)
    asked, config, problems = _inputs(data, model, settings, scheme, reward)
    place, stored = run_place(
        output_dir,
        "sample",
        data,
        model,
        asked.settings,
        problems,
        reward=asked.reward,
        demos=asked.demos,
        scheme=scheme or named_scheme(asked.settings),
    )
    asked = with_pinned_date(asked, stored)
    builder = make_sampler_builder(model, asked, problems)
    config = replace(config, demos=usable_demos(builder.demos, config.scheme))
    with open_run(place, stored, CHANGEABLE) as run:
        store_problems(run, problems, reports={"problems": asked.report})
        store_demos(run, builder)
        with builder.sampler(draws, needs=config.scheme.needs, folder=run.root) as sampler:
            steps = Steps(
                run=run,
                base=builder.base,
                problems=problems,
                eval_problems=[],
                config=config,
                sampler=sampler,
                tokenizer=builder.tokenizer,
                progress=progress,
            )
            metrics = steps.e_step(1)
        folder = run.iteration(1)
        run.write_json(folder / "metrics.json", {"iteration": 1, "e_step": metrics})
        write_data_card(run.root, 1)
    return SampleResult(
        run=run.root,
        examples=folder / "examples.parquet",
        draws=folder / "draws",
        metrics=metrics,
        num_problems=metrics["num_problems"],
        num_kept=metrics["num_kept"],
    )


def _inputs(
    data: Data,
    model: str,
    settings: Sample,
    scheme: Scheme | None,
    reward: Callable[..., Any] | None,
) -> tuple[TaskInputs[Sample], LoopConfig, list[Problem]]:
    """Return inputs, loop settings and the problems to draw for. Raises ConfigError and DataError."""
    make_loop_config(replace(as_train(settings), soft_accept=None), scheme)  # checks that need no data
    asked = read_inputs(data, settings, reward, model=model)
    config = make_loop_config(as_train(asked.settings), scheme)
    problems = trained_on(asked.problems)
    check_varied(problems)
    return asked, config, problems


def as_train(settings: Sample) -> Train:
    """Return the settings of an E-step as those of a run."""
    return Train(**{each.name: getattr(settings, each.name) for each in fields(Sample)})
