"""Multiple choice: a question and lettered choices, answered by a letter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from femtune.reading import BadRow
from femtune.tasks.cells import KEPT
from femtune.tasks.frames import Frame, item_name
from femtune.types import Problem

INSTRUCTION = 'Think step by step, then end with the line "Answer: " and the letter of the right choice.'
REWARD = "choice"


def problem(row: Mapping[str, Any], default_id: str) -> Problem | BadRow:
    """A problem of a row with question, choices, labels and answer, or what is wrong with the row.

    >>> row = {"question": "What melts?", "choices": ["Ice", "Sand"], "labels": ["A", "B"]}
    >>> print(problem(row, "q1").prompt)
    What melts?
    <BLANKLINE>
    A. Ice
    B. Sand
    """
    labels, choices = list(row["labels"]), [str(choice).strip() for choice in row["choices"]]
    if len({choice.casefold() for choice in choices}) < len(choices):
        return BadRow("two choices are the same text")
    question = str(row["question"]).strip()
    lines = [f"{label}. {choice}" for label, choice in zip(labels, choices, strict=True)]
    frame = Frame("choice", tuple(labels), item_name(question, *choices))
    kept = ("subject", "level", *KEPT)
    others = {key: row[key] for key in kept if row.get(key) is not None}
    return Problem(
        str(row.get("id") or default_id),
        "\n".join([question, "", *lines]),
        str(row.get("answer") or ""),
        others | {"frame": frame.column()},
    )
