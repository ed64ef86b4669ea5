"""Rows that are left out: said at the start, stored with the run, shown in its report and card."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from femtune import evaluate, predict, train
from femtune.cli.main import main
from femtune.config import Train
from femtune.data.row_report import ROWS, read_reports
from femtune.errors import DataError
from femtune.reporting.page.details import settings
from femtune.reporting.page.record import find
from femtune.reporting.page.summary import facts
from femtune.resolve import held_out, read_inputs
from femtune.sampler import make_sampler_builder

Row = dict[str, Any]
FIT: dict[str, Any] = {"task": "judge", "scale": "1,5", "bad_rows": "skip", "max_new_tokens": 48}


def rated(num: int) -> list[Row]:
    """Ratings, of which row 2 is off the scale and row 4 too long for the seedling."""
    rows = [{"prompt": f"P{n}", "response": f"R{n}", "score": n % 5 + 1} for n in range(num)]
    rows[1] |= {"score": 9}
    rows[3] |= {"response": "word " * 4000}
    return rows


def jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_that_is_too_long_is_named_by_its_line(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rated.jsonl", [row | {"score": 3} for row in rated(6)])
    asked = read_inputs(file, Train(task="judge", scale="1,5", max_new_tokens=48), model="seedling")
    with pytest.raises(DataError, match=r"1 of 6 problems don't fit.*remove line 4, as --bad-rows skip"):
        make_sampler_builder("seedling", asked, asked.problems)


def test_a_row_that_is_too_long_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = jsonl(tmp_path / "rated.jsonl", rated(6))
    asked = read_inputs(file, Train(**FIT), model="seedling")
    assert len(asked.problems) == 4
    reasons = {reason.place: reason for reason in asked.report.skipped}
    assert reasons.keys() == {2, 4}
    assert reasons[4].what.startswith("too long for the model, which has room for")
    assert reasons[4].value.endswith("tokens")
    assert "rows left out: 2 of 6" in caplog.text
    make_sampler_builder("seedling", asked, asked.problems)


def test_both_orders_of_a_pair_are_left_out_together() -> None:
    row = {"prompt": "P", "response_a": "a", "response_b": "b", "preference": "A"}
    long = row | {"response_b": "word " * 4000}
    own = {key: value for key, value in FIT.items() if key != "scale"}
    asked = read_inputs([long, row], Train(**own), model="seedling")
    assert (len(asked.problems), asked.report.num_skipped, asked.report.num_rows) == (2, 1, 2)


def test_evaluation_data_are_treated_alike(tmp_path: Path) -> None:
    test = jsonl(tmp_path / "test.jsonl", [row | {"prompt": "T"} for row in rated(5)])
    asked = read_inputs(rated(6), Train(**FIT, eval_data=str(test)), model="seedling")
    train_, _, test_ = held_out(asked, rated(6), "seedling")
    assert (len(train_), len(test_)) == (4, 3)


def test_where_nothing_fits_nothing_is_left_out() -> None:
    rows = [row | {"response": "word " * 4000} for row in rated(6) if row["score"] != 9]
    with pytest.raises(DataError, match="no problem fits the model"):
        read_inputs(rows, Train(**FIT), model="seedling")


def test_a_run_has_what_was_left_out_in_its_folder_its_report_and_its_card(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "data.jsonl", [row | {"prompt": f"P{n}"} for n, row in enumerate(rated(8))])
    test = jsonl(tmp_path / "test.jsonl", [row | {"prompt": "T"} for row in rated(5)])
    run = train(
        str(data),
        "seedling",
        **FIT,
        eval_data=str(test),
        scheme="pps",
        iterations=1,
        learning_rate=1e-4,
        num_train_epochs=1,
        bound_draws=0,
        output_dir=tmp_path / "run",
        progress="quiet",
    ).run
    reports = read_reports(run / ROWS)
    assert {name: report.num_skipped for name, report in reports.items()} == {"problems": 2, "eval": 2}
    found = find([run])
    assert ("Rows left out", "2 of 8") in facts(found, found.runs[0], [])
    tables = {table.caption: table.rows for table in settings(found).tables}
    shown = ["training data", "`score` is off the scale, 1 to 5", "1", "line 2 9"]
    assert shown in tables["Rows left out"]
    card = (run / "iteration-001" / "model" / "README.md").read_text()
    assert "Left out of the training data: 2 of 8 rows." in card
    assert "is off the scale, 1 to 5: 1" in card
    assert main(["verify", str(run)]) == 0


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_other_commands_say_it_too(verb: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "femtune")
    place = tmp_path / "run"
    if verb == "evaluate":
        evaluate(rated(5), "seedling", **FIT, output_dir=place, progress="quiet")
        assert read_reports(place / ROWS)["eval"].num_skipped == 2
    else:
        assert len([*predict(rated(5), "seedling", **FIT, draws=1)]) == 3
    assert "rows left out: 2 of 5" in caplog.text


def test_the_coding_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "femtune")
    rows = [{"prompt": f"P{n}", "output_1": "a", "output_2": "b", "label": n % 2 + 1} for n in range(4)]
    read_inputs(rows, Train(task="judge"))
    assert "`label`: 1 is A, 2 is B." in caplog.text
    assert "`output_1` as response_a, `output_2` as response_b, `label` as preference" in caplog.text


def test_a_mapping_in_a_file_of_settings_is_a_coding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "P", "a": "Yes.", "b": "No.", "label": 1}]
    data = jsonl(tmp_path / "pairs.jsonl", rows)
    config = tmp_path / "run.yaml"
    config.write_text(
        "task: judge\nmodel: seedling\nmax_new_tokens: 48\n"
        "columns: {response_a: a, response_b: b, preference: label}\nlabels: {1: A, 2: B}\n"
    )
    assert main(["check", str(data), "--config", str(config), "--no-try", "--eval-share", "0"]) == 0
    shown = capsys.readouterr()
    assert "1 is A" in " ".join(shown.out.split())
