"""What stands in data never becomes the name of a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from femtune.cli.main import main

NAMES = (
    *("../../x", "/etc/passwd", "con", "a\x00b", "x" * 10_000, "..", ".", "~/x", "$HOME", "-rf"),
    *("C:\\x", "a/b/c", "file:///x", "x.parquet", "a\nb", "a\u202eb", "%2e%2e%2f", "CON.jsonl"),
)
ASKED = ("--model", "seedling", "--task", "judge", "--raters", "named", "--scale", "1,5")
ASKED += ("--max-new-tokens", "48")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    from femtune.data.worlds import WORLDS, make_rows

    made, _ = make_rows(WORLDS["rubric"], 36, 1, seed=2)
    return [dict(row) for row in made]


def folder_with(rows: list[dict[str, Any]], place: Path, hostile: bool) -> Path:
    """A folder with the rows as train.jsonl and test.jsonl, their names plain or hostile."""
    place.mkdir()
    os.chdir(place)
    named = []
    for number, row in enumerate(rows):
        name = NAMES[number % len(NAMES)]
        again = str(number // len(NAMES) or "")
        named.append(row | {"id": name + again if hostile else str(number)})
        if hostile:
            named[-1] |= {name: name}  # a column of that name
    for file, part in (("train", named[:18]), ("test", named[18:])):
        (place / f"{file}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    return place


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


COMMANDS = {
    "train": (
        *("train", "train.jsonl", "--eval-data", "test.jsonl", "--iterations", "1"),
        *("--learning-rate", "1e-3", "--output-dir", "out"),
        *("--num-train-epochs", "1", "--per-device-train-batch-size", "8"),
    ),
    "sample": ("sample", "train.jsonl", "--scheme", "rejection:2", "--output-dir", "out"),
    "evaluate": ("evaluate", "test.jsonl", "--output-dir", "out"),
    "bias": ("bias", "test.jsonl", "--output-dir", "out"),
    "predict": ("predict", "test.jsonl", "--draws", "2", "--output", "out.parquet"),
}


SLOW = ("train",)


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.slow if verb in SLOW else ()) for verb in COMMANDS]
)
def test_hostile_names_make_the_files_that_plain_ones_make(
    verb: str, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = []
    for hostile in (False, True):
        place = folder_with(rows, tmp_path / f"deep-{hostile}", hostile)
        assert main([*COMMANDS[verb], *ASKED]) == 0
        made.append(files(place))
    assert made[0] == made[1] and "out" in {name.partition("/")[0].partition(".")[0] for name in made[0]}
    assert {path.name for path in tmp_path.iterdir()} == {"deep-False", "deep-True"}


def test_hostile_names_come_back_as_they_are(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_with(rows, tmp_path / "deep", hostile=True)
    assert main([*COMMANDS["predict"], *ASKED]) == 0
    found = {row["id"] for row in pq.read_table("out.parquet").to_pylist()}
    asked = {json.loads(line)["id"] for line in Path("test.jsonl").read_text().splitlines()}
    assert found == asked and any("../../x" in name for name in found)
