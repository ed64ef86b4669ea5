"""The comparison on labels by people: its parts, its measures, and the table in the docs."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from real.equations import right_rationales, right_share  # noqa: E402  # from bench
from real.running import FOLDER, permuted  # noqa: E402  # from bench
from real.tables import markdown, stored  # noqa: E402  # from bench
from real.tasks import TASKS, read_lines, write_parts  # noqa: E402  # from bench

SMALL = replace(TASKS["singleop"], train=20, validation=10, held_out=30)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"input": f"What is {n} + {n}?", "target": 2 * n} for n in range(80)]
    rows += rows[:5]  # problems that are there twice
    (tmp_path / "singleop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_parts_share_no_problem_and_seeds_hold_out_the_same(data: Path, tmp_path: Path) -> None:
    parts = [write_parts(SMALL, data, seed, tmp_path / str(seed)) for seed in (0, 1)]
    lines = [{name: path.read_text().splitlines() for name, path in each.items()} for each in parts]
    for each in lines:
        assert [len(each[name]) for name in ("train", "validation", "held_out")] == [20, 10, 30]
        assert len({line for part in each.values() for line in part}) == 60
    assert lines[0]["held_out"] == lines[1]["held_out"]
    assert lines[0]["train"] != lines[1]["train"]


def test_permuted_labels_are_the_same_labels_of_other_rows(data: Path, tmp_path: Path) -> None:
    train = write_parts(SMALL, data, 0, tmp_path / "0")["train"]
    before, after = read_lines(train).rows, read_lines(permuted(SMALL, train, 0)).rows
    assert [row["input"] for row in before] == [row["input"] for row in after]
    assert sorted(row["target"] for row in before) == sorted(row["target"] for row in after)
    assert sum(a["target"] == b["target"] for a, b in zip(before, after, strict=True)) < 10


def test_equations_are_right_to_two_decimals() -> None:
    assert right_share(["7 / 3 = 2.33", "1,200 - 200 = $1,000", "5 x 2 = 11", "9 / 0 = 9"]) == (0.5, 4)
    assert right_share(["no equation"]) == (None, 0)
    texts = [("3 and 4", "3 + 4 = 7, 7 * 3 = 21"), ("3 and 4", "5 + 4 = 9"), ("3 and 4", "3 + 4 = 8")]
    assert right_rationales(texts) == (pytest.approx(1 / 3), 3)


def test_the_findings_have_the_accuracies_of_the_stored_cells() -> None:
    assert stored(FOLDER)
    found = dict(
        re.findall(r"^\| `([^`]+)` \| 1 \| (\.\d+) ", markdown(FOLDER, ["singleop"]), re.MULTILINE)
    )
    text = (ROOT / "docs/findings.md").read_text()
    section = text[text.index("## On labels by people") :].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `([^`]+)` \| (\.\d+) ", section, re.MULTILINE)) == found
