"""Reports on rows: what was left out is counted by reason, with an example, and can be stored."""

from __future__ import annotations

import json
from pathlib import Path

from femtune.data.row_report import RowReport, SkipReason, report_from_data
from femtune.data.tasks.load import Options, read_task


def test_rows_left_out_are_counted_by_reason_with_an_example(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "response": f"R{n}", "score": n % 3} for n in range(1, 11)]
    rows[3] |= {"score": 9}
    rows[6] |= {"score": 8}
    rows[7] |= {"response": " "}
    file = tmp_path / "rated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = read_task(file, "judge", Options(scale="0,2", bad_rows="skip")).report
    assert report.num_rows == 10
    assert report.num_skipped == 3
    assert report.unit == "line"
    assert {*report.skipped} == {
        SkipReason("`score` is off the scale, 0 to 2", 2, 4, "9"),
        SkipReason("`response` is empty", 1, 8),
    }
    assert report.describe_skipped() == (
        "rows left out: 3 of 10\n"
        "  `score` is off the scale, 0 to 2: 2 (for example line 4: 9)\n"
        "  `response` is empty: 1 (for example line 8)"
    )
    assert report_from_data(json.loads(json.dumps(report.to_data()))) == report


def test_nothing_is_said_where_nothing_was_left_out() -> None:
    assert RowReport(num_rows=3).describe_skipped() == ""
