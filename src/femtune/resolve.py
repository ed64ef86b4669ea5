"""Resolution of settings into problems, prompts, reward, model, engine and loop configuration.

Errors are found here, in the first second, before a model is loaded or a directory created.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from femtune._util.parsing import named_pairs
from femtune._util.redaction import check_values
from femtune.config import Ask, Sample, Train, check_draws
from femtune.data.answer_format import parse_format
from femtune.data.answers import parse_scale
from femtune.data.chat_tokenizer import fit_prompts
from femtune.data.demos import load_demos
from femtune.data.objects import rows_of
from femtune.data.partition import Parts, hold_out, num_dev, set_aside, warn_of_groups
from femtune.data.problems import check_disjoint, check_gold, group_problems, without_long
from femtune.data.prompts import HINT, Prompts
from femtune.data.row_report import NO_ROWS, RowReport, with_skipped
from femtune.data.tasks.codings import Place, parse_labels
from femtune.data.tasks.frames import frame
from femtune.data.tasks.load import Options, TaskData, read_places, read_task, trained_on
from femtune.data.tasks.wording import text_or_file
from femtune.engines.model_files import load_config, load_tokenizer, local_model, named_folder
from femtune.errors import ConfigError, DataError
from femtune.loop import Evaluation, LoopConfig
from femtune.model_info import check_scored, read_info
from femtune.mstep.config import context_length
from femtune.rewards.builtin import as_reward
from femtune.schemes.acceptance import SoftAcceptance
from femtune.schemes.named import parse_scheme, spelled_out
from femtune.selection.limits import num_to_choose_by, selection_of
from femtune.types import Demo, Demos, Problem, Request, Reward, Sampling, Scheme

log = logging.getLogger("femtune")

# a file, the id of a data set on the Hub, problems, rows, or the result of `read_task`
Source = str | Path | Sequence[Problem] | Sequence[Mapping[str, Any]] | TaskData


@dataclass(frozen=True)
class Divided:
    """Data to train on, and rows in memory to evaluate on, for which a setting has no name."""

    train: Source
    held_out: Source


Data = Source | Divided
A = TypeVar("A", bound=Ask)


@dataclass(frozen=True, kw_only=True)
class TaskInputs(Generic[A]):
    """Problems, their prompts and reward, and the settings, all filled in."""

    problems: list[Problem]
    prompts: Prompts
    reward: Reward
    settings: A
    report: RowReport = NO_ROWS  # rows left out and why, how labels were coded
    places: Mapping[str, int] = field(default_factory=dict)  # id of a problem: its line or row
    rounded: int = 0  # problems whose score is between two points of the scale
    demos: Demos = ()  # worked examples named by the settings; `prompts` does not include them

    def name_of(self, problem: Problem) -> str:
        """Return the line of a problem, or its id if it is from elsewhere."""
        own = any(problem is each for each in self.problems) and problem.id in self.places
        return f"{self.report.unit} {self.places[problem.id]}" if own else problem.id


def read_inputs(
    data: Data,
    settings: A,
    reward: Callable[..., Any] | None = None,
    *,
    answers: bool = True,
    model: str | None = None,
    rows: Callable[[], Iterable[Place]] | None = None,
    log_rows: bool = True,
) -> TaskInputs[A]:
    """Read the inputs from a file, the Hub, or objects; with answers=False, without answers.

    A reward given as an object replaces the one named in the settings. With bad_rows "skip", problems
    too long for the `model` are left out. `rows` yields the rows of a file in place of reading it.
    Raises DataError if a problem is invalid, or its own answer would not earn the reward; ConfigError
    for settings that do not suit the task.
    """
    settings = _with_texts(settings)
    parse_format(settings.answer_format)  # raises before anything is read
    source = data.train if isinstance(data, Divided) else data
    found = source if isinstance(source, TaskData) else _read(source, settings, answers, rows)
    settings = replace(
        settings,
        reward=settings.reward or found.reward,
        instruction=found.instruction if settings.instruction is None else settings.instruction,
        hint=settings.hint or found.hint,
        scale=found.scale,
    )
    if isinstance(settings, Sample):
        settings = replace(settings, scheme=_spelled_out(settings))
    grade = as_reward(reward or settings.reward or found.reward)
    prompts = _worded(settings, found)
    demos = load_demos(
        settings.demos,
        settings.task,
        replace(task_options(settings), scale=found.scale),
        prompts,
        grade,
        found.problems,
        settings.accept_at,
        in_data="refuse" if answers else "allow",
    )
    if answers and settings.check_gold:
        check_gold(found.problems, grade, settings.accept_at, prompts)
    made = TaskInputs(
        problems=found.problems,
        prompts=prompts,
        reward=grade,
        settings=settings,
        report=found.report,
        places=found.places,
        rounded=found.rounded,
        demos=demos,
    )
    made = _without_long(made, model)
    if log_rows:
        _log_rows(made)
    return made


def _worded(settings: Ask, found: TaskData) -> Prompts:
    return Prompts(
        instruction=settings.instruction or "",
        hint=settings.hint or HINT,
        leaks=found.leaks,
        format=parse_format(settings.answer_format),
        system_prompt=settings.system_prompt,
    )


def _log_rows(asked: TaskInputs[A]) -> None:
    """Log how labels were coded, scores between two points of the scale, and rows left out."""
    if asked.rounded:
        soft = asked.settings.soft_labels
        how = "taken for both, each by its share" if soft else "rounded to the nearest"
        log.warning(
            "%d of %d scores are between two points of the scale %s: %s.",
            *(asked.rounded, len(asked.problems), asked.settings.scale, how),
        )
    for said in asked.report.codings:
        log.info("%s", said)
    if asked.report.skipped:
        log.warning("%s", asked.report.describe_skipped())


def _without_long(asked: TaskInputs[A], model: str | None) -> TaskInputs[A]:
    """With bad_rows "skip", leave out problems too long for a model, both orders of a pair together.

    Worked examples that may be left out do not count. Raises DataError if no problem is left.
    """
    if model is None or asked.settings.bad_rows != "skip" or asked.settings.engine == "chat":
        return asked
    settings, base = asked.settings, local_model(model)
    tokenizer = load_tokenizer(base, settings.template_args)
    info = read_info(named_folder(model))
    demos = asked.demos if settings.demos != "auto" else ()
    if info is not None and info.demos and settings.demos == "auto":
        demos = tuple(Demo(**demo) for demo in info.demos)
    shown = fit_prompts(asked.prompts.with_demos(demos), tokenizer)
    room = context_length(load_config(base)) - settings.max_new_tokens
    kept, over = without_long(asked.problems, asked.places, shown, tokenizer, room)
    what = f"too long for the model, which has room for {room} tokens"
    value = f"{next(iter(over.values()), 0)} tokens"
    return replace(asked, problems=kept, report=with_skipped(asked.report, [*over], what, value))


def _with_texts(settings: A) -> A:
    """Return settings with the content of text files in place of their paths."""
    names = ("system_prompt", "rubric", "prompt_template")
    texts: dict[str, Any] = {name: text_or_file(name, getattr(settings, name)) for name in names}
    return replace(settings, **texts)


def _read(
    data: Source, settings: Ask, answers: bool, given: Callable[[], Iterable[Place]] | None
) -> TaskData:
    """Read a file, a data set on the Hub, or rows; problems are used unchanged. Raises DataError."""
    group = settings.group if answers else None  # without answers, nothing is split or measured
    options = replace(task_options(settings), group=group)
    if isinstance(data, (str, Path)):
        check_values({"data": data})  # as messages show it
        return read_task(data, settings.task, options, answers=answers, rows=given)
    objects = rows_of(data)
    problems = [each for each in objects if isinstance(each, Problem)]
    if problems:
        if group is not None:
            problems = group_problems(problems, group)
        return TaskData(problems=problems)
    rows = enumerate(objects, 1)
    return read_places(rows, "rows", settings.task, options, answers=answers, unit="row")


def task_options(settings: Ask) -> Options:
    """Return the task's options for reading its data."""
    return Options(
        columns=named_pairs("columns", settings.columns),
        header=settings.header,
        data_config=settings.data_config,
        split=settings.split,
        scale=settings.scale,
        attributes=settings.attributes,
        raters=settings.raters,
        labels=parse_labels(settings.labels),
        bad_rows=settings.bad_rows,
        answer_format=settings.answer_format,
        rubric=text_or_file("rubric", settings.rubric),
        prompt_template=text_or_file("prompt_template", settings.prompt_template),
        round_scores=settings.round_scores,
        soft_labels=settings.soft_labels,
    )


