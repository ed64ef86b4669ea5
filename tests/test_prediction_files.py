"""Predictions stand beside their input rows, in their order, in each kind of file; nothing is lost."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from femtune import evaluate, predict
from femtune.cli.main import main
from femtune.data.problems import load_problems
from femtune.data.tasks.load import read_task
from femtune.errors import RunError
from femtune.types import Problem
from femtune.workflows.prediction_files import (
    FIELDS,
    PREDICTIONS,
    PredictionCounts,
    as_line,
    beside,
    save_predictions,
)

ASKED = ("--model", "seedling", "--max-new-tokens", "32", "--draws", "2")
OPTIONS: dict[str, Any] = {"max_new_tokens": 32, "draws": 2}
JUDGE = ("--task", "judge", "--scale", "1,5")
FREE = dict.fromkeys(PREDICTIONS.names) | {"id": "a", "votes": {}}

RATED = [
    {
        "id": f"r{n}",
        "prompt": f"What is {n}?",
        "response": "Ein “Satz”, 文, العربية, 🎉",
        "note": None if n == 2 else n,
        "rationale": "mine",
    }
    for n in (3, 1, 2, 0)
]


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read a file of predictions back as the lines have them, votes aside."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_rows_come_in_their_order_with_the_columns_of_the_input(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path / "rows.jsonl", RATED), tmp_path / f"out.{ending}"
    assert main(["predict", str(file), *ASKED, *JUDGE, "--output", str(out)]) == 0
    said = capsys.readouterr()
    rows = read(out)
    for row, given_row in zip(rows, RATED, strict=True):
        for name in ("id", "prompt", "response"):
            assert row[name] == given_row[name]
        assert row["note"] == (
            given_row["note"] if ending != "csv" else str(given_row["note"] or "0")
        ) or (given_row["note"] is None and row["note"] in (None, ""))
        assert row["input_rationale"] == "mine" != row["rationale"]
    assert [*rows[0]][:5] == ["id", "prompt", "response", "note", "input_rationale"]
    assert said.out.splitlines()[0].startswith("4 items: 4 answered (mean confidence ")
    assert "rationale as input_rationale" in said.err


def test_a_file_of_predictions_is_a_table_of_problems_again(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "1?", "mixed": 1, "day": date(2024, 2, 29), "tags": ["a"]},
        {"prompt": "2?", "mixed": "x", "day": None, "tags": []},
    ]
    made = [beside({**FREE, "id": str(n), "answer": "4"}, row) for n, row in enumerate(rows)]
    save_predictions(made, tmp_path / "out.parquet")
    again = load_problems(tmp_path / "out.parquet")
    assert [problem.columns.get("mixed") for problem in again] == [1, "x"]
    assert [problem.columns.get("day") for problem in again] == [date(2024, 2, 29), None]
    assert [problem.answer for problem in again] == ["4", "4"]
    assert json.loads(as_line(made[0]))["day"] == "2024-02-29"


def test_of_no_predictions_there_is_a_table_without_rows(tmp_path: Path) -> None:
    for ending in ("jsonl", "parquet", "csv"):
        save_predictions([], tmp_path / f"out.{ending}")
    assert pq.read_table(tmp_path / "out.parquet").schema.equals(PREDICTIONS)
    assert (tmp_path / "out.csv").read_bytes().decode() == ",".join(PREDICTIONS.names) + "\r\n"
    assert (tmp_path / "out.jsonl").read_text() == ""


NAMES = st.one_of(st.sampled_from([*FIELDS, "input_answer", "input_input_answer", "x"]), st.text())


@given(st.dictionaries(NAMES, st.integers() | st.none() | st.text()))
def test_no_column_of_the_input_is_lost_or_overwrites_a_field(row: dict[str, Any]) -> None:
    made = beside(FREE, row)
    assert {name: made[name] for name in FREE} == FREE
    once = {"id"} if str(row.get("id")).strip() == "a" else set()  # the item's own id
    own = [value for name, value in made.items() if name not in FREE]
    given = [value for name, value in row.items() if name not in once]
    assert sorted(map(repr, own)) == sorted(map(repr, given))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.dictionaries(st.text(min_size=1), st.text(), max_size=3), max_size=4))
def test_every_text_is_found_again_in_csv(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    made = [beside({**FREE, "id": str(n)}, row) for n, row in enumerate(rows)]
    save_predictions(made, tmp_path / "out.csv")
    for found, one in zip(read(tmp_path / "out.csv"), made, strict=True):
        texts = {name: value for name, value in one.items() if isinstance(value, str)}
        assert {name: found[name] for name in texts} == texts


def test_an_id_of_another_form_is_the_items_and_another_column_is_kept() -> None:
    assert beside({"id": "7"}, {"id": 7.0}) == {"id": "7"}
    assert beside({"id": "made"}, {"id": None}) == {"input_id": None, "id": "made"}


def test_what_has_no_answer_is_null_and_counted_by_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo model can't answer a riddle; of those that it answers, it abstains."""
    file = written(tmp_path / "rows.jsonl", [{"prompt": f"Riddle {n}?", "kind": n} for n in range(4)])
    argv = ["predict", str(file), *ASKED, "--abstain-below", "1"]
    assert main([*argv, "--output", str(tmp_path / "out.jsonl")]) == 0
    rows = read(tmp_path / "out.jsonl")
    for row in rows:
        assert (row["answer"] is None) == (row["no_answer"] is not None)
        assert row["abstained"] == (row["no_answer"] == "abstained")
        assert (row["confidence"] is None) == (row["no_answer"] == "unreadable") == (not row["votes"])
    counts = PredictionCounts()
    assert [*counts.count(rows)] == rows
    assert counts.items == counts.answered + counts.abstained + counts.unreadable == 4
    assert capsys.readouterr().out.splitlines()[0] == str(counts)


