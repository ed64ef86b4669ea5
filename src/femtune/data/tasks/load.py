"""Loading of a task's data, from a file or the Hub: problems, with a matching instruction and reward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from femtune._util.text import first, near
from femtune.data.answer_format import parse_format
from femtune.data.answers import Scale, parse_scale
from femtune.data.columns import root_of
from femtune.data.files.reading import file_unit
from femtune.data.plain_table import problems_of_rows
from femtune.data.problems import load_problems
from femtune.data.prompts import (
    HINT,
    INSTRUCTION,
    JUDGE_LEAKS,
    LEAKS,
    Prompts,
    as_messages,
    instruct,
    rewritten,
)
from femtune.data.rows import DUPLICATE, BadRow, Faults
from femtune.data.tasks import choice, judge, math
from femtune.data.tasks.frames import frame
from femtune.data.tasks.hub import is_hub_id
from femtune.data.tasks.judge import JUDGE, Raters
from femtune.data.tasks.published import Schema
from femtune.data.tasks.schemas import find_schema, read_given, read_rows
from femtune.data.tasks.summarize import SUMMARIZE
from femtune.data.tasks.wording import Template, check_rubric, parse_template
from femtune.errors import ConfigError, DataError
from femtune.types import Problem, Prompt

TASKS = ("judge", "summarize", "choice", "math", "table")
_WORDINGS = {"judge": JUDGE, "summarize": SUMMARIZE}
MODULES = {"choice": choice, "math": math}  # tasks of a question and its answer

Place = tuple[int, Any]  # a place in a source, and its row or BadRow


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings for how a task reads its data."""

    columns: dict[str, str] = field(default_factory=dict)  # femtune's name: the file's name
    data_config: str | None = None  # config of a data set on the Hub
    split: str | None = None
    header: bool = True  # False: the first line of a .csv or .tsv file is a row
    scale: str | None = None
    attributes: tuple[str, ...] = ()  # empty: all
    raters: Raters = "each"
    bad_rows: Literal["stop", "skip"] = "stop"
    answer_format: str = "line"
    rubric: str | None = None  # text
    prompt_template: str | None = None  # text
    round_scores: bool = False
    soft_labels: bool = False

    def __post_init__(self) -> None:
        if self.round_scores and self.soft_labels:
            raise ConfigError("round_scores and soft_labels exclude each other: choose one.")

    @property
    def template(self) -> Template | None:
        """The prompt template, or None. Raises ConfigError for an invalid one."""
        return None if self.prompt_template is None else parse_template(self.prompt_template)

    @property
    def asking(self) -> judge.Asking:
        """The text around items and the handling of scores, for the tasks that judge."""
        between: Literal["refuse", "round", "soft"] = "round" if self.round_scores else "refuse"
        return judge.Asking(self.rubric or "", self.template, "soft" if self.soft_labels else between)

    @property
    def labels(self) -> list[str]:
        """The columns of the correct answer, and those in which a path to it begins."""
        names = ("answer", "score", "preference")
        given = [self.columns[name] for name in names if name in self.columns]
        return [*given, *(root_of(column, ()) for column in given)]

    def instruction(self, what: str = "your answer") -> str:
        """Return the instruction of a task for its answer format."""
        return instruct(parse_format(self.answer_format), what)


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Problems, and the defaults of their task for everything that the user did not set."""

    problems: list[Problem]
    instruction: str = INSTRUCTION
    hint: str = HINT
    leaks: tuple[str, ...] = LEAKS
    reward: str = "exact"
    scale: str | None = None  # in the form of Options.scale
    skipped: int = 0  # rows left out
    rounded: int = 0  # problems whose score was between two points of the scale

    @property
    def prompts(self) -> Prompts:
        """The plain and hinted prompts in the task's wording."""
        return Prompts(instruction=self.instruction, hint=self.hint, leaks=self.leaks)