def read_test(
    asked: TaskInputs[Train], data: Data, model: str | None = None
) -> TaskInputs[Train] | None:
    """Read the problems to evaluate on from data of their own; None if they are a share of `data`."""
    settings = asked.settings
    if settings.eval_data is None and settings.eval_split is None:
        return None
    other = data.held_out if isinstance(data, Divided) else settings.eval_data or data
    split_ = settings.eval_split if settings.eval_data is None else settings.split
    return read_inputs(other, replace(settings, split=split_), asked.reward, model=model)


def held_out(asked: TaskInputs[Train], data: Data, model: str | None = None) -> Parts:
    """Do as `part` for evaluation problems that are read here: see `read_test`."""
    return part(asked, read_test(asked, data, model))


def part(asked: TaskInputs[Train], other: TaskInputs[Train] | None) -> Parts:
    """Return training and development problems, with one order of each pair, and held-out ones.

    These have both orders, and are `other`'s, or a share of the data. Raises DataError if a prompt, or
    a judged item, is in both.
    """
    settings = asked.settings
    if other is not None:
        labelled, test = trained_on(asked.problems), other.problems
        check_disjoint(labelled, test)
        warn_of_groups(labelled, test)
    else:
        rest, test = hold_out(asked.problems, settings.eval_share, settings.seed)
        labelled = trained_on(rest)
    check_varied(labelled)
    if not settings.eval_every:
        if settings.dev_share or settings.patience:
            raise ConfigError("dev_share and patience need evaluations: set eval_every to 1 or more.")
        return Parts(labelled, [], test)
    by_choice = partial(num_to_choose_by, settings.selection_requests)
    usual = by_choice if settings.m_step == "examples" else num_dev
    train, dev = set_aside(labelled, settings.dev_share, settings.seed, usual)
    if settings.patience and not dev:
        raise ConfigError(
            f"patience {settings.patience} needs a development part: set --dev-share 0.2, say."
        )
    return Parts(train, dev, test)


