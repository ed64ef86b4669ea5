"""The forms that data sets are published in, on the Hub or in a file, and how one is read.

The same code reads a data set from the Hub and a file of the same columns, by which it is known again;
in CSV, cells of nested columns are JSON. `forms.py` has the rows, `hub.py` opens what is on the Hub.
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
    """A published form of rows, and where on the Hub there are such rows."""

    name: str  # the Hub id, or what a plain table holds
    task: str  # judge, summarize, choice or math
    columns: frozenset[str]  # what a row must have; by them a file is known again
    rows: Callable[[Row], Iterable[dict[str, Any]]]  # raises BadRow
    label: str  # score, preference or answer: what a row of the task lacks where it has no label
    label_columns: frozenset[str]  # those of `columns` that hold it: items to predict may lack them
    also: frozenset[str] = frozenset()  # columns that are read where they are there
    nested: frozenset[str] = frozenset()  # columns of lists or objects: JSON where a cell is text
    gaps: bool = False  # whether the publisher leaves labels out: such a row is none, not a fault
    scale: str | None = None  # "0,4": lowest and highest score; None where there is none, or any
    config: str | None = None  # the one that is read where the user names none
    configs: tuple[str, ...] = ()  # all of this form
    in_folder: bool = False  # the config is a folder of the repository, which knows no such config
    revision: str | None = None
    split: str = "train"
    eval_split: str | None = None  # has labels too
    card: str = ""  # what it was checked against; "" for a plain table

    def needs(self, labels: bool) -> frozenset[str]:
        """The columns that a row must have, where it must have labels, or need not."""
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
    """The form of a file, or of a data set on the Hub, and its rows as the task's own, with places.

    `columns` maps femtune's names to the file's: `{"score": "rating"}`. A published row may become
    several rows, or none where its publisher left the label out; one that can't be used is a BadRow.
    With labels=False rows may lack theirs, as items to predict. Rows are read as they are asked for.

    Raises DataError where there is no such data, or none that the task can read; ConfigError for a
    config or split that there is not. Asked for all its rows, DataError where none has a label.
    """
    source, renamed = str(data), dict(columns or {})
    if not is_hub_id(source):
        if config or split:
            raise ConfigError(f"{source} is a file: only a data set on the Hub has a config or split.")
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
    """`read_rows` for places and rows from anywhere; `unit` is what a place counts."""
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
    """The schema whose columns are all there, the one with the most where several are.

    Of `renamed`, femtune's names that the user gave, it knows all. Raises DataError where there is none.
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
            f"{source} holds rows for task {other.task}: it has columns {_listed(other.columns)}. For "
            f"task {task} all the same, say which is which: --columns question=question, say."
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
        f"  Nearest is {nearest.name}, which also has {_listed(missing)}. If they are there under "
        f"other names, say --columns {flags}\n"
        f"  Task {task} reads tables with columns {plain}; or those of {names}."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(map(str, names)))


def _likely(name: str, there: Collection[str]) -> str:
    aliases = ALIASES.get("prompt" if name in ("prompt", "question", "post") else "answer", ())
    return next((alias for alias in aliases if alias in there), "<its name>")


def _published(name: str, task: str, config: str | None) -> Schema | None:
    """What is known of a data set on the Hub. Raises where task or config are not its."""
    known = [schema for schema in SCHEMAS if schema.name == name]
    mine = [schema for schema in known if schema.task == task]
    if known and not mine:
        raise DataError(f"{name} is data for task {known[0].task}, not {task}.")
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
    """The first row that is one, and all rows. Raises DataError where none is."""
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
            f"{source} has no labels: the test split of {schema.name} hides them; use "
            f"{schema.eval_split or schema.split}."
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
    return BadRow("no object with columns", type(row).__name__)


# --- the schemas


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MATH_CONFIGS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory"),
    *("prealgebra", "precalculus"),
)

SCHEMAS: tuple[Schema, ...] = (
    # plain tables come first: of schemas that fit equally well, the first is taken
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
    Schema(  # its one split holds both: its column `split` is train or validation
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
        label_columns=frozenset(),  # they stand within `completions`
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
        split="human",  # the other is gpt4_pair
        card=f"{_HUB}lmsys/mt_bench_human_judgments",
    ),
    # summarize: there by a script, which `datasets` no longer runs, and on a branch as Parquet
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
        label_columns=frozenset(),  # they stand within `summary`
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
    Schema(  # of its test split `answerKey` is ""
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
        split="test",  # there is no other
        card=f"{_HUB}HuggingFaceH4/MATH-500",
    ),
    Schema(  # no config holds all subjects: the user names one
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
