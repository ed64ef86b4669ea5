"""Differences of several rows: against which, adjusted for how many, and how they are shown."""

from __future__ import annotations

import numpy as np

from femtune.evaluation.differences import BASE, difference_table, differences
from femtune.evaluation.paired import holm, paired_difference

ITEMS = [f"item {n}" for n in range(100)]


def row(num_right: int) -> dict[int, dict[str, float]]:
    """A row of one seed that has so many of the first items right."""
    return {0: {item: float(place < num_right) for place, item in enumerate(ITEMS)}}


def test_rows_are_compared_with_the_base_and_with_the_best() -> None:
    scores = {"star": row(60), BASE: row(40), "pps": row(45)}
    found = differences(scores, {})
    assert [(each.row, each.to) for each in found] == [
        ("star", BASE),
        ("pps", BASE),
        ("pps", "star"),
    ]  # the base less the best is there already
    of = {(each.row, each.to): each for each in found}
    alone = {
        pair: paired_difference([*scores[pair[0]][0].values()], [*scores[pair[1]][0].values()]).p_value
        for pair in (("star", BASE), ("pps", BASE), ("pps", "star"))
    }
    assert of["pps", "star"].found.difference == -0.15
    to_base = holm([alone["star", BASE], alone["pps", BASE]])
    assert [of["star", BASE].p_adjusted, of["pps", BASE].p_adjusted] == to_base
    every = holm([*alone.values()])  # the best was found by these items: all three pairs count
    assert of["pps", "star"].p_adjusted == every[2] > alone["pps", "star"]
    stored = of["pps", "star"].to_data()
    assert stored["difference"] == -0.15 and stored["num_items"] == 100 and stored["seed_spread"] is None


def test_where_the_base_is_best_it_is_the_only_measure() -> None:
    found = differences({BASE: row(50), "star": row(40), "pps": row(30)}, {})
    assert {each.to for each in found} == {BASE}
    assert differences({"majority": row(50)}, {}) == [] and differences({}, {}) == []
    assert [each.to for each in differences({"a": row(50), "b": row(40)}, {})] == ["a"]


def test_the_table_has_signs_and_a_spread_where_there_are_seeds() -> None:
    two = {seed: row(80 + seed)[0] for seed in (0, 1)}
    titles, cells = difference_table(differences({BASE: row(40), "star": two}, {}))
    assert titles[-1] == "spread over seeds" and cells[0][:3] == ["star", BASE, "+0.405"]
    assert cells[0][-2:] == ["< 0.001", "±0.007"]  # 0.40 and 0.41
    titles, cells = difference_table(differences({BASE: row(40), "star": row(41)}, {}))
    assert titles[-1] == "p, adjusted" and cells[0][4] == "1.000"


def test_copies_are_told_apart_in_no_more_comparisons_than_stated() -> None:
    """The best of three copies against the others: 3 standard deviations above 5% of 200 splits."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        copies = (rng.random((3, 60)) < rng.random(60)).astype(float)
        items = [dict(zip(ITEMS, each, strict=False)) for each in copies]
        scores = {f"copy {n}": {0: each} for n, each in enumerate(items)}
        found = differences(scores, {}, resamples=2000)
        alarms += any(each.p_adjusted < 0.05 for each in found)
    assert alarms / 200 <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
