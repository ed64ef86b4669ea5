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
from femtune.data.files.reading import file_rows, file_unit
from femtune.data.leaks import JUDGE_LEAKS, LEAKS
from femtune.data.plain_table import problems_of_rows
from femtune.data.problems import group_problems
from femtune.data.prompts import HINT, INSTRUCTION, Prompts, as_messages, instruct, rewritten
from femtune.data.row_report import NO_ROWS, RowReport, skip_reasons
from femtune.data.rows import DUPLICATE, BadRow, Faults
from femtune.data.tasks import choice, judge, math
from femtune.data.tasks.codings import Place
from femtune.data.tasks.columns import EmptyLabels, parts, shown
from femtune.data.tasks.decode import check_texts, decoded
from femtune.data.tasks.frames import frame
from femtune.data.tasks.hub import is_hub_id
from femtune.data.tasks.judge import JUDGE, Raters
from femtune.data.tasks.proposals import proposing
from femtune.data.tasks.published import Schema
from femtune.data.tasks.schemas import Found, find_schema, read_given, read_rows
from femtune.data.tasks.summarize import SUMMARIZE
from femtune.data.tasks.wording import Template, check_rubric, parse_template
from femtune.errors import ConfigError, DataError
from femtune.types import Problem, Prompt

TASKS = ("judge", "summarize", "choice", "math", "table")
_WORDINGS = {"judge": JUDGE, "summarize": SUMMARIZE}
MODULES = {"choice": choice, "math": math}  # tasks of a question and its answer


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
    labels: dict[str, str] = field(default_factory=dict)  # value in the file: label, or score
    bad_rows: Literal["stop", "skip"] = "stop"
    answer_format: str = "line"
    rubric: str | None = None  # text
    prompt_template: str | None = None  # text
    round_scores: bool = False
    soft_labels: bool = False
    group: str | None = None  # column of the clusters that are kept whole

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
    def answer_columns(self) -> list[str]:
        """The columns of the correct answer, and those in which a path to it begins."""
        names = ("answer", "score", "preference", "chosen", "rejected")
        given = [part for name in names for part in parts(self.columns.get(name, ""), ()) if part]
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
    report: RowReport = NO_ROWS  # rows left out and why, how labels were coded
    places: dict[str, int] = field(default_factory=dict)  # id of a problem: its line or row
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
    rows: Callable[[], Iterable[Place]] | None = None,
) -> TaskData:
    """Load the problems of a file, or of a data set on the Hub, in the wording of the task.

    With answers=False, rows may lack their answer, as items to predict do. `alter` changes each of the
    task's rows before it becomes a problem, as `judge_biases` changes texts. `rows` yields the rows of a
    file in place of reading it: see `rows_once`. Raises ConfigError for an unknown task or scale,
    DataError if the data or a row can't be used.
    """
    options = options or Options()
    _check_options(task, options)
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise ConfigError(f"no task {task!r}.{near(task, TASKS)} Choose one of {known}.")
    with proposing(task, labels=answers):
        if task == "table":
            return _plain_file(Path(data).expanduser(), options, answers, rows)
        found = read_rows(
            data,
            task,
            columns=options.columns,
            config=options.data_config,
            split=options.split,
            header=options.header,
            labels=answers,
            given=rows,
        )
    if alter is not None:
        altered = ((place, row if isinstance(row, BadRow) else alter(row)) for place, row in found.rows)
        found = found._replace(rows=altered)
    unit = "row" if is_hub_id(str(data)) else file_unit(Path(data))
    return _made(task, found, options, Faults(str(data), unit), answers)


def read_places(
    rows: Iterable[Place],
    source: str,
    task: str,
    options: Options,
    *,
    answers: bool = True,
    unit: str = "line",
) -> TaskData:
    """Do as `read_task` for places and rows from elsewhere, such as a stream.

    `source` is their name in messages, `unit` the unit of a place: "line" or "row".
    """
    _check_options(task, options)
    if not options.header:
        raise ConfigError(
            f"{source} are not a .csv or .tsv file, and have names of columns: drop no-header."
        )
    with proposing(task, labels=answers):
        if task == "table":
            return _plain(rows, source, unit, source, options, answers)
        given = read_given(iter(rows), source, unit, task, columns=options.columns, labels=answers)
    return _made(task, given, options, Faults(source, unit), answers)


