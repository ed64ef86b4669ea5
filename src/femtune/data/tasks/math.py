"""Mathematics: a question whose answer is a number or an expression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from femtune.data.prompts import prompt_text, rewritten
from femtune.data.rows import BadRow
from femtune.data.tasks.frames import Frame
from femtune.types import Problem

WHAT = "your answer"
REWARD = "math"


def problem(row: Mapping[str, Any], default_id: str) -> Problem | BadRow:
    """Build the problem of a row with prompt and answer; a BadRow if the row is invalid."""
    prompt = rewritten(row["prompt"], str.strip)
    if not prompt_text(prompt).strip():
        return BadRow("`prompt` is empty")
    others = {key: row[key] for key in ("subject", "level", "world", "truth", "evidence") if key in row}
    columns = others | {"frame": Frame(form="math").column()}
    return Problem(str(row.get("id") or default_id), prompt, str(row.get("answer") or ""), columns)


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return further values for a template: none beyond the row's columns."""
    return {}
