"""Lists, objects and messages that stand as text in a cell are read as what they are."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.messages import read_prompt
from femtune.data.nested import parse_nested
from femtune.data.prompts import as_messages
from femtune.data.rows import BadRow
from femtune.data.tasks.load import Options, TaskData, read_task
from femtune.errors import DataError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "It's 2."},
    {"role": "user", "content": '2 + 2?\nSay "4".'},
]

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
NESTED = st.lists(VALUES) | st.dictionaries(st.text(), VALUES)


@given(NESTED)
def test_what_json_and_python_print_is_read_back(value: Any) -> None:
    assert parse_nested(json.dumps(value)) == value
    assert parse_nested(json.dumps(value, indent=1, ensure_ascii=False)) == value
    assert parse_nested(repr(value)) == value


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8))
def test_what_numpy_prints_is_read_back(texts: list[str]) -> None:
    for dtype in (object, np.str_):
        made = np.array(texts, dtype=dtype)
        expected = made.tolist()  # numpy cuts null characters off the end of its own texts
        assert parse_nested(str(made)) == expected
        assert parse_nested(str({"text": made})) == {"text": expected}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1 -2  3.5]", [1, -2, 3.5]),
        ("[4. 5.]", [4.0, 5.0]),
        ("[['a' 'b']\n ['c' 'd']]", [["a", "b"], ["c", "d"]]),
        ("[{'role': 'user'}\n {'role': 'x'}]", [{"role": "user"}, {"role": "x"}]),
        ("{'text': array(['a', \"b's\"], dtype=object)}", {"text": ["a", "b's"]}),
        ("[array([1, 2]), array([3], dtype=int64)]", [[1, 2], [3]]),
        ("('a', 'b')", None),
        ("[nan 1.]", [None, 1.0]),
        ("[]", []),
        ("['a' 'b' ... 'y' 'z']", None),  # shortened
        ("['a', b'b']", None),
        ("[f'{x}']", None),
        ("[1j]", None),
        ("['a'] + ['b']", None),
        ("[__import__('os')]", None),
        ("{'a'}", None),
        ("{1: 2}", None),
        ("{'a': 'b' 'c'}", None),
        ("['a", None),
        ("[" * 5000, None),
        ("a", None),
        ("", None),
    ],
)
def test_what_python_and_numpy_print_otherwise(text: str, value: Any) -> None:
    if value is not None:
        assert parse_nested(text) == value
        return
    with pytest.raises(ValueError):
        parse_nested(text)


@given(st.text("[]{}()'\"\\,:-. 1anrf\n", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_nested(text), list | dict)


# --- prompts


@pytest.mark.parametrize("text", [json.dumps(TALK), repr(TALK), str(np.array(TALK, dtype=object))])
def test_messages_as_text_are_messages(text: str) -> None:
    assert read_prompt(text, "prompt") == TALK


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]",
        '[{"role": "admin", "id": 3}]',
        'What is [{"role": "user", "content": "x"}]?',
        '[{"a": 1}] is a list, and {"role": "user"} is none',
        "[x] Which is right?",
    ],
)
def test_other_text_stays_text(text: str) -> None:
    assert read_prompt(text, "prompt") == text


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("[{'role': 'user', 'content': 'x' ... }]", "text of a list of messages, and can't be read"),
        ('[{"role": "user", "content": "x"} oh]', "text of a list of messages, and can't be read"),
        ([{"from": "human", "value": "x"}], "without `role` and `content`"),
        ([{"role": "user", "content": [{"type": "image"}]}], "without `role` and `content`"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}],
            "without `role` and `content`",
        ),
        (json.dumps(TALK[:3]), 'not of role "user"'),
        ({"role": "user", "content": "x"}, "must be text or a list of messages"),
    ],
)
def test_messages_that_can_not_be_asked_are_refused(value: Any, what: str) -> None:
    with pytest.raises(BadRow, match=what):
        read_prompt(value, "prompt")


def test_a_content_of_one_text_is_that_text() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Why?"}], "name": None}]
    assert read_prompt(parts, "prompt") == [{"role": "user", "content": "Why?"}]


# --- in each task


def task_of(tmp_path: Path, suffix: str, task: str, row: dict[str, Any]) -> TaskData:
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(row))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(row), [*row.values()]])  # lists as Python prints them
    scale = "1,5" if task == "judge" else None
    return read_task(path, task, Options(scale=scale))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("table", {"prompt": TALK, "answer": "4"}),
        ("math", {"prompt": TALK, "answer": "4"}),
        ("math", {"question": TALK, "answer": "#### 4"}),
        ("math", {"problem": TALK, "level": "1", "type": "x", "solution": r"\boxed{4}"}),
        ("choice", {"question": TALK, "choices": ["3", "4"], "answer": "B"}),
    ],
)
def test_a_prompt_of_messages_is_asked_as_messages(
    tmp_path: Path, suffix: str, task: str, row: dict[str, Any]
) -> None:
    [problem] = task_of(tmp_path, suffix, task, row).problems
    asked = as_messages(problem.prompt)
    assert [message["role"] for message in asked] == [message["role"] for message in TALK]
    assert list(asked[:-1]) == TALK[:-1] and asked[-1]["content"].startswith(TALK[-1]["content"])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_judge_reads_a_conversation_as_text(tmp_path: Path, suffix: str) -> None:
    row = {"prompt": TALK, "response": "4", "score": 5}
    [problem] = task_of(tmp_path, suffix, "judge", row).problems
    assert "System: Be brief.\n\nUser: 1 + 1?\n\nAssistant: It's 2." in str(problem.prompt)
    assert "'role'" not in str(problem.prompt)


@pytest.mark.parametrize(
    "choices", ["['0', '1']", '["0", "1"]', "['0' '1']", "('0', '1')", "[0 1]", "[0, 1]"]
)
def test_choices_as_text_are_choices(tmp_path: Path, choices: str) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["question", "choices", "answer"], ["Which?", choices, "B"]])
    if choices.startswith("("):
        with pytest.raises(DataError, match="text, but not JSON"):
            read_task(path, "choice")
        return
    [problem] = read_task(path, "choice").problems
    assert "A. 0\nB. 1" in str(problem.prompt)


def test_a_row_with_messages_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    text = "[{'role': 'user', 'content': 'x' ...}]"
    for task in ("table", "math"):
        with pytest.raises(DataError, match="can't be read: line 1"):
            task_of(tmp_path, ".jsonl", task, {"prompt": text, "answer": "4"})