def problems_of(rows: Sequence[Mapping[str, Any]], task: str, options: Options, source: str) -> TaskData:
    """Do as `read_task` for rows in memory, in any published schema of the task, with its labels."""
    options = replace(options, labels={})  # that coding is of the user's own file
    schema = find_schema(task, rows[0], source)
    made: list[Place] = []
    for place, row in enumerate(rows, 1):
        try:
            made += ((place, own) for own in schema.rows(row) if schema.label in own)
        except BadRow as fault:
            made.append((place, fault))
    found = Found(schema, iter(made), {}, EmptyLabels())
    return _made(task, found, options, Faults(source, "row"), answers=True)


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


def _plain_file(
    file: Path, options: Options, answers: bool, given: Callable[[], Iterable[Place]] | None
) -> TaskData:
    rows, unit = given() if given else file_rows(file, options.header), file_unit(file)
    found = _plain(rows, str(file), unit, file.stem, options, answers)
    if not found.problems:
        raise DataError(f"{file} holds no rows: it needs one problem in each row.")
    return found


def _plain(
    rows: Iterable[Place], source: str, unit: str, named: str, options: Options, answers: bool
) -> TaskData:
    required = ("prompt", "answer") if answers else ("prompt",)
    places: dict[str, int] = {}
    problems = problems_of_rows(
        rows, source, unit, options.columns, required, named=named, places=places
    )
    template = options.template
    if template is not None:
        problems = _templated(problems, template, options)
    if options.group is not None:
        problems = group_problems(problems, options.group)
    report = RowReport(num_rows=len(problems), unit=unit)
    return TaskData(problems=problems, instruction=options.instruction(), report=report, places=places)


def _templated(problems: list[Problem], template: Template, options: Options) -> list[Problem]:
    """Make the prompts of a plain table by a template. Raises ConfigError, DataError."""
    columns = {"prompt", "id", *(name for p in problems for name in p.columns)}
    template.check(columns, options.answer_columns)
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


def _made(task: str, read: Found, options: Options, faults: Faults, answers: bool) -> TaskData:
    rows = [*_wanted(read.rows, options.attributes, faults.source)]
    rows, said = decoded(read, rows, options.labels, faults.unit, answers)
    advice = "Or skip them with --bad-rows skip."
    try:
        found = (_judging if task in _WORDINGS else _asking)(task, read.schema, rows, options, faults)
    except (ConfigError, DataError):
        if options.bad_rows == "stop":
            faults.report(advice)  # a fault of the rows may be the cause of the other one
        raise
    if options.bad_rows == "stop":
        faults.report(advice)
    if not found.problems:
        faults.report()
        raise DataError(f"{faults.source} holds no row that task {task} can use.")
    mapped = {name: column for name, column in read.columns.items() if name not in options.columns}
    told = [f"{shown(mapped)}, by their names."] if mapped else []
    report = RowReport(
        num_rows=len(rows),
        unit=faults.unit,
        skipped=skip_reasons(faults),
        codings=(*told, *said, *read.empty.describe(faults.unit), *found.report.codings),
    )
    if options.group is not None:
        by_place = {place: row for place, row in rows if not isinstance(row, BadRow)}
        problems = group_problems(found.problems, options.group, by_place, found.places)
        found = replace(found, problems=problems)
    return replace(found, report=report)


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
    task: str, schema: Schema, rows: Sequence[Place], options: Options, faults: Faults
) -> TaskData:
    wording = _WORDINGS[task]
    rows, said = check_texts(rows)
    good: list[Place] = []
    for place, row in judge.with_ids(rows, wording):
        if isinstance(row, BadRow):
            faults.add(place, row)
        else:
            good.append((place, row))
    if not good:
        faults.report()
    if wording.thing in good[0][1]:
        made = _rating_data(wording, schema, good, options, faults)
    else:
        made = _pair_data(wording, good, options, faults)
    return replace(made, report=RowReport(codings=(*said, *made.report.codings)))


