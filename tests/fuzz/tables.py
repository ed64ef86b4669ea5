"""Files of problems, in every form that a data set is published in."""

from __future__ import annotations

import contextlib
import csv
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, get_args

from femtune._util.parsing import named_pairs
from femtune.data.files.columnar import JSON_COLUMNS
from femtune.data.files.reading import file_rows
from femtune.data.problems import check_gold, load_problems, save_problems, split
from femtune.data.prompts import Prompts, as_messages, prompt_text
from femtune.data.rows import BadRow
from femtune.data.tasks import load
from femtune.data.tasks.frames import frame
from femtune.data.tasks.judge import Raters
from femtune.data.tasks.load import Options, TaskData
from femtune.data.tasks.published import SCHEMAS
from femtune.data.tasks.schemas import read_rows
from femtune.data.worlds import SEEDLING
from femtune.engines.model_files import load_tokenizer
from femtune.errors import DataError, FemtuneError
from femtune.evaluation.aggregate import item_id
from femtune.rewards.builtin import as_reward
from femtune.run_folder import fingerprint
from femtune.types import DrawKey, Problem, draw_seed

from .forms import FORMS, as_dialect
from .mangling import (
    File,
    Row,
    as_csv,
    as_json,
    as_jsonl,
    as_parquet,
    rows,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"

_PLAIN: list[Row] = [
    {"id": f"t-{i}", "prompt": f"What is {i} + 2?", "answer": i + 2, "axis": "help", "terms": [i, 2]}
    for i in range(4)
]
_MESSAGES: list[Row] = [
    {
        "prompt": [{"role": role, "content": f"Say {i}."} for role in ("user", "assistant", "user")],
        "answer": str(i),
        "truth": {"a": i},
    }
    for i in range(4)
]
_WRITERS: dict[str, Callable[[Random, Sequence[Any]], bytes]] = {
    ".jsonl": as_jsonl,
    ".json": as_json,
    ".csv": as_dialect,
    ".tsv": partial(as_csv, delimiter="\t"),
    ".parquet": partial(as_parquet, metadata=[JSON_COLUMNS, b"ARROW:schema", b"pandas"]),
}


def make_table(suffix: str, rng: Random) -> File:
    if rng.random() < 0.02:
        return File(f"data{suffix}", rng.randbytes(rng.randrange(200)))
    return File(f"data{suffix}", _WRITERS[suffix](rng, rows(rng, rng.choice((_PLAIN, _MESSAGES)))))


def read_table(file: File, folder: Path) -> None:
    rng, path = Random(file.content), file.write(folder)
    columns = rng.choice(({}, {}, {}, {"answer": "axis"}, {"prompt": "id"}, {"id": "answer"}))
    found = load_problems(path, columns=columns, answers=rng.random() < 0.7)
    num_rows = sum(1 for _ in file_rows(path))
    assert len(found) == num_rows, f"{len(found)} problems of {num_rows} rows"
    _use(found, folder)


def _use(problems: Sequence[Problem], folder: Path, prompts: Prompts | None = None) -> None:
    """What a run does with problems: both prompts, a hash, a split, and a file that gives them back."""
    prompts = prompts or Prompts()
    for problem in problems[:3]:
        asked = tokenizer().encode_prompt(prompts.plain(problem))
        tokenizer().encode_prompt(prompts.hinted(problem))
        read = tokenizer().tokenizer.decode(asked, clean_up_tokenization_spaces=False)
        for message in as_messages(problem.prompt):
            assert plain(message["content"]) in plain(read), f"{problem} is asked as {read!r}"
    for problem in problems:
        draw_seed(0, DrawKey(1, problem.id, 0, 0))
    fingerprint(problems)
    stored = folder / "problems.parquet"
    stored.unlink(missing_ok=True)
    save_problems(problems, stored)
    again = load_problems(stored, answers=all(problem.answer for problem in problems))
    for got, kept in zip(again, problems, strict=True):
        assert _is_same(got, kept), f"{got} of {kept}"
    with contextlib.suppress(DataError):  # a side may be empty
        split(problems, 0.5, seed=0)


def _is_same(got: Problem, kept: Problem) -> bool:
    """Equal, but for nan, which is no nan, and a time, which may be of another class."""
    pairs = [(got.id, kept.id), (got.prompt, kept.prompt), (got.answer, kept.answer)]
    pairs += [
        (got.columns.get(name), kept.columns.get(name)) for name in {**got.columns, **kept.columns}
    ]
    return all(one == other or repr(one) == repr(other) for one, other in pairs)


# --- tasks


@cache
def _published(task: str) -> tuple[list[Row], ...]:
    """The rows of each fixture of a task, in the form of a data set that is published."""
    of_hub = {schema.name.replace("/", "--"): schema.task for schema in SCHEMAS}
    plain = {"choice-": "choice", "judge-": "judge", "math-": "math", "summary-": "summarize"}
    of_file = {**of_hub, **plain}
    found = []
    for path in sorted(FIXTURES.iterdir()):
        if next((of_file[name] for name in of_file if path.name.startswith(name)), "") != task:
            continue
        with path.open(encoding="utf-8", newline="") as lines:
            own = (
                [*csv.DictReader(lines)]
                if path.suffix == ".csv"
                else [json.loads(line) for line in lines]
            )
        found.append(own)
    return (*found, *(form for form, _ in FORMS[task]))


def make_task(task: str, rng: Random) -> File:
    good = rng.choice(_published(task))
    if rng.random() < 0.03:
        good = rng.choice(_published(rng.choice(("judge", "summarize", "choice", "math"))))
    suffix = rng.choice((".jsonl", ".jsonl", ".jsonl", ".json", ".csv", ".parquet"))
    return File(f"data{suffix}", _WRITERS[suffix](rng, rows(rng, good)))


def read_task(task: str, file: File, folder: Path) -> None:
    rng, path = Random(file.content), file.write(folder)
    judged = task in ("judge", "summarize")
    scales = (*[None] * 5, "1,5", "0,4", "1,7", "A,B,tie", "bad,good")
    renamed = {"score": "rating"} if judged else {"answer": "id"}
    given: dict[str, str] = rng.choice([mapping for _, mapping in FORMS[task]])
    options = Options(
        columns=renamed if rng.random() < 0.05 else given if rng.random() < 0.3 else {},
        header=rng.random() < 0.95,
        scale=rng.choice(scales) if judged else None,
        attributes=rng.choice((*[()] * 8, ("helpfulness",), ("overall", "style"))) if judged else (),
        raters=rng.choice(get_args(Raters)),
        labels=rng.choice((*[{}] * 9, {"1": "A", "2": "B"})),
        bad_rows=rng.choice(("stop", "skip", "skip")),
    )
    labels = rng.random() < 0.8
    try:
        found: TaskData = load.read_task(path, task, options, answers=labels)
    except DataError as error:
        _paste(path, str(error), options, labels)
        raise
    check_rows(path, task, options, found, labels)
    if labels:
        check_gold(found.problems, as_reward(found.reward), prompts=found.prompts)
    _use(found.problems, folder, found.prompts)


def _paste(path: Path, said: str, options: Options, labels: bool) -> None:
    """Flags that an error proposes read the columns: what is refused then is a row, or its labels."""
    _, _, flags = said.partition("These flags would read it:\n")
    if not flags:
        return
    _, task, *words = shlex.split(flags.splitlines()[0])
    columns = named_pairs("columns", words[1:])
    with contextlib.suppress(FemtuneError):
        load.read_task(path, task, replace(options, columns=columns), answers=labels)
    if task != "table":
        own = read_rows(path, task, columns=columns, header=options.header, labels=labels)
        assert own.schema.task == task


# the columns of a task's row that its prompt must have, by task and form of the problem
_TEXTS = {
    ("judge", "rating"): ("prompt", "response"),
    ("judge", "pair"): ("prompt", "response_a", "response_b"),
    ("summarize", "rating"): ("post", "summary"),
    ("summarize", "pair"): ("post", "summary_a", "summary_b"),
    ("choice", "choice"): ("question", "choices"),
    ("math", "math"): ("prompt",),
}


def check_rows(path: Path, task: str, options: Options, found: TaskData, labels: bool) -> None:
    """No row is lost: each is in a problem or counted, and each problem asks for its row's texts."""
    report, merged = found.report, options.raters not in ("each", "named")
    items = {item_id(problem) for problem in found.problems}
    rows_in, rows_out = report.num_rows, len(items) + report.num_skipped
    assert rows_out <= rows_in if merged else rows_out == rows_in, f"{rows_in} rows, {report}, {items}"
    source = read_rows(path, task, columns=options.columns, header=options.header, labels=labels)
    made = [*source.rows]
    given = {place for place, _ in file_rows(path, options.header)}
    lost = given - {place for place, _ in made}
    assert not lost or source.schema.gaps, f"rows {lost} of {given} are lost"
    for problem in found.problems:
        rows = [row for place, row in made if place == found.places[problem.id]]
        known = frame(problem)
        assert known is not None
        names, asked = _TEXTS[task, known.form], plain(prompt_text(problem.prompt))
        assert any(all(text in asked for text in _texts(row, names)) for row in rows), (rows, problem)


def _texts(row: Any, names: Sequence[str]) -> list[str]:
    """The texts of a task's row in these columns."""
    if isinstance(row, BadRow):
        return ["no such text"]
    values = [row[name] for name in names if name in row]
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return [plain(part["content"] if isinstance(part, dict) else part) for part in parts]


def plain(text: str) -> str:
    """A text without its spaces, which prompts may put otherwise."""
    return "".join(text.split())


@cache
def tokenizer() -> Any:
    return load_tokenizer(SEEDLING)
