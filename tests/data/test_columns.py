"""Columns are found by name or by a path into nested cells; a path that stops says where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.columns import cell, check_column, root_of
from femtune.data.problems import load_problems
from femtune.data.rows import BadRow
from femtune.data.tasks.load import Options, read_task
from femtune.errors import DataError

ROW: dict[str, Any] = {
    "question": {"stem": "Why?", "choices": [{"label": "A", "text": "so"}, {"label": "B"}]},
    "marks": [{"coherence": 4}, {"coherence": 5}],
    "summaries": [{"text": "first"}, {"text": "second"}],
    "grid": [[1, 2], [3]],
    "info": None,
    "n": 7,
    "as_text": "[{'text': 'inside'}]",
    "plain": "words",
    "a.b": "dotted",
    "a": {"b": "nested", "x[]": 1},
    "deep": {"b.c": "dotted below"},
    "x[0]": "bracketed",
    "": {"y": 2},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("n", 7),
        ("question.stem", "Why?"),
        ("question.choices[].text", ["so", None]),
        ("question.choices[1].label", "B"),
        ("marks[].coherence", [4, 5]),
        ("summaries[0].text", "first"),
        ("summaries[]", ROW["summaries"]),
        ("summaries[-1].text", "second"),
        ("summaries[:-1]", ROW["summaries"][:1]),
        ("summaries[:1].text", ["first"]),
        ("marks[:-2]", []),
        ("grid[][0]", [1, 3]),
        ("grid[0][1]", 2),
        ("as_text[0].text", "inside"),
        ("info.site", None),  # a null has no further values
        ("question.hint", None),  # JSON may leave out a key that is null
        ("a.b", "dotted"),
        ("deep.b.c", "dotted below"),
        ("a.x[]", 1),
        ("x[0]", "bracketed"),
        ("nowhere", None),
    ],
)
def test_a_path_leads_to_its_value(path: str, value: Any) -> None:
    assert cell(ROW, path) == value


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("n.m", "`n` is a number (7), not an object"),
        ("plain.m", "`plain` is text ('words'), not a list or object"),
        ("plain[0]", "`plain` is text ('words'), not a list or object"),
        ("question[0]", "`question` is an object"),
        ("summaries.text", "`summaries` is a list"),
        ("summaries[2].text", "there is no `summaries[2]`; the list has 2 items"),
        ("summaries[x].text", "needs the form [], [0], [-1] or [:-1]"),
        ("summaries[-3]", "there is no `summaries[-3]`; the list has 2 items"),
        ("summaries[:]", "needs the form [], [0], [-1] or [:-1]"),
        ("question.stem.x", "`question.stem` is text ('Why?')"),
    ],
)
def test_a_path_through_something_else_is_a_bad_row(path: str, why: str) -> None:
    with pytest.raises(BadRow, match="has no value") as fault:
        cell(ROW, path)
    assert why in fault.value.detail


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("question.stm", "for `prompt`: `question` has no `stm`; it has `stem`, `choices`."),
        ("question.choices[].txt", "`question.choices[]` has no `txt`; it has `label`, `text`."),
        ("summaries[2].text", "there is no `summaries[2]`; the list has 2 items."),
        ("qestion", "it has `question`, `marks`"),
        ("qestion", "Did you mean prompt=question?"),
    ],
)
def test_the_first_row_tells_where_a_path_stops(path: str, why: str) -> None:
    with pytest.raises(DataError) as fault:
        check_column(ROW, path, "prompt", "rows.jsonl")
    said = str(fault.value)
    assert said.startswith(f"rows.jsonl has no column `{path}` for `prompt`") and why in said


KEYS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=4)


@given(st.lists(KEYS | st.integers(0, 3), max_size=6), st.integers())
def test_any_path_leads_to_what_it_was_made_for(steps: list[str | int], value: int) -> None:
    nested: Any = value
    path = "root"
    for step in reversed(steps):
        nested = {step: nested} if isinstance(step, str) else [None] * step + [nested]
    for step in steps:
        path += f".{step}" if isinstance(step, str) else f"[{step}]"
    row = {"root": nested}
    assert cell(row, path) == value and root_of(path, row) == "root"
    assert cell({path: value, **row}, path) == value


def test_nested_columns_become_problems_and_stay_with_them(tmp_path: Path) -> None:
    rows = [
        {"ask": {"text": f"What is {n} + 2?"}, "gold": [{"value": n + 2}], "meta.level": "easy"}
        for n in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = {"prompt": "ask.text", "answer": "gold[0].value", "id": "meta.level"}
    with pytest.raises(DataError, match="duplicate `id`"):
        load_problems(tmp_path / "a.jsonl", columns=columns)
    del columns["id"]
    for name in ("a.jsonl", "a.parquet"):
        problems = load_problems(tmp_path / name, columns=columns)
        assert [(each.prompt, each.answer) for each in problems][1] == ("What is 1 + 2?", "3")
        assert problems[0].columns["meta.level"] == "easy" and "gold" in problems[0].columns


def test_a_conversation_with_its_answer_is_taken_apart(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    row = {"messages": [*asked, {"role": "assistant", "content": "4"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    flags = "--columns 'prompt=messages[:-1]' 'answer=messages[-1].content'"
    with pytest.raises(DataError, match=re.escape(flags)):
        load_problems(tmp_path / "a.jsonl")
    columns = {"prompt": "messages[:-1]", "answer": "messages[-1].content"}
    [problem] = load_problems(tmp_path / "a.jsonl", columns=columns)
    assert (problem.prompt, problem.answer) == (asked, "4")


def test_a_choice_within_its_question_is_read(tmp_path: Path) -> None:
    options = [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}]
    row = {"question": {"stem": "Which is warm?", "choices": options}, "key": "A"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    names = {"question": "question.stem", "choices": "question.choices[].text", "answer": "key"}
    found = read_task(tmp_path / "a.jsonl", "choice", Options(columns=names))
    [problem] = found.problems
    assert problem.answer == "A" and "Which is warm?" in str(problem.prompt)
    names["choices"] = "question.choices[].txt"
    with pytest.raises(DataError, match=r"`question.choices\[\]` has no `txt`"):
        read_task(tmp_path / "a.jsonl", "choice", Options(columns=names))


def test_a_template_shows_nothing_that_holds_the_answer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Why?", "gold": {"value": 4}}')
    options = Options(columns={"answer": "gold.value"}, prompt_template="{prompt} {gold}")
    with pytest.raises(Exception, match="the correct answer: leave it out"):
        read_task(tmp_path / "a.jsonl", "table", options)
