"""The rubric world's rows, and what a command needs to ask the demo model about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from femtune.cli.main import main

SEEDLING = ("--model", "seedling", "--max-new-tokens", "48")
JUDGE = ("--task", "judge", "--raters", "named", "--scale", "1,5")
Row = dict[str, Any]


def make_world(folder: Path) -> Path:
    """Write 24 ratings to train on and 12 others to a folder, and return it."""
    # of this seed's problems some are held out by default, however they are asked
    argv = ["--output_dir", str(folder), "--num-train", "24", "--num-test=12", "--seed", "2"]
    assert main(["world", "rubric", *argv]) == 0
    return folder


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def listing(folder: Path) -> dict[str, bytes]:
    """All files in a folder, with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
