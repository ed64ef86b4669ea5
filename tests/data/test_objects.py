"""Rows in memory are read as the same rows in a file are; what can't be read says what to give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import femtune
from femtune.data.objects import rows_of
from femtune.errors import ConfigError, DataError, RunError
from femtune.types import Problem

MADE: list[dict[str, Any]] = [
    {"prompt": f"What is {n} + 2?", "answer": n + 2, "tags": ["easy", str(n)], "of": {"a": n, "b": None}}
    for n in range(30)
]


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(rows)


def as_pandas(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows)


def as_polars(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("polars").DataFrame(rows)


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "tuple": tuple,
    "Table": pa.Table.from_pylist,
    "RecordBatch": pa.RecordBatch.from_pylist,
    "Dataset": as_dataset,
    "pandas": as_pandas,
    "polars": as_polars,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_from_every_kind_of_table(kind: str) -> None:
    assert rows_of(KINDS[kind](MADE)) == MADE


def test_a_selection_of_a_data_set_in_another_format_is_read_as_rows() -> None:
    selected = as_dataset(MADE).select([2, 0]).with_format("numpy")
    assert rows_of(selected) == [MADE[2], MADE[0]]


def test_pandas_missing_values_are_none_and_an_index_without_a_name_is_no_column() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["a", None, "c"], "answer": [1, float("nan"), 3]})
    kept = frame[frame.answer.notna()]
    assert rows_of(kept) == [{"prompt": "a", "answer": 1}, {"prompt": "c", "answer": 3}]
    assert rows_of(frame)[1] == {"prompt": None, "answer": None}
    assert rows_of(frame.to_dict("records"))[1] == {"prompt": None, "answer": None}
    named = pandas.DataFrame({"prompt": ["x"]}, index=pandas.Index(["q1"], name="id"))
    assert rows_of(named) == [{"prompt": "x", "id": "q1"}]


def test_a_pandas_column_of_several_types_is_read() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["a", "b", "c"], "answer": ["4", 5, pandas.NA]})
    frame["n"] = [np.array([1, 2]), None, float("nan")]
    assert rows_of(frame) == [
        {"prompt": "a", "answer": "4", "n": [1, 2]},
        {"prompt": "b", "answer": 5, "n": None},
        {"prompt": "c", "answer": None, "n": None},
    ]


def test_numbers_and_arrays_of_numpy_in_dicts_are_plain() -> None:
    row = {"answer": np.int64(4), "marks": np.array([1.5, 2]), "of": {"x": (np.float32(0.5),)}}
    assert rows_of([row]) == [{"answer": 4, "marks": [1.5, 2.0], "of": {"x": [0.5]}}]


def test_problems_stay_as_they_are() -> None:
    problems = [Problem("a", "x", "4")]
    assert rows_of(problems) == problems


def refusals() -> dict[str, tuple[Any, str]]:
    table = pa.Table.from_pylist(MADE)
    return {
        "generator": ((row for row in MADE), "which can be read only once: give list"),
        "reader": (table.to_reader(), "which can be read only once"),
        "dict": ({"prompt": ["x"], "answer": ["4"]}, "a dict with prompt, answer. Give a path"),
        "texts": (["a", "b"], "a list of str. Give a path"),
        "mixed": ([{"prompt": "x"}, Problem("a", "x", "4")], "a list of Problem. Give a path"),
        "bytes": (b"rows", "data is a bytes. Give a path"),
        "number": (7, "data is a int. Give a path"),
        "none": (None, "data is a NoneType. Give a path"),
        "array": (np.zeros(3), "data is a ndarray. Give a path"),
        "column": (table["prompt"], "data is a ChunkedArray. Give a path"),
        "twice": (pa.table([["x"], ["y"]], names=["a", "a"]), "the column `a` twice"),
    }


@pytest.mark.parametrize("kind", refusals())
def test_other_data_are_refused_with_what_to_give(kind: str) -> None:
    data, said = refusals()[kind]
    with pytest.raises(DataError) as fault:
        rows_of(data)
    assert said in str(fault.value)


def test_several_splits_and_streams_of_datasets_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    made = as_dataset(MADE)
    with pytest.raises(DataError, match=r"splits train, test: give one of them, data\['train'\]"):
        rows_of(datasets.DatasetDict(train=made, test=made))
    with pytest.raises(DataError, match="a IterableDataset, which can be read only once"):
        rows_of(made.to_iterable_dataset())
    with pytest.raises(DataError, match="Give a path"):
        rows_of(as_pandas(MADE)["prompt"])
    twice = as_pandas(MADE)[["prompt", "prompt"]]
    with pytest.raises(DataError, match="`prompt` twice"):
        rows_of(twice)


# --- the public functions

RATED = [
    {"prompt": f"Rate the response {n}.", "response": "It is fine.", "score": 1 + n % 5}
    for n in range(40)
]
ASKED: dict[str, Any] = {"task": "judge", "scale": "1,5", "max_new_tokens": 40}


def num_checked(data: Any, **settings: Any) -> list[str]:
    found = femtune.check(data, "seedling", try_=False, progress="quiet", **ASKED, **settings)
    return [each.found.split(";")[0] for each in found.findings if each.what in ("problems", "held out")]


@pytest.mark.parametrize("kind", KINDS)
def test_check_takes_data_and_eval_data_of_any_kind(kind: str) -> None:
    make = KINDS[kind]
    assert num_checked(make(RATED[:30]), eval_data=make(RATED[30:])) == ["30", "10"]


def test_eval_data_may_be_of_another_kind_than_data(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    pa_rows = pa.Table.from_pylist(RATED[30:])
    as_pandas(RATED[30:]).to_json(path, orient="records", lines=True)
    for held_out in (path, str(path), pa_rows):
        assert num_checked(RATED[:30], eval_data=held_out) == ["30", "10"]
    assert num_checked(path, eval_data=RATED[:30]) == ["10", "30"]
    with pytest.raises(DataError, match="test problems are also training problems"):
        num_checked(RATED, eval_data=pa_rows)
    with pytest.raises(DataError, match="which can be read only once"):
        num_checked(RATED, eval_data=iter(RATED))


def test_a_bad_row_in_memory_is_named_by_its_number() -> None:
    with pytest.raises(DataError, match=r"(?s)rows that can't be used: 1.*`response` is empty: row 2"):
        num_checked([RATED[0], {**RATED[1], "response": None}, *RATED[2:]])


def test_columns_may_be_a_dict() -> None:
    renamed = [{"of": {"ask": r["prompt"]}, "said": r["response"], "n": r["score"]} for r in RATED]
    columns = {"prompt": "of.ask", "response": "said", "score": "n"}
    assert num_checked(renamed, columns=columns)[0] == "40"
    with pytest.raises(DataError, match="`of` has no `asked`; it has `ask`"):
        num_checked(renamed, columns={**columns, "prompt": "of.asked"})
    with pytest.raises(ConfigError, match="columns is"):
        num_checked(renamed, columns="prompt=of")


@pytest.mark.slow
def test_a_run_from_tables_goes_on_with_the_same_rows_alone(tmp_path: Path) -> None:
    def train(rows: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> Any:
        return femtune.train(
            as_dataset(rows),
            "seedling",
            eval_data=pa.Table.from_pylist(held_out),
            output_dir=tmp_path / "run",
            progress="quiet",
            scheme="rejection:2",
            accept_at=0.25,
            iterations=1,
            use_cpu=True,
            bound_draws=0,
            reader_problems=0,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            **ASKED,
        )

    first = train(RATED[:30], RATED[30:])
    assert train(RATED[:30], RATED[30:]).history == first.history
    for rows, held_out in ((RATED[:29], RATED[30:]), (RATED[:30], RATED[31:])):
        with pytest.raises(RunError, match="holds a run with another configuration"):
            train(rows, held_out)
    frame, place = as_pandas(RATED[30:]), tmp_path / "eval"
    again = femtune.evaluate(frame, first.best, progress="quiet", output_dir=place)
    assert again.accuracy == first.history[-1]["evaluation"]["accuracy"]
    made = list(femtune.predict(pa.Table.from_pylist(RATED[:2]), first.best, draws=2))
    assert len(made) == 2