def check_varied(problems: Sequence[Problem]) -> None:
    """Refuse training ratings that are all equal. Raises DataError."""
    answers = {problem.answer for problem in problems}
    known = frame(problems[0]) if problems else None
    if known is not None and known.form == "rating" and len(answers) == 1 < len(problems):
        raise DataError(
            f"all {len(problems)} ratings to train on are {answers.pop()}: a judge would learn to say "
            "so whatever it reads. Check the column of the score, or give more data."
        )


def sampling(settings: Sample, scheme: Scheme | None = None) -> Sampling:
    """Return the sampling of draws; `scheme` replaces the one that settings name. Raises ConfigError."""
    if settings.temperature < 0 or not 0 < settings.top_p <= 1 or settings.top_k < 0:
        raise ConfigError(
            f"temperature {settings.temperature}, top_p {settings.top_p}, top_k {settings.top_k}: they "
            "must be at least 0, in (0, 1], and at least 0."
        )
    scheme = scheme or parse_scheme(settings.scheme)
    if settings.temperature == 0 and any(stage.draws > 1 for stage in scheme.stages):
        why = f"{scheme.name} at temperature 0: every attempt is the same."
        raise ConfigError(f"{why} Set temperature 1.")
    return Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)


def make_loop_config(settings: Train, scheme: Scheme | None = None) -> LoopConfig:
    """Return what the loop does; `scheme` replaces the one that settings name. Raises ConfigError."""
    if not 1 <= settings.iterations <= 100_000:
        raise ConfigError(f"iterations must be from 1 to 100,000, got {settings.iterations}.")
    for name in ("eval_every", "keep_last", "patience"):
        if getattr(settings, name) < 0:
            raise ConfigError(f"{name} must be at least 0, got {getattr(settings, name)}.")
    check_draws("eval_", settings.eval_draws, settings.eval_temperature)
    if settings.bound_draws < 0 or settings.bound_draws % 2 or settings.bound_problems < 1:
        raise ConfigError(
            f"bound_draws {settings.bound_draws}, bound_problems {settings.bound_problems}: half of the "
            "draws are hinted, so an even number of them (0: none), and at least 1 problem."
        )
    if settings.reader_problems < 0:
        raise ConfigError(f"reader_problems must be at least 0, got {settings.reader_problems}.")
    scheme = scheme or named_scheme(settings)
    if scheme.accept_at != 1:
        raise ConfigError(
            f"Scheme {scheme.name} has an accept_at of its own: leave it out, and give the setting "
            "accept_at or soft_accept."
        )
    _check_law(settings, scheme)
    if settings.launch is not None:
        from femtune.mstep.launch import check_launch  # and torch with it

        check_launch(settings.launch)
    if settings.training.fsdp and settings.launch is None:
        raise ConfigError(
            'fsdp needs several processes: set launch, for example to "torchrun --nproc-per-node 8".'
        )
    return LoopConfig(
        scheme=replace(
            scheme,
            accept_at=_acceptance(settings),
            m_steps=scheme.m_steps.starting(settings.start_from),
        ),
        training=settings.training,
        evaluation=Evaluation(settings.eval_draws, settings.eval_temperature, settings.eval_every),
        iterations=settings.iterations,
        launch=settings.launch,
        average_weights=settings.average_weights,
        balance=settings.balance,
        keep_last=settings.keep_last,
        patience=settings.patience,
        bound_draws=settings.bound_draws,
        bound_problems=settings.bound_problems,
        reader_problems=settings.reader_problems,
        demo_iterations=settings.demo_iterations,
        has_teacher=settings.teacher is not None,
        force=settings.force_answers,
        selection=selection_of(settings, scheme),
    )


