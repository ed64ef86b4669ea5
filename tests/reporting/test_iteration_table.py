"""A run's table fits the terminal: columns go from the right of importance, and nothing is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.reporting.iteration_table import cells, columns_for, header
from femtune.reporting.terminal import notes

EVALUATION = {
    "accuracy": 1 / 3,
    "accuracy_ci": [0.217, 0.45],
    "spearman": 0.675,
    "mae": 0.85,
    "sound_steps": 1.0,
}
BASE: Any = {"iteration": 0, "evaluation": EVALUATION}
FIRST: Any = {
    "iteration": 1,
    "e_step": {"num_kept": 144, "num_problems": 200, "generated_tokens": 6212, "total_s": 1.5},
    "m_step": {"seconds": 4.1},
    "development": {"accuracy": 0.675},
    "evaluation": EVALUATION | {"accuracy": 0.6, "accuracy_ci": [0.483, 0.717], "spearman": -0.5},
}


def test_eighty_columns_hold_what_matters_most() -> None:
    columns = columns_for(BASE, 80)
    assert [header(columns), cells(BASE, columns), cells(FIRST, columns)] == [
        "iteration       kept    dev  accuracy (95%)          Spearman    MAE     tokens",
        "base                         0.333 (0.217 to 0.450)     0.675   0.85",
        "1            144/200  0.675  0.600 (0.483 to 0.717)    -0.500   0.85      6,212",
    ]


@given(st.integers(9, 200))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    columns = columns_for(BASE, width)
    assert (
        max(len(line) for line in (header(columns), cells(BASE, columns), cells(FIRST, columns)))
        <= width
    )
    assert columns[0].title == "iteration"
    titles = [column.title for column in columns_for(BASE, 200)]
    assert titles == [
        *("iteration", "kept", "dev", "accuracy (95%)", "Spearman", "MAE", "sound steps", "tokens", "s"),
    ]
    assert [column.title for column in columns] == [
        title for title in titles if title in {column.title for column in columns}
    ]


def test_without_held_out_problems_there_is_no_accuracy() -> None:
    columns = columns_for({"iteration": 0}, 80)
    assert header(columns) == "iteration       kept    dev     tokens        s"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"evaluation_demos": {"accuracy": 0.375}}, ["with worked examples: accuracy 0.375"]),
        ({"evaluation": EVALUATION | {"answered": 0.4}}, ["evaluation: answered 40%"]),
        (
            {"e_step": FIRST["e_step"] | {"covered_share": 0.9, "truncated_share": 0.25}},
            ["E-step: 90% covered, truncated 25%"],
        ),
    ],
    ids=["usual", "examples", "unanswered", "truncated"],
)
def test_what_is_unusual_stands_in_a_line_below(changes: dict[str, Any], said: list[str]) -> None:
    assert notes(FIRST | changes) == said
