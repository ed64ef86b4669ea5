"""Small real data sets, labelled by people: every row of each file is read.

They lie outside the repository: in the folder that FEMTUNE_REAL_DATA names, else in ../shared/data.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from femtune.data.files.reading import file_rows, file_unit

FOLDER = Path(os.environ.get("FEMTUNE_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no folder of real data")

# file: its rows, as they were counted when the files were made
ROWS = {
    "arc_easy_test.jsonl": 250,
    "arc_easy_train.jsonl": 500,
    "commonsenseqa_dev.jsonl": 700,
    "gsm8k_test.jsonl": 250,
    "gsm8k_train.jsonl": 500,
    "llmbar_natural.jsonl": 100,
    "multiarith.jsonl": 600,
    "nlg_ratings.csv": 800,
    "pandalm.jsonl": 560,
    "recipe_ratings.csv": 440,
    "singleop.jsonl": 562,
    "stsb_dev.tsv": 499,
    "stsb_train.tsv": 1500,
    "summary_correctness_pairs.jsonl": 373,
    "summeval.jsonl": 240,
    "tldr_comparisons_test.jsonl": 87,
    "tldr_comparisons_train.jsonl": 240,
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_a_file_is_read(name: str) -> None:
    rows = list(file_rows(FOLDER / name))
    assert len(rows) == ROWS[name] and all(isinstance(row, dict) for _, row in rows)
    assert file_unit(FOLDER / name) == "line"


def test_no_file_of_the_folder_is_left_out() -> None:
    assert {path.name for path in FOLDER.iterdir()} - {"README.md"} == {*ROWS}