def named_scheme(settings: Sample) -> Scheme:
    """Return the scheme that settings name. Raises ConfigError."""
    return parse_scheme(_spelled_out(settings))


def _spelled_out(settings: Sample) -> str:
    m_step = settings.m_step if isinstance(settings, Train) else "weights"
    return spelled_out(settings.scheme, m_step)


def _check_law(settings: Train, scheme: Scheme) -> None:
    """Refuse sampling settings that the scheme's rules do not support. Raises ConfigError."""
    _check_answers(settings, scheme)
    check_scored(settings, scheme)
    cut = settings.top_p < 1 or settings.top_k > 0
    if "temperature_1" in scheme.needs and (cut or settings.temperature != 1):
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the model's own law: it needs temperature 1, without "
            "top_p and top_k."
        )
    if "untruncated" in scheme.needs and cut:
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, and top_p "
            "and top_k leave tokens out: drop them."
        )
    if "untruncated" in scheme.needs and settings.temperature == 0:
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, and "
            "temperature 0 draws the likeliest tokens alone: set --temperature 1."
        )
    if "untruncated" in scheme.needs and settings.temperature != 1 and settings.engine != "transformers":
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, which "
            f"--engine {settings.engine} tells at temperature 1 alone, got {settings.temperature:g}: "
            "set --temperature 1, or --engine transformers."
        )
    forced = settings.force_answers == "always"
    if "untruncated" in scheme.needs and forced and settings.temperature != 1:
        raise ConfigError(
            f"Scheme {scheme.name} weighs forced answers at temperature 1 alone, got "
            f"{settings.temperature:g}: set --temperature 1, or --force-answers evaluation."
        )
    if "plain_prompts" in scheme.needs and (forced or settings.demos not in ("auto", "none")):
        raise ConfigError(
            f"Scheme {scheme.name} needs draws of the plain prompt: drop --demos and --force-answers "
            "always, or choose importance."
        )


def _check_answers(settings: Train, scheme: Scheme) -> None:
    """Refuse settings that do not suit schemes with the probability of y*. Raises ConfigError."""
    if scheme.needs & {"answers", "gain"} and not parse_format(settings.answer_format).cue:
        raise ConfigError(
            f"Scheme {scheme.name} needs the probability of an answer, and answer_format "
            f"{settings.answer_format} has no cue to put it after: choose line, boxed, hash, tag, "
            "bracket or json:KEY."
        )
    if "answers" in scheme.needs and (settings.accept_at != 1 or settings.soft_accept is not None):
        raise ConfigError(
            f"Scheme {scheme.name} takes the correct answer alone for right: drop --accept-at and "
            "--soft-accept."
        )


def _acceptance(settings: Train) -> float | Callable[[Request], float]:
    if settings.soft_accept is None:
        return settings.accept_at
    scale = parse_scale(settings.scale) if settings.scale else None
    usual = f'ordinal("{settings.scale}")'  # T is in points of this scale
    if settings.accept_at != 1 or scale is None or settings.reward != usual:
        raise ConfigError(
            "soft_accept stands in place of accept_at, and needs ratings and their own reward: "
            "--task judge or summarize, without --reward and --accept-at."
        )
    span = scale.value(scale.answers[-1]) - scale.value(scale.answers[0])
    return SoftAcceptance(settings.soft_accept, span, settings.soft_decay)