def _pair_data(wording: judge.Wording, good: list[Place], options: Options, faults: Faults) -> TaskData:
    scale = "A,B,tie" if any(row.get("preference") == "tie" for _, row in good) else "A,B"
    if options.scale is not None:
        scale = ",".join(parse_scale(options.scale).answers)
    if scale not in ("A,B", "A,B,tie"):
        raise ConfigError(f"scale {options.scale!r}: for pairs it is A,B or A,B,tie. Leave it out.")
    tie = scale == "A,B,tie"
    if options.round_scores or options.soft_labels:
        raise ConfigError("round_scores and soft_labels are for ratings, not for pairs: leave them out.")
    asking = _checked(options, [row for _, row in good])
    made = judge.pairs(good, wording, options.raters, asking, tie=tie)
    problems, places = _sorted_out(made, faults)
    return TaskData(
        problems=problems,
        instruction=judge.instruction(parse_scale(scale), parse_format(options.answer_format)),
        leaks=JUDGE_LEAKS,
        reward=f'choice("{scale}")',
        scale=scale,
        places=places,
    )


def _rating_data(
    wording: judge.Wording, schema: Schema, rows: list[Place], options: Options, faults: Faults
) -> TaskData:
    spec = options.scale or schema.scale
    told: list[str] = []
    if spec is None and any(row.get("score") is not None for _, row in rows):
        found = judge.find_scale(row for _, row in rows)
        spec = f"{found.answers[0]},{found.answers[-1]}"
        told = [f"The scale is {found}, as the scores show."]
    if spec is None:
        raise ConfigError(
            "the items have no scores to infer a scale from: set it, for example --scale 1,5."
        )
    scale = parse_scale(spec)
    asking = _checked(options, [row for _, row in rows], scale)
    made = judge.ratings(rows, scale, wording, options.raters, asking)
    problems, places = _sorted_out(made, faults)
    return TaskData(
        problems=problems,
        instruction=judge.instruction(scale, parse_format(options.answer_format)),
        leaks=JUDGE_LEAKS,
        reward=f'ordinal("{spec}")',
        scale=spec,
        places=places,
        rounded=sum(map(judge.is_rounded, problems)),
        report=RowReport(codings=tuple(told)),
    )


def _checked(options: Options, rows: Sequence[Any], scale: Scale | None = None) -> judge.Asking:
    """Return the text around items, checked against columns and scale. Raises ConfigError."""
    asking = options.asking
    if asking.template is not None and rows:
        asking.template.check(judge.known_names(rows), options.answer_columns)
    if asking.rubric and scale is not None:
        check_rubric(asking.rubric, scale)
    if asking.between != "refuse" and scale is not None and not scale.numeric:
        raise ConfigError(
            f"round_scores and soft_labels need a scale of numbers, but the scale is {scale}: leave "
            "them out."
        )
    return asking


def _sorted_out(
    found: Iterable[tuple[int, Problem | BadRow]], faults: Faults
) -> tuple[list[Problem], dict[str, int]]:
    """Return the problems and their places; bad rows become faults."""
    problems, places = [], {}
    for place, problem in found:
        if isinstance(problem, BadRow):
            faults.add(place, problem)
        else:
            problems.append(problem)
            places[problem.id] = place
    return problems, places


# --- choice, math


def _asking(
    task: str, schema: Schema, rows: Iterable[Place], options: Options, faults: Faults
) -> TaskData:
    module = MODULES[task]
    template, checked = options.template, False
    problems: list[Problem] = []
    ids: dict[str, int] = {}
    for number, (place, row) in enumerate(rows, 1):
        found = row if isinstance(row, BadRow) else module.problem(row, f"{task}-{number}")
        if template is not None and isinstance(found, Problem):
            if not checked:
                template.check({*row, "prompt"}, options.answer_columns)
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
        problems=problems,
        instruction=options.instruction(module.WHAT),
        reward=module.REWARD,
        places=ids,
    )


# --- after a split


def trained_on(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems to train on: of each pair, only the presented order."""
    return [problem for problem in problems if (known := frame(problem)) is None or known.presented]
