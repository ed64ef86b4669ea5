"""Schemas: published rows become rows of a task, the same from a file and from the Hub's library."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.data.rows import BadRow
from femtune.data.tasks.forms import boxed
from femtune.data.tasks.load import read_task
from femtune.data.tasks.published import SCHEMAS, Schema
from femtune.data.tasks.schemas import find_schema, read_rows
from femtune.errors import ConfigError, DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"
PUBLISHED = sorted(file for file in FIXTURES.glob("*--*.jsonl") if "--test" not in file.name)


def schema_of(file: Path) -> Schema:
    """Of a fixture, by its name: <owner>--<name>[--<config>].jsonl."""
    owner, name, *config = file.stem.split("--")
    named = [schema for schema in SCHEMAS if schema.name == f"{owner}/{name}"]
    return next((s for s in named if not config or config[0] in (s.config, *s.configs)), named[0])


def made(data: str | Path, task: str, **options: Any) -> list[dict[str, Any]]:
    """The rows of data that has no bad one."""
    rows = [row for _, row in read_rows(data, task, **options).rows]
    bad = [(row.what, row.detail) for row in rows if isinstance(row, BadRow)]
    assert not bad
    return [row for row in rows if not isinstance(row, BadRow)]


def faults(data: str | Path, task: str, **options: Any) -> list[str]:
    return [row.what for _, row in read_rows(data, task, **options).rows if isinstance(row, BadRow)]


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- published forms


def test_each_published_form_has_a_fixture() -> None:
    found = {(schema_of(file).name, schema_of(file).rows) for file in PUBLISHED}
    assert found == {(schema.name, schema.rows) for schema in SCHEMAS if schema.card}


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_published_rows_are_the_same_however_they_are_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = schema_of(file)
    found = read_rows(file, schema.task).schema
    rows = made(file, schema.task)
    assert (found.name, found.rows) == (schema.name, schema.rows)
    assert len(rows) >= 6 and all(schema.label in row for row in rows)

    loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
    loaded.to_parquet(tmp_path / "rows.parquet")
    assert made(tmp_path / "rows.parquet", schema.task) == rows

    asked: dict[str, Any] = {}

    def load(path: str, **where: Any) -> Any:
        asked.update(where, id=path)
        return loaded

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert made(schema.name, schema.task, config=schema.config) == rows
    assert asked["id"] == schema.name and asked["split"] == schema.split
    assert asked["data_dir" if schema.in_folder else "name"] == schema.config


def test_hidden_labels_are_named_and_give_items_to_predict() -> None:
    file = FIXTURES / "tau--commonsense_qa--test.jsonl"
    with pytest.raises(
        DataError, match=r"publisher of tau/commonsense_qa hides those of its test split: use validation"
    ):
        made(file, "choice")
    rows = made(file, "choice", labels=False)
    assert len(rows) == 6 and not any("answer" in row for row in rows)


def test_a_label_that_is_not_applicable_gives_no_row(caplog: pytest.LogCaptureFixture) -> None:
    file = FIXTURES / "openbmb--UltraFeedback.jsonl"
    # 6 rows of 2 completions with 4 aspects; honesty is N/A in 2 rows, that is of 4 completions
    caplog.set_level(logging.INFO, "femtune")
    assert len(made(file, "judge", labels=False)) == 6 * 2 * 4
    assert not caplog.text
    assert len(made(file, "judge")) == 6 * 2 * 4 - 4
    assert "UltraFeedback.jsonl: 4 items have no label, and are left out." in caplog.text


def test_of_several_raters_each_gives_a_row() -> None:
    rows = made(FIXTURES / "nvidia--HelpSteer3--preference.jsonl", "judge")
    # 4 rows with 3 raters, one with 2, and one with the overall preference alone
    assert len(rows) == 4 * 3 + 2 + 1
    first = rows[0]
    assert (first["preference"], first["strength"], first["rater"]) == ("A", 3, "rater 1")
    assert "rater" not in rows[-1]
    assert len({row["item"] for row in rows}) == 6


def test_a_conversation_becomes_text() -> None:
    rows = made(FIXTURES / "nvidia--HelpSteer3--preference.jsonl", "judge")
    assert rows[0]["prompt"] == "Why is the sky blue?"
    several = next(row["prompt"] for row in rows if row["prompt"].startswith("User: "))
    assert several.count("\n\n") == 2 and "\n\nAssistant: Is it an old one?" in several
    marked = made(FIXTURES / "nvidia--HelpSteer2.jsonl", "judge")[-1]["prompt"]
    assert marked == (
        "User: How long do eggs boil?\n\nAssistant: Do you like them soft?\n\nUser: No, firm."
    )


def test_an_article_stands_for_a_post() -> None:
    rows = made(FIXTURES / "openai--summarize_from_feedback--comparisons.jsonl", "summarize")
    assert rows[-1]["post"].startswith("The council") and rows[-1]["source"] == "cnn"
    assert [row["preference"] for row in rows] == ["A", "A", "B", "A", "B", "A"]


def test_final_answers_are_found() -> None:
    gsm8k = made(FIXTURES / "openai--gsm8k--main.jsonl", "math")
    assert [row["answer"] for row in gsm8k] == ["12", "1080", "-2", "3.5", "140", "18"]
    same = [
        made(FIXTURES / name, "math")
        for name in ("HuggingFaceH4--MATH-500.jsonl", "EleutherAI--hendrycks_math--algebra.jsonl")
    ]
    assert [row["answer"] for row in same[0]] == [row["answer"] for row in same[1]]
    assert boxed(r"\boxed{1} and \boxed{\text{a\}}}") == r"\text{a\}}"
    assert boxed(r"\boxed{unclosed") == boxed("none") == ""


def test_labels_of_choices_stay_as_published() -> None:
    row = made(FIXTURES / "allenai--ai2_arc--ARC-Challenge.jsonl", "choice")[2]
    assert (row["labels"], row["answer"]) == (["1", "2", "3", "4"], "3")
    mmlu = read_task(FIXTURES / "cais--mmlu--all.jsonl", "choice")
    assert mmlu.problems[0].answer == "B"
    assert mmlu.report.codings == ("`answer`: each answer is a position from 0.",)


# --- plain tables


@pytest.mark.parametrize(
    ("file", "task", "name"),
    [
        ("judge-ratings.csv", "judge", "judge ratings"),
        ("judge-pairs.jsonl", "judge", "judge pairs"),
        ("summary-pairs.jsonl", "summarize", "summary pairs"),
        ("summary-ratings.jsonl", "summarize", "summary ratings"),
        ("choice-questions.csv", "choice", "choice questions"),
        ("math-problems.jsonl", "math", "math problems"),
    ],
)
def test_plain_tables_are_known(file: str, task: str, name: str) -> None:
    schema = read_rows(FIXTURES / file, task).schema
    assert schema.name == name
    assert len(made(FIXTURES / file, task)) == 6


def test_cells_of_csv_are_read_as_the_same_rows() -> None:
    file = FIXTURES / "allenai--ai2_arc--ARC-Challenge.csv"
    assert made(file, "choice") == made(file.with_suffix(".jsonl"), "choice")
    assert [row["score"] for row in made(FIXTURES / "judge-ratings.csv", "judge")] == [5, 4, 5, 4, 5, 4]


def test_other_columns_stay_with_a_row(tmp_path: Path) -> None:
    world = {"world": "shop", "evidence": {"q": 1}, "truth": 0.5}
    row = {"prompt": "Why?", "response": "So.", "score": "good", "item": 7, "mine": [1]} | world
    file = jsonl(tmp_path / "rows.jsonl", [row])
    assert made(file, "judge") == [row | {"item": "7"}]
    published = json.loads((FIXTURES / "nvidia--HelpSteer2.jsonl").read_text().splitlines()[0])
    rows = made(jsonl(file, [published | world]), "judge")
    assert len(rows) == 5 and all(row.items() >= world.items() for row in rows)


def test_renamed_columns_make_a_table_of_a_published_form() -> None:
    file = FIXTURES / "nvidia--HelpSteer2.jsonl"
    schema = read_rows(file, "judge", columns={"score": "helpfulness"}).schema
    rows = made(file, "judge", columns={"score": "helpfulness"})
    assert schema.name == "judge ratings" and len(rows) == 9 and rows[0]["score"] == 4


# --- what can't be used


@pytest.mark.parametrize(
    ("task", "row", "what"),
    [
        (
            "judge",
            {"prompt": "a", "response": "b", "score": [[1]]},
            "`score` is not a number or a label",
        ),
        ("judge", {"prompt": "a", "response": "b", "score": [None]}, "`score` is empty"),
        ("judge", {"prompt": "a", "response": "b", "score": None}, "`score` is empty"),
        ("judge", {"prompt": "a", "response": {"a": 7}, "score": 1}, "`response` is not text"),
        ("judge", {"prompt": [], "response": "b", "score": 1}, "`prompt` is empty"),
        ("choice", {"question": "q", "choices": ["a"], "answer": "A"}, "`choices` must be 2 to 26"),
        (
            "choice",
            {"question": "q", "choices": "a, b", "answer": "A"},
            "`choices` is text, but not JSON of a list or object",
        ),
        ("math", {"question": "q", "answer": "It is so. ####"}, "`answer` has nothing after ####"),
        ("math", {"prompt": "q", "answer": float("nan")}, "`answer` is not text or a finite number"),
    ],
)
def test_a_bad_row_says_what_is_wrong(task: str, row: dict[str, Any], what: str, tmp_path: Path) -> None:
    assert faults(jsonl(tmp_path / "rows.jsonl", [row]), task) == [what]


def test_a_later_row_without_a_column_is_bad(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b"}, 7, {"prompt": "c", "answer": 2}]
    found = [*read_rows(jsonl(tmp_path / "rows.jsonl", rows), "math").rows]
    assert [place for place, _ in found] == [1, 2, 3, 4]
    assert [row.what for _, row in found if isinstance(row, BadRow)] == [
        "`answer` is missing",
        "not an object with columns",
    ]


def test_a_choice_of_summary_is_0_or_1(tmp_path: Path) -> None:
    file = FIXTURES / "openai--summarize_from_feedback--comparisons.jsonl"
    row = json.loads(file.read_text().splitlines()[0]) | {"choice": 2}
    assert faults(jsonl(tmp_path / "rows.jsonl", [row]), "summarize") == ["`choice` is not 0 or 1"]


def refused(data: str | Path, task: str, *words: str, **options: Any) -> None:
    with pytest.raises((DataError, ConfigError)) as refusal:
        made(data, task, **options)
    for word in words:
        assert word in str(refusal.value)


def test_unknown_columns_are_named_with_the_flag_that_may_help(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [{"question": "q", "response": "a", "rating": 3}])
    words = (
        "The nearest schema is judge ratings",
        "--columns prompt=question score=rating",
        "nvidia/HelpSteer2",
    )
    refused(file, "judge", *words)
    renamed = {"prompt": "question", "score": "rating"}
    assert made(file, "judge", columns=renamed)[0]["score"] == 3
    refused(file, "judge", "no column 'scor'", "Did you mean score?", columns={"scor": "rating"})
    refused(file, "judge", "no column `ratin`", "Did you mean score=rating?", columns={"score": "ratin"})


def test_data_of_another_task_is_named() -> None:
    refused(FIXTURES / "cais--mmlu--all.jsonl", "math", "holds rows for task choice")
    refused(FIXTURES / "openai--gsm8k--main.jsonl", "judge", "those of openai/gsm8k, for task math")
    refused("openai/gsm8k", "judge", "holds data for task math, not judge")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "rows.jsonl", "judge", "no file")
    refused("rows/rows.parquet", "judge", "no file rows/rows.parquet")
    refused(jsonl(tmp_path / "rows.jsonl", [3]), "math", "not an object with columns")
    refused(FIXTURES / "judge-pairs.jsonl", "judge", "is a file", split="test")


def test_the_hub_out_of_reach_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    words = ("can't be loaded from the Hub", "Couldn't reach", "femtune ... math path/to/file.parquet")
    refused("openai/gsm8k", "math", *words)
    refused("nobody/nothing", "math", "there is no file nobody/nothing", *words)
    refused("nvidia/HelpSteer3", "judge", "no config 'prefrence'", "Did you", config="prefrence")


def test_an_unknown_config_or_split_is_said_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, load = FIXTURES / "openai--gsm8k--main.jsonl", datasets.load_dataset

    def local(path: str, split: str, **_: Any) -> Any:
        return load("json", data_files={"train": str(file)}, split=split, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", local)
    refused("openai/gsm8k", "math", 'Unknown split "tst"', "train", split="tst")
    assert len(made("openai/gsm8k", "math")) == 6


def test_a_folder_of_the_hub_has_splits_by_its_folders(tmp_path: Path) -> None:
    # the layout of the branch refs/convert/parquet: <config>/<split>/0000.parquet
    file = FIXTURES / "openai--summarize_from_feedback--axis.jsonl"
    (tmp_path / "hub/axis/validation").mkdir(parents=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "hub/axis/validation/0000.parquet")
    loaded = datasets.load_dataset(
        str(tmp_path / "hub"), data_dir="axis", split="validation", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.to_list() == rows


def test_any_row_is_read_or_bad() -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(SCHEMAS), st.data())
    def check(schema: Schema, data: st.DataObject) -> None:
        names = ["role", "content", "text", "label", "axes", "annotations", "response", "post"]
        leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
        cells = st.recursive(
            leaves | st.sampled_from(["A", "1", "user", "tie", "[1", "\ud800", "\\boxed{", "N/A"]),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(names), inner, max_size=3)
            ),
            max_leaves=6,
        )
        row = {name: data.draw(cells) for name in sorted(schema.columns | schema.also)}
        try:
            rows = [*schema.rows(row)]
        except BadRow as fault:
            assert fault.what
        else:
            assert all(isinstance(found, dict) and len(found) > 1 for found in rows)

    check()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_changed_cell_of_a_published_row_is_read_or_bad(data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(PUBLISHED))
    row = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    target = row
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(target[key], (dict, list)) and target[key] and data.draw(st.booleans())):
            break
        target = target[key]
    others = [None, "", " ", True, -1, 10**400, 0.5, float("inf"), [], {}]
    target[key] = data.draw(st.sampled_from(others))
    try:
        rows = [*schema_of(file).rows(row)]
    except BadRow as fault:
        assert re.search("`|choice", fault.what)
    else:
        assert all(isinstance(found, dict) for found in rows)


def test_the_schema_with_most_columns_is_found() -> None:
    assert find_schema("choice", ["question", "choices", "answer"], "x").name == "choice questions"
    assert find_schema("choice", ["question", "choices", "answer", "subject"], "x").name == "cais/mmlu"
    assert find_schema("judge", ["prompt", "response"], "x", labels=False).name == "judge ratings"