def read_task(
    data: str | Path,
    task: str,
    options: Options | None = None,
    *,
    answers: bool = True,
    alter: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> TaskData:
    """Load the problems of a file, or of a data set on the Hub, in the wording of the task.

    With answers=False, rows may lack their answer, as items to predict do. `alter` changes each of the
    task's rows before it becomes a problem, as `judge_biases` changes texts. Raises ConfigError for an
    unknown task or scale, DataError if the data or a row can't be used.
    """
    options = options or Options()
    _check_options(task, options)
    if task == "table":
        found = load_problems(data, columns=options.columns, answers=answers, header=options.header)
        return _table(found, options)
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise ConfigError(f"no task {task!r}.{near(task, TASKS)} Choose one of {known}.")
    schema, rows = read_rows(
        data,
        task,
        columns=options.columns,
        config=options.data_config,
        split=options.split,
        header=options.header,
        labels=answers,
    )
    if alter is not None:
        rows = ((place, row if isinstance(row, BadRow) else alter(row)) for place, row in rows)
    unit = "row" if is_hub_id(str(data)) else file_unit(Path(data))
    return _made(task, schema, rows, options, Faults(str(data), unit))


def read_places(
    rows: Iterable[Place],
    source: str,
    task: str,
    options: Options,
    *,
    answers: bool = True,
    unit: str = "line",
) -> TaskData:
    """Do as `read_task` for places and rows from elsewhere, such as a stream; `source` names them."""
    _check_options(task, options)
    if not options.header:
        raise ConfigError(
            f"{source} are not a .csv or .tsv file, and have names of columns: drop no-header."
        )
    if task == "table":
        required = ("prompt", "answer") if answers else ("prompt",)
        found = problems_of_rows(rows, source, unit, options.columns, required, named=source)
        return _table(found, options)
    schema, made = read_given(iter(rows), source, unit, task, columns=options.columns, labels=answers)
    return _made(task, schema, made, options, Faults(source, unit))


def problems_of(rows: Sequence[Mapping[str, Any]], task: str, options: Options, source: str) -> TaskData:
    """Do as `read_task` for rows in memory, in any published schema of the task, with labels."""
    schema = find_schema(task, rows[0], source)
    made: list[Place] = []
    for place, row in enumerate(rows, 1):
        try:
            made += ((place, own) for own in schema.rows(row) if schema.label in own)
        except BadRow as fault:
            made.append((place, fault))
    return _made(task, schema, made, options, Faults(source, "row"))


def _check_options(task: str, options: Options) -> None:
    """Check that settings of ratings are used only by tasks that judge. Raises ConfigError."""
    if task in _WORDINGS or task not in TASKS:
        return
    if options.rubric:
        raise ConfigError(
            f"rubric is only for the tasks judge and summarize, not for {task}: use instruction or "
            "prompt_template."
        )
    for name in ("round_scores", "soft_labels"):
        if getattr(options, name):
            raise ConfigError(f"{name} is only for ratings, not for task {task}: leave it out.")


def _table(problems: list[Problem], options: Options) -> TaskData:
    template = options.template
    if template is not None:
        problems = _templated(problems, template, options)
    return TaskData(problems=problems, instruction=options.instruction())


def _templated(problems: list[Problem], template: Template, options: Options) -> list[Problem]:
    """Make the prompts of a plain table by a template. Raises ConfigError, DataError."""
    columns = {"prompt", "id", *(name for p in problems for name in p.columns)}
    template.check(columns, options.labels)
    made, faults = [], []
    for problem in problems:
        try:
            made.append(replace(problem, prompt=_fill(template, problem.prompt, problem.columns)))
        except BadRow as fault:
            faults.append(f'"{problem.id}": {fault.what}')
    if faults:
        raise DataError(
            f"{len(faults)} of {len(problems)} rows have no value for a column in prompt_template: "
            f"{first(faults, '; ')}. Fill or remove them."
        )
    return made


def _fill(template: Template, prompt: Prompt, values: Mapping[str, Any]) -> Prompt:
    """Make a prompt by a template; for messages, replace the last one's text. Raises BadRow."""
    last = as_messages(prompt)[-1]["content"]
    text = template.fill({**values, "prompt": last})
    return rewritten(prompt, lambda _: text)


def _made(
    task: str, schema: Schema, rows: Iterable[Place], options: Options, faults: Faults
) -> TaskData:
    rows = _wanted(rows, options.attributes, faults.source)
    found = (_judging if task in _WORDINGS else _asking)(task, schema, rows, options, faults)
    if options.bad_rows == "stop":
        faults.report("Or skip them with --bad-rows skip.")
    if not found.problems:
        faults.report()
        raise DataError(f"{faults.source} holds no row that task {task} can use.")
    return replace(found, skipped=sum(faults.counts.values()))


def _wanted(rows: Iterable[Place], attributes: tuple[str, ...], source: str) -> Iterator[Place]:
    """Yield the rows of these attributes, or all rows. Raises DataError for an unknown attribute."""
    seen: dict[str, None] = {}
    for place, row in rows:
        if isinstance(row, BadRow):
            yield place, row
            continue
        name = str(row.get("attribute") or "")
        seen[name] = None
        if not attributes or name in attributes:
            yield place, row
    for name in attributes:
        if name not in seen:
            there = first([*filter(None, seen)]) or "none"
            raise DataError(f"{source} has no attribute {name!r}; it has {there}.{near(name, seen)}")


# --- judge, summarize


def _judging(
    task: str,
    schema: Schema,
    rows: Iterable[Place],
    options: Options,
    faults: Faults,
) -> TaskData:
    wording = _WORDINGS[task]
    good: list[Place] = []
    for place, row in judge.with_ids(rows, wording):
        if isinstance(row, BadRow):
            faults.add(place, row)
        else:
            good.append((place, row))
    if good and wording.thing in good[0][1]:
        return _rating_data(wording, schema, good, options, faults)
    scale = "A,B,tie" if any(row.get("preference") == "tie" for _, row in good) else "A,B"
    if options.scale is not None:
        scale = ",".join(parse_scale(options.scale).answers)
    if scale not in ("A,B", "A,B,tie"):
        raise ConfigError(f"scale {options.scale!r}: for pairs it is A,B or A,B,tie. Leave it out.")
    tie = scale == "A,B,tie"
    if options.round_scores or options.soft_labels:
        raise ConfigError("round_scores and soft_labels are for ratings, not for pairs: leave them out.")
    asking = _checked(options, [row for _, row in good])
    problems = _sorted_out(judge.pairs(good, wording, options.raters, asking, tie=tie), faults)
    return TaskData(
        problems=problems,
        instruction=judge.instruction(parse_scale(scale), parse_format(options.answer_format)),
        leaks=JUDGE_LEAKS,
        reward=f'choice("{scale}")',
        scale=scale,
    )


def _rating_data(
    wording: judge.Wording, schema: Schema, rows: list[Place], options: Options, faults: Faults
) -> TaskData:
    spec = options.scale or schema.scale
    if spec is None and any(row.get("score") is not None for _, row in rows):
        found = judge.find_scale(row for _, row in rows)
        spec = f"{found.answers[0]},{found.answers[-1]}"
    if spec is None:
        raise ConfigError(
            "the items have no scores to infer a scale from: set it, for example --scale 1,5."
        )
    scale = parse_scale(spec)
    asking = _checked(options, [row for _, row in rows], scale)
    problems = _sorted_out(judge.ratings(rows, scale, wording, options.raters, asking), faults)
    return TaskData(
        problems=problems,
        instruction=judge.instruction(scale, parse_format(options.answer_format)),
        leaks=JUDGE_LEAKS,
        reward=f'ordinal("{spec}")',
        scale=spec,
        rounded=sum(map(judge.is_rounded, problems)),
    )


def _checked(options: Options, rows: Sequence[Any], scale: Scale | None = None) -> judge.Asking:
    """Return the text around items, checked against columns and scale. Raises ConfigError."""
    asking = options.asking
    if asking.template is not None and rows:
        asking.template.check(judge.known_names(rows), options.labels)
    if asking.rubric and scale is not None:
        check_rubric(asking.rubric, scale)
    if asking.between != "refuse" and scale is not None and not scale.numeric:
        raise ConfigError(
            f"round_scores and soft_labels need a scale of numbers, but the scale is {scale}: leave "
            "them out."
        )
    return asking


def _sorted_out(found: Iterable[tuple[int, Problem | BadRow]], faults: Faults) -> list[Problem]:
    problems = []
    for place, problem in found:
        if isinstance(problem, BadRow):
            faults.add(place, problem)
        else:
            problems.append(problem)
    return problems


# --- choice, math


def _asking(
    task: str,
    schema: Schema,
    rows: Iterable[Place],
    options: Options,
    faults: Faults,
) -> TaskData:
    module = MODULES[task]
    template, checked = options.template, False
    problems: list[Problem] = []
    ids: dict[str, int] = {}
    for number, (place, row) in enumerate(rows, 1):
        found = row if isinstance(row, BadRow) else module.problem(row, f"{task}-{number}")
        if template is not None and isinstance(found, Problem):
            if not checked:
                template.check({*row, "prompt"}, options.labels)
                checked = True
            try:
                values = {**row, **module.shown(row)}
                found = replace(found, prompt=_fill(template, row.get("prompt", found.prompt), values))
            except BadRow as fault:
                found = fault
        if isinstance(found, Problem) and found.id in ids:
            found = BadRow(DUPLICATE, f'"{found.id}", first in {faults.unit} {ids[found.id]}')
        if isinstance(found, BadRow):
            faults.add(place, found)
        else:
            ids[found.id] = place
            problems.append(found)
    if any(not isinstance(problem.prompt, str) for problem in problems):
        # all prompts become messages, since a stored column has one type
        problems = [replace(problem, prompt=as_messages(problem.prompt)) for problem in problems]
    return TaskData(
        problems=problems, instruction=options.instruction(module.WHAT), reward=module.REWARD
    )


# --- after a split


def trained_on(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems to train on: of each pair, only the presented order."""
    return [problem for problem in problems if (known := frame(problem)) is None or known.presented]
