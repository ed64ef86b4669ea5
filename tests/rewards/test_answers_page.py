"""docs/answers.md: each row of its tables is what the rewards do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from femtune.data.tasks.choice import problem as choice_problem
from femtune.rewards.builtin import AnswerReward, as_reward
from femtune.types import Problem

PAGE = (Path(__file__).parents[2] / "docs" / "answers.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and "`" in line
]
TEXTS = re.findall(r"`[A-D]\. (.*?)`", PAGE.partition("In these rows they are")[2].partition("\n")[0])


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def asked(answer: str) -> Problem:
    row = {"question": "Which?", "choices": TEXTS, "labels": [*"ABCD"], "answer": answer}
    made = choice_problem(row, "q")
    assert isinstance(made, Problem)
    return made


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_what_its_reward_does(row: list[str]) -> None:
    _, name, correct, right, wrong = row
    reward, [gold] = as_reward(spans(name)[0]), spans(correct)
    assert isinstance(reward, AnswerReward) and spans(right) and spans(wrong)
    problem = asked(gold) if reward.name == "choice" else Problem("p", "x", gold)
    given = {answer: reward.of(answer, problem) for answer in [gold, *spans(right), *spans(wrong)]}
    assert {answer for answer, value in given.items() if value == 1} == {gold, *spans(right)}
    for answer in spans(right):  # and the other way round
        if reward.name not in ("choice", "exact"):
            assert reward.grade(gold, answer) == 1


def test_all_rows_are_found() -> None:
    assert len(ROWS) == PAGE.count("\n| ") - PAGE.count("\n|---") > 25 and len(TEXTS) == 4
