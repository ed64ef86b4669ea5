"""Multiple choice: a question and lettered choices, answered by a letter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from femtune._util.text import brief
from femtune.data.prompts import as_messages, prompt_text, rewritten
from femtune.data.rows import BadRow
from femtune.data.tasks.cells import KEPT
from femtune.data.tasks.frames import Frame, item_name
from femtune.types import Problem

WHAT = "the letter of the right choice"
REWARD = "choice"


def problem(row: Mapping[str, Any], default_id: str) -> Problem | BadRow:
    """Build the problem of a row with question, choices, labels and answer; a BadRow if it is invalid.

    >>> row = {"question": "What melts?", "choices": ["Ice", "Sand"], "labels": ["A", "B"]}
    >>> print(problem(row, "q1").prompt)
    What melts?
    <BLANKLINE>
    A. Ice
    B. Sand
    """
    labels, choices = list(row["labels"]), [str(choice).strip() for choice in row["choices"]]
    right = [text for label, text in zip(labels, choices, strict=True) if label == row.get("answer")]
    if right and choices.count(right[0]) > 1:  # Mg and mg, p and P differ
        return BadRow("another choice has the text of the right one", brief(right[0]))
    question = row["question"]
    lines = _lines(row)
    item = item_name(prompt_text(question).strip(), *choices)
    frame = Frame(form="choice", scale=tuple(labels), choices=tuple(choices), item=item)
    kept = ("subject", "level", *KEPT)
    others = {key: row[key] for key in kept if row.get(key) is not None}
    return Problem(
        str(row.get("id") or default_id),
        rewritten(question, lambda text: "\n".join([text.strip(), "", *lines])),
        str(row.get("answer") or ""),
        others | {"frame": frame.column()},
    )


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return further values for a template: the choices as lines, and the text of the question."""
    return {"choices": "\n".join(_lines(row)), "question": as_messages(row["question"])[-1]["content"]}


def _lines(row: Mapping[str, Any]) -> list[str]:
    texts = [str(choice).strip() for choice in row["choices"]]
    return [f"{label}. {text}" for label, text in zip(row["labels"], texts, strict=True)]
