"""Schemas of published data sets, on the Hub or in a file, and the reading of their rows.

A file is recognized by its columns, and read by the same code as the data set on the Hub. In CSV, the
cells of nested columns are JSON. `forms.py` converts the rows; `hub.py` opens data sets of the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from femtune._util.text import near
from femtune.data.rows import ALIASES, BadRow, Faults, file_rows, file_unit
from femtune.data.tasks import forms
from femtune.data.tasks.cells import KEPT, Row, read_json
from femtune.data.tasks.hub import Address, hub_rows, is_hub_id, open_hub
from femtune.errors import ConfigError, DataError

_HUB = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class Schema:
    """The schema of published rows, and the location of such rows on the Hub."""

    name: str  # the Hub id, or for a plain table, its content
    task: str  # judge, summarize, choice or math
    columns: frozenset[str]  # required columns; a file is recognized by them
    rows: Callable[[Row], Iterable[dict[str, Any]]]  # raises BadRow
    label: str  # the label's column in the task's rows: score, preference or answer
    label_columns: frozenset[str]  # published columns of the label; items to predict may lack them
    also: frozenset[str] = frozenset()  # optional columns
    nested: frozenset[str] = frozenset()  # columns of lists or objects, or JSON text of them
    gaps: bool = False  # True if the publisher left out some labels: such a row is skipped, not an error
    scale: str | None = None  # lowest and highest score, "0,4"; None for no scale, or any
    config: str | None = None  # the default config
    configs: tuple[str, ...] = ()  # all configs with this schema
    in_folder: bool = False  # the config is a folder of the repository, not a declared config
    revision: str | None = None
    split: str = "train"
    eval_split: str | None = None  # a split that has labels too
    card: str = ""  # the page that the schema was checked against; "" for a plain table

    def needs(self, labels: bool) -> frozenset[str]:
        """Return the columns that a row must have, with or without those of its label."""
        return self.columns if labels else self.columns - self.label_columns


# --- reading


def read_rows(
    data: str | Path,
    task: str,
    *,
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    split: str | None = None,
    labels: bool = True,
) -> tuple[Schema, Iterator[tuple[int, dict[str, Any] | BadRow]]]:
    """Return the schema of a file or a Hub data set, and its rows in the task's form, with places.

    `columns` maps femtune's names to the file's: `{"score": "rating"}`. A published row may become
    several rows, or none if its publisher left out the label; an invalid row is a BadRow. With
    labels=False, rows may lack their label, as items to predict do. Rows are read lazily.

    Raises DataError if the data do not exist or the task can't read them, ConfigError for an unknown
    config or split. Reading all rows raises DataError if none has a label.
    """
    source, renamed = str(data), dict(columns or {})
    if not is_hub_id(source):
        if config or split:
            raise ConfigError(
                f"{source} is a file; only data sets on the Hub have config and split. Leave them out."
            )
        unit = file_unit(Path(data))
        return read_given(file_rows(Path(data)), source, unit, task, columns=renamed, labels=labels)
    known = _published(source, task, config)
    opened = open_hub(_address(source, known, config, split), task)
    there = list(opened.column_names)
    rows = hub_rows(opened, there)
    _check_renamed(source, task, there, renamed)
    schema = known if known and not renamed and known.needs(labels) <= {*there} else None
    schema = schema or find_schema(task, {*there, *renamed}, source, renamed=renamed, labels=labels)
    if schema.card:
        rows = hub_rows(opened, {*schema.columns, *schema.also, *KEPT, *renamed.values()})
    return schema, _made(schema, rows, renamed, source, labels)


def read_given(
    rows: Iterator[tuple[int, Any]],
    source: str,
    unit: str,
    task: str,
    *,
    columns: Mapping[str, str],
    labels: bool = True,
) -> tuple[Schema, Iterator[tuple[int, dict[str, Any] | BadRow]]]:
    """Do as `read_rows` for places and rows from anywhere; `unit` is the unit of a place."""
    head, rows = _head(rows, source, unit)
    _check_renamed(source, task, list(head), columns)
    schema = find_schema(task, {*head, *columns}, source, renamed=columns, labels=labels)
    return schema, _made(schema, rows, columns, source, labels)


def find_schema(
    task: str,
    columns: Collection[str],
    source: str,
    *,
    renamed: Collection[str] = (),
    labels: bool = True,
) -> Schema:
    """Return the schema whose columns are all present; among several, the one with the most.

    It must have all names in `renamed`, which the user gave. Raises DataError if none fits.
    """
    there = set(columns)
    mine = [schema for schema in SCHEMAS if schema.task == task]
    mine = [schema for schema in mine if {*renamed} <= schema.columns | schema.also] or mine
    fits = [schema for schema in mine if schema.needs(labels) <= there]
    best = max(fits, key=lambda schema: len(schema.columns & there), default=None)
    others = [schema for schema in SCHEMAS if schema.task != task and schema.columns <= there]
    other = max(others, key=lambda schema: len(schema.columns), default=None)
    if best and other and best.columns < other.columns and not renamed:
        raise DataError(
            f"{source} holds rows for task {other.task}: it has columns {_listed(other.columns)}. To "
            f"read it as task {task}, name its columns, for example --columns question=question."
        )
    if best:
        return best
    nearest = max(mine, key=lambda schema: len(schema.columns & there) / len(schema.columns))
    missing = sorted(nearest.needs(labels) - there)
    flags = " ".join(f"{name}={_likely(name, there)}" for name in missing)
    elsewhere = f" They are those of {other.name}, for task {other.task}." if other else ""
    plain = "; ".join(_listed(schema.columns) for schema in mine if not schema.card)
    names = ", ".join(dict.fromkeys(schema.name for schema in mine if schema.card))
    raise DataError(
        f"{source} holds no rows for task {task}: it has columns {_listed(there)}.{elsewhere}\n"
        f"  The nearest schema is {nearest.name}, which also has {_listed(missing)}. If they have "
        f"other names, set --columns {flags}\n"
        f"  Task {task} reads tables with columns {plain}; or those of {names}."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(map(str, names)))


def _likely(name: str, there: Collection[str]) -> str:
    aliases = ALIASES.get("prompt" if name in ("prompt", "question", "post") else "answer", ())
    return next((alias for alias in aliases if alias in there), "<its name>")


def _published(name: str, task: str, config: str | None) -> Schema | None:
    """Return the schema of a data set on the Hub, or None. Raises for a wrong task or config."""
    known = [schema for schema in SCHEMAS if schema.name == name]
    mine = [schema for schema in known if schema.task == task]
    if known and not mine:
        raise DataError(f"{name} holds data for task {known[0].task}, not {task}: change --task.")
    configs = [config for schema in mine for config in schema.configs]
    if config is None or not configs:
        return mine[0] if mine else None
    found = [schema for schema in mine if config in schema.configs]
    if not found:
        raise ConfigError(f"{name} has no config {config!r}.{near(config, configs)} It has {configs}.")
    return found[0]


def _address(name: str, known: Schema | None, config: str | None, split: str | None) -> Address:
    if known is None:
        return Address(name, split or "train", config)
    config = config or known.config
    return Address(name, split or known.split, config, known.in_folder, known.revision)


def _head(
    rows: Iterator[tuple[int, Any]], source: str, unit: str
) -> tuple[Row, Iterator[tuple[int, Any]]]:
    """Return the first valid row, and all rows. Raises DataError if none is valid."""
    ahead: list[tuple[int, Any]] = []
    for place, row in rows:
        ahead.append((place, row))
        if isinstance(row, dict):
            return row, chain(ahead, rows)
    faults = Faults(source, unit)
    for place, row in ahead:
        faults.add(place, row if isinstance(row, BadRow) else _no_object(row))
    faults.report()
    raise DataError(f"{source} holds no rows.")


def _check_renamed(source: str, task: str, there: list[str], renamed: Mapping[str, str]) -> None:
    known = {name for schema in SCHEMAS if schema.task == task for name in schema.columns | schema.also}
    for name, column in renamed.items():
        if name not in known:
            raise DataError(f"task {task} reads no column {name!r}.{near(name, known)}")
        if column not in there:
            has = f"it has {_listed(there)}.{near(column, there)}"
            raise DataError(f"{source} has no column `{column}` for `{name}`; {has}")


def _made(
    schema: Schema,
    rows: Iterable[tuple[int, Any]],
    renamed: Mapping[str, str],
    source: str,
    labels: bool,
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    hidden = others = 0
    for place, row in rows:
        try:
            made = [*schema.rows(_cells(schema, row, renamed, labels))]
        except BadRow as fault:
            made, others = [], others + 1
            yield place, fault
        for one in made:
            if not labels or schema.label in one:
                others += 1
                yield place, one
            elif schema.gaps:
                hidden += 1
            else:
                others += 1
                yield place, BadRow(f"`{_label_column(schema, one)}` is empty")
    if hidden and not others:
        raise DataError(
            f"{source} has no labels, as the publisher of {schema.name} hides those of its test split: "
            f"use {schema.eval_split or schema.split}."
        )
    if not hidden and not others:
        raise DataError(f"{source} holds no rows for task {schema.task}.")


def _label_column(schema: Schema, row: Row) -> str:
    columns = sorted(schema.label_columns)
    return row["attribute"] if row.get("attribute") in columns else columns[0]


def _cells(schema: Schema, row: Any, renamed: Mapping[str, str], labels: bool) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise _no_object(row)
    cells = {**row} | {name: row.get(column) for name, column in renamed.items()}
    for name in sorted(schema.needs(labels)):
        if name not in cells:
            raise BadRow(f"`{name}` is missing")
    for name in schema.nested:
        if isinstance(cells.get(name), str):
            cells[name] = read_json(name, cells[name])
    return cells


def _no_object(row: Any) -> BadRow:
    return BadRow("not an object with columns", type(row).__name__)


# --- the schemas


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MATH_CONFIGS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory"),
    *("prealgebra", "precalculus"),
)

SCHEMAS: tuple[Schema, ...] = (
    # plain tables come first: the first of several schemas that fit equally well is used
    Schema(
        "judge ratings",
        "judge",
        _names("prompt response score"),
        forms.rating_rows,
        label="score",
        label_columns=_names("score"),
        also=_names("id item attribute rater criterion reference source"),
    ),
    Schema(
        "judge pairs",
        "judge",
        _names("prompt response_a response_b preference"),
        forms.pair_rows,
        label="preference",
        label_columns=_names("preference"),
        also=_names("id item attribute rater source"),
    ),
    Schema(
        "summary pairs",
        "summarize",
        _names("post summary_a summary_b preference"),
        forms.summary_pair_rows,
        label="preference",
        label_columns=_names("preference"),
        also=_names("id item title rater source"),
    ),
    Schema(
        "summary ratings",
        "summarize",
        _names("post summary score"),
        forms.summary_rating_rows,
        label="score",
        label_columns=_names("score"),
        also=_names("id item title attribute rater source"),
    ),
    Schema(
        "choice questions",
        "choice",
        _names("question choices answer"),
        forms.choice_rows,
        label="answer",
        label_columns=_names("answer"),
        also=_names("id labels subject"),
        nested=_names("choices labels"),
    ),
    Schema(
        "math problems",
        "math",
        _names("prompt answer"),
        forms.math_rows,
        label="answer",
        label_columns=_names("answer"),
        also=_names("id level subject"),
    ),
    # judge
    Schema(
        "nvidia/HelpSteer2",
        "judge",
        _names("prompt response") | {*forms.HELPSTEER},
        forms.helpsteer2_rows,
        label="score",
        label_columns=frozenset(forms.HELPSTEER),
        scale="0,4",
        eval_split="validation",
        card=f"{_HUB}nvidia/HelpSteer2",
    ),
    Schema(  # the card: load_dataset("nvidia/HelpSteer2", data_dir="disagreements")["train"]
        "nvidia/HelpSteer2",
        "judge",
        _names("prompt response") | {*forms.HELPSTEER},
        forms.helpsteer2_rows,
        label="score",
        label_columns=frozenset(forms.HELPSTEER),
        scale="0,4",
        config="disagreements",
        configs=("disagreements",),
        in_folder=True,
        card=f"{_HUB}nvidia/HelpSteer2#disagreements-new---1-oct-2024",
    ),
    Schema(  # the single split holds both parts; its column `split` says train or validation
        "nvidia/HelpSteer2",
        "judge",
        _names("prompt response_1 response_2 preference_strength"),
        forms.helpsteer2_pair_rows,
        label="preference",
        label_columns=_names("preference_strength"),
        config="preference",
        configs=("preference",),
        in_folder=True,
        card=f"{_HUB}nvidia/HelpSteer2#preferences-new---1-oct-2024",
    ),
    Schema(
        "nvidia/HelpSteer3",
        "judge",
        _names("context response1 response2 overall_preference"),
        forms.helpsteer3_rows,
        label="preference",
        label_columns=_names("overall_preference"),
        also=_names("domain language individual_preference"),
        nested=_names("context individual_preference"),
        config="preference",
        configs=("preference",),
        eval_split="validation",
        card=f"{_HUB}nvidia/HelpSteer3#preference",
    ),
    Schema(  # "N/A" for a Rating: github.com/OpenBMB/UltraFeedback, fix_overall_score_issue.py
        "openbmb/UltraFeedback",
        "judge",
        _names("instruction completions"),
        forms.ultrafeedback_rows,
        label="score",
        label_columns=frozenset(),  # they are inside `completions`
        also=_names("source"),
        nested=_names("completions"),
        gaps=True,
        scale="1,5",
        card=f"{_HUB}openbmb/UltraFeedback",
    ),
    Schema(
        "prometheus-eval/Feedback-Collection",
        "judge",
        _names("orig_instruction orig_response orig_criteria orig_score"),
        forms.feedback_collection_rows,
        label="score",
        label_columns=_names("orig_score"),
        also=_names("orig_reference_answer")
        | {f"orig_score{score}_description" for score in range(1, 6)},
        scale="1,5",
        card=f"{_HUB}prometheus-eval/Feedback-Collection",
    ),
    Schema(
        "lmsys/mt_bench_human_judgments",
        "judge",
        _names("question_id model_a model_b winner judge conversation_a conversation_b turn"),
        forms.mt_bench_rows,
        label="preference",
        label_columns=_names("winner"),
        nested=_names("conversation_a conversation_b"),
        split="human",  # the other split is gpt4_pair
        card=f"{_HUB}lmsys/mt_bench_human_judgments",
    ),
    # summarize: published as a script, which `datasets` no longer runs, and as Parquet on a branch
    Schema(
        "openai/summarize_from_feedback",
        "summarize",
        _names("info summaries choice worker"),
        forms.comparison_rows,
        label="preference",
        label_columns=_names("choice"),
        also=_names("batch extra"),
        nested=_names("info summaries extra"),
        config="comparisons",
        configs=("comparisons",),
        in_folder=True,
        revision="refs/convert/parquet",
        eval_split="validation",
        card=f"{_HUB}openai/summarize_from_feedback/blob/main/summarize_from_feedback.py",
    ),
    Schema(  # a scale from 1 to 7: arXiv 2009.01325
        "openai/summarize_from_feedback",
        "summarize",
        _names("info summary worker"),
        forms.axis_rows,
        label="score",
        label_columns=frozenset(),  # they are inside `summary`
        also=_names("batch"),
        nested=_names("info summary"),
        gaps=True,
        scale="1,7",
        config="axis",
        configs=("axis",),
        in_folder=True,
        revision="refs/convert/parquet",
        split="validation",
        eval_split="test",
        card=f"{_HUB}openai/summarize_from_feedback/blob/main/summarize_from_feedback.py",
    ),
    # choice
    Schema(
        "allenai/ai2_arc",
        "choice",
        _names("id question choices answerKey"),
        forms.keyed_rows,
        label="answer",
        label_columns=_names("answerKey"),
        nested=_names("choices"),
        config="ARC-Challenge",
        configs=("ARC-Challenge", "ARC-Easy"),
        eval_split="validation",
        card=f"{_HUB}allenai/ai2_arc",
    ),
    Schema(
        "cais/mmlu",
        "choice",
        _names("question subject choices answer"),
        forms.choice_rows,
        label="answer",
        label_columns=_names("answer"),
        nested=_names("choices"),
        config="all",  # each subject is a config too
        split="auxiliary_train",
        eval_split="validation",
        card=f"{_HUB}cais/mmlu",
    ),
    Schema(
        "allenai/openbookqa",
        "choice",
        _names("id question_stem choices answerKey"),
        forms.keyed_rows,
        label="answer",
        label_columns=_names("answerKey"),
        nested=_names("choices"),
        config="main",
        configs=("main", "additional"),
        eval_split="validation",
        card=f"{_HUB}allenai/openbookqa",
    ),
    Schema(  # its test split has "" as `answerKey`
        "tau/commonsense_qa",
        "choice",
        _names("id question question_concept choices answerKey"),
        forms.keyed_rows,
        label="answer",
        label_columns=_names("answerKey"),
        nested=_names("choices"),
        gaps=True,
        eval_split="validation",
        card=f"{_HUB}tau/commonsense_qa",
    ),
    # math
    Schema(
        "openai/gsm8k",
        "math",
        _names("question answer"),
        forms.gsm8k_rows,
        label="answer",
        label_columns=_names("answer"),
        also=_names("id level subject"),
        config="main",
        configs=("main", "socratic"),
        eval_split="test",
        card=f"{_HUB}openai/gsm8k",
    ),
    Schema(
        "HuggingFaceH4/MATH-500",
        "math",
        _names("problem answer subject level unique_id"),
        forms.math500_rows,
        label="answer",
        label_columns=_names("answer"),
        split="test",  # the only split
        card=f"{_HUB}HuggingFaceH4/MATH-500",
    ),
    Schema(  # no config holds all subjects, so the user names one
        "EleutherAI/hendrycks_math",
        "math",
        _names("problem level type solution"),
        forms.hendrycks_rows,
        label="answer",
        label_columns=_names("solution"),
        configs=_MATH_CONFIGS,
        eval_split="test",
        card=f"{_HUB}EleutherAI/hendrycks_math",
    ),
)