def test_the_closing_line_counts_items_by_what_became_of_them() -> None:
    counts = PredictionCounts(rows_left_out=2)
    ones = [
        {"no_answer": None, "confidence": 0.5},
        {"no_answer": None, "confidence": 0.75},
        {"no_answer": "abstained", "confidence": 0.2},
        {"no_answer": "unreadable", "confidence": None},
    ]
    assert [*counts.count(ones)] == ones
    line = "4 items: 2 answered (mean confidence 0.62), 1 abstained, 1 unreadable; 2 rows left out"
    assert str(counts) == line
    assert str(PredictionCounts()) == "0 items: 0 answered, 0 abstained, 0 unreadable"


def test_rows_that_are_left_out_have_no_prediction_and_the_others_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*RATED[:2], {"prompt": "Why?", "response": " ", "note": 9}, *RATED[2:]]
    file = written(tmp_path / "rows.jsonl", rows)
    argv = ["predict", str(file), *ASKED, *JUDGE, "--bad-rows", "skip"]
    assert main([*argv, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert [row["prompt"] for row in read(tmp_path / "out.jsonl")] == [row["prompt"] for row in RATED]
    assert "; 1 rows left out" in capsys.readouterr().out


def test_of_a_pair_and_of_several_raters_an_item_has_its_row(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{n}?", "response_a": "Yes.", "response_b": f"No {n}.", "n": n} for n in (2, 1)]
    found = list(predict(pairs, "seedling", task="judge", **OPTIONS))
    assert [one["n"] for one in found] == [2, 1]
    raters = [
        {"prompt": f"{n}?", "response": "So.", "score": s, "rater": r, "n": n}
        for n in (5, 4)
        for s, r in ((1, "Al"), (3, "Bo"))
    ]
    found = list(predict(raters, "seedling", task="judge", scale="1,5", raters="mean", **OPTIONS))
    assert [(one["n"], one["rater"]) for one in found] == [(5, "Al"), (4, "Al")]  # of its first row


def test_published_forms_tables_and_objects_have_their_columns_too(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    [one] = predict([{"id": "q1", **row, "more": [1]}], "seedling", task="choice", **OPTIONS)
    assert (one["question"], one["choices"], one["more"]) == ("Which?", row["choices"], [1])
    [one] = predict(
        [{"question": "1 + 1?", "answer": "#### 2", "x": 1}], "seedling", task="math", **OPTIONS
    )
    assert (one["input_answer"], one["x"]) == ("#### 2", 1)
    [one] = predict([Problem("p", "1 + 1?", "2", {"x": 1})], "seedling", **OPTIONS)
    assert (one["id"], one["prompt"], one["input_answer"], one["x"]) == ("p", "1 + 1?", "2", 1)
    file = written(tmp_path / "t.jsonl", [{"text": "1 + 1?", "prompt": "other", "answer": "2"}])
    [one] = predict(file, "seedling", columns=["prompt=text"], **OPTIONS)
    assert (one["id"], one["text"], one["prompt"]) == ("t-1", "1 + 1?", "other")
    [one] = predict(read_task(file, "table"), "seedling", **OPTIONS)
    assert one["prompt"] == "other"
    [one] = predict(file, "seedling", input_columns=False, **OPTIONS)
    assert "text" not in one


def test_a_mapping_of_answers_that_are_not_there_is_ignored_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.yaml").write_text("columns: [response=text, score=human_score]\ntask: judge\n")
    items = [{"prompt": f"{n}?", "text": "So."} for n in range(2)]
    file = written(tmp_path / "new.jsonl", items)
    argv = ["predict", str(file), *ASKED, "--scale", "1,5", "--config", str(tmp_path / "judge.yaml")]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["text"] for line in said.out.splitlines()] == ["So.", "So."]
    assert "No answers are in score=human_score: the mapping is ignored." in said.err
    assert main([*argv, "--columns", "response=txt"]) == 1  # what is no answer is needed


def test_evaluate_writes_predictions_with_the_correct_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "score": 1 + n} for n, row in enumerate(RATED)]
    file, out = written(tmp_path / "rows.jsonl", rows), tmp_path / "out.csv"
    argv = ["evaluate", str(file), *ASKED[:4], *JUDGE, "--output", str(out)]
    argv += ["--output-dir", str(tmp_path / "run")]
    assert main(argv) == 0
    assert "4 items: 4 answered" in capsys.readouterr().out
    found = read(out)
    assert [(row["id"], row["score"], row["correct_answer"]) for row in found] == [
        (row["id"], str(row["score"]), str(row["score"])) for row in rows
    ]
    [first, *_] = predict(rows, "seedling", max_new_tokens=32, draws=1, temperature=0, **of_judges())
    assert first["answer"] == found[0]["answer"]
    with pytest.raises(RunError, match="exists already"):
        evaluate(file, "seedling", output=out, **of_judges())


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_file_is_read_once(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stars = ("stars", "3", "4") if command == "evaluate" else ("", "", "")
    cells = zip(("prompt;text", "What?;So", "Why?;So"), stars, strict=True)
    (file := tmp_path / "rows.csv").write_text("\n".join(f"{a};{b}".strip(";") for a, b in cells))
    argv = [command, str(file), "--model", "seedling", "--max-new-tokens", "32", "--draws", "1", *JUDGE]
    argv += ["--columns", "response=text", "score=stars", "--output", str(tmp_path / "out.jsonl")]
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 0
    assert capsys.readouterr().err.count("separated by semicolons") == 1
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == ["So", "So"]


def of_judges() -> dict[str, Any]:
    return {"task": "judge", "scale": "1,5"}
