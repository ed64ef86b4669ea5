"""A stored run, read back: its settings, problems, prompts, and the weights that drew each draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from femtune.config import Train, check_types
from femtune.data.answer_format import parse_format
from femtune.data.chat_tokenizer import ChatTokenizer, fit_prompts
from femtune.data.demos import read_demos
from femtune.data.leaks import JUDGE_LEAKS, LEAKS
from femtune.data.problems import load_problems
from femtune.data.prompts import HINT, Prompts
from femtune.data.tasks.frames import frame
from femtune.engines.model_files import local_model
from femtune.errors import ConfigError, RunError
from femtune.mstep.config import Training
from femtune.mstep_schedule import MStepSchedule
from femtune.runs.checkpoints import next_start
from femtune.runs.run import Run, stored_config
from femtune.schemes.serialization import schedule_from_data, scheme_from_data
from femtune.types import Demos, Problem, Scheme, Tokenizer

Kind = Literal["draws", "eval"]  # of an E-step or an evaluation


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A stored iteration of a run."""

    run: Run
    iteration: int
    model: str  # the base model as given to the run
    settings: Train
    config: Mapping[str, Any]  # what config.yaml holds
    problems: Mapping[str, Problem]

    @property
    def draws(self) -> Path:
        return self.run.iteration(self.iteration) / "draws"

    def start(self) -> Path:
        """Return the weights that the M-step started from; rounded ones if only those were kept."""
        if self.iteration == 1 or stored_schedule(self.config).origin(self.iteration) == "base":
            return local_model(self.model)
        return next_start(self.run.iteration(self.iteration - 1) / "model")

    def prompts(self) -> Prompts:
        """Return the prompts that the run drew and parsed with."""
        return prompts_of(self.settings, self.problems)

    def trained_prompts(self, tokenizer: Tokenizer) -> Prompts:
        """Return the prompts x that the run trains under, in the form that the chat template shows."""
        return fitted_prompts(self.run.root, self.settings, self.problems, tokenizer)[0]


def open_stored(root: Path, iteration: int | None = None) -> Stored:
    """Open an iteration of a run of `train` or `sample`, by default the last one.

    Raises RunError if there is no such iteration.
    """
    config = stored_config(root)
    found = [int(path.parent.name[10:]) for path in root.glob("iteration-[0-9][0-9][0-9]*/draws")]
    if not found:
        raise RunError(f"{root} has no draws of an E-step: give the folder of a run of train or sample.")
    iteration = max(found) if iteration is None else iteration
    if iteration not in found:
        there = ", ".join(map(str, sorted(found)))
        raise RunError(f"{root} has no draws of iteration {iteration}: choose one of {there}.")
    problems = problems_of(root, "draws")
    settings = settings_of(config, root)
    return Stored(
        run=Run(root),
        iteration=iteration,
        model=str(config.get("model")),
        settings=settings,
        config=config,
        problems=problems,
    )


def stored_scheme(config: Mapping[str, Any], root: Path) -> Scheme:
    """Return the scheme that a run was made with, from its data in config.yaml.

    Raises RunError without one, or where a rule of it can't be imported.
    """
    if not isinstance(data := config.get("scheme_data"), Mapping):
        raise RunError(f"{root} has no scheme: give a run of train or sample.")
    try:
        return scheme_from_data(data)
    except ConfigError as error:
        raise RunError(f"{root}: {error}") from error


def stored_schedule(config: Mapping[str, Any]) -> MStepSchedule:
    """Return when the M-steps of a run start from the base. Raises RunError if it can't be read."""
    data = config.get("scheme_data")
    try:
        schedule = schedule_from_data(data) if isinstance(data, Mapping) else MStepSchedule()
        return schedule.starting(config.get("start_from", "previous"))
    except ConfigError as error:
        raise RunError(f"config.yaml: {error}") from error


def problems_of(root: Path, kind: Kind) -> dict[str, Problem]:
    """Return a run's problems by id: those of E-steps or of evaluations. Raises RunError."""
    path = root / ("problems.parquet" if kind == "draws" else "eval.parquet")
    if not path.exists():
        raise RunError(f"{root} has no {path.name}: run its command again, which adds it.")
    return {problem.id: problem for problem in load_problems(path)}


def settings_of(config: Mapping[str, Any], root: Path) -> Train:
    """Return the settings of a config.yaml, lists as tuples. Raises RunError for invalid ones."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}

    def own(kind: Any) -> dict[str, Any]:
        given = {field.name: values[field.name] for field in fields(kind) if field.name in values}
        check_types(kind, given)
        return given

    try:
        return Train(training=Training(**own(Training)), **own(Train))
    except ConfigError as error:
        raise RunError(f"{root / 'config.yaml'} was changed after it was stored: {error}") from error


def fitted_prompts(
    root: Path, settings: Train, problems: Mapping[str, Problem], tokenizer: Tokenizer
) -> tuple[Prompts, Demos]:
    """Return the prompts x of a run, and the worked examples that some of its draws were shown.

    Both have the form that the chat template shows. The examples are part of x if `demos_in_prompt` is
    set. Raises ModelError if no form is shown in full.
    """
    demos = read_demos(root / "demos.jsonl")
    shown = fit_prompts(prompts_of(settings, problems).with_demos(demos), tokenizer)
    if isinstance(tokenizer, ChatTokenizer):
        shown = replace(shown, opening=tokenizer.opening)
    return (shown if settings.demos_in_prompt else replace(shown, demos=())), demos


def prompts_of(settings: Train, problems: Mapping[str, Problem]) -> Prompts:
    """Return the prompts that a run drew and parsed with."""
    known = frame(next(iter(problems.values())))
    judged = known is not None and known.form in ("rating", "pair")
    hint = settings.hint or HINT
    return Prompts(
        instruction=settings.instruction or "",
        hint=hint,
        leaks=JUDGE_LEAKS if judged else LEAKS,
        format=parse_format(settings.answer_format),
        system_prompt=settings.system_prompt,
    )
