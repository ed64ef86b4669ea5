"""Files of problems, in every form that a data set is published in."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, get_args

from femtune.data.files.columnar import JSON_COLUMNS
from femtune.data.problems import check_gold, load_problems, save_problems, split
from femtune.data.prompts import Prompts
from femtune.data.tasks import load
from femtune.data.tasks.judge import Raters
from femtune.data.tasks.load import Options, TaskData
from femtune.data.tasks.published import SCHEMAS
from femtune.data.worlds import SEEDLING
from femtune.engines.model_files import load_tokenizer
from femtune.errors import DataError
from femtune.rewards.builtin import as_reward
from femtune.run_folder import fingerprint
from femtune.types import DrawKey, Problem, draw_seed

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
    ".csv": as_csv,
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
    _use(load_problems(path, columns=columns, answers=rng.random() < 0.7), folder)


def _use(problems: Sequence[Problem], folder: Path, prompts: Prompts | None = None) -> None:
    """What a run does with problems: both prompts, a hash, a split, and a file that gives them back."""
    prompts = prompts or Prompts()
    for problem in problems[:3]:
        tokenizer().encode_prompt(prompts.plain(problem))
        tokenizer().encode_prompt(prompts.hinted(problem))
    for problem in problems:
        draw_seed(0, DrawKey(1, problem.id, 0, 0))
    fingerprint(problems)
    stored = folder / "problems.parquet"
    stored.unlink(missing_ok=True)
    save_problems(problems, stored)
    again = load_problems(stored, answers=all(problem.answer for problem in problems))
    for got, kept in zip(again, problems, strict=True):
        assert got == kept or repr(got) == repr(kept), f"{got} of {kept}"  # nan is no nan
    with contextlib.suppress(DataError):  # a side may be empty
        split(problems, 0.5, seed=0)


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
    return tuple(found)


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
    options = Options(
        columns=renamed if rng.random() < 0.05 else {},
        scale=rng.choice(scales) if judged else None,
        attributes=rng.choice((*[()] * 8, ("helpfulness",), ("overall", "style"))) if judged else (),
        raters=rng.choice(get_args(Raters)),
        bad_rows=rng.choice(("stop", "skip", "skip")),
    )
    labels = rng.random() < 0.8
    found: TaskData = load.read_task(path, task, options, answers=labels)
    if labels:
        check_gold(found.problems, as_reward(found.reward), prompts=found.prompts)
    _use(found.problems, folder, found.prompts)


@cache
def tokenizer() -> Any:
    return load_tokenizer(SEEDLING)
