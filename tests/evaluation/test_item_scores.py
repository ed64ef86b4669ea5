"""Scores of items: their mean is the evaluation's number, and rows are compared on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from femtune.data.problems import save_problems
from femtune.errors import RunError
from femtune.evaluation.evaluate import evaluation_metrics
from femtune.evaluation.item_scores import (
    FILE,
    compare_iterations,
    compare_scores,
    describe_difference,
    item_scores,
    stored_scores,
)
from femtune.evaluation.paired import paired_difference
from femtune.metric_types import measure
from femtune.runs.draws import write_draws
from femtune.runs.run import Run
from femtune.types import Completion, Draw, DrawKey, Problem, Score

PROBLEMS = {name: Problem(name, f"What is {name}?", "1") for name in "abcdefgh"}
NO_TIME = {"engine_s": 0.0, "total_s": 0.0}


def draws(answers: Sequence[str]) -> list[Draw]:
    """Two draws of each problem: "10" is a right and a wrong one, "-" is one without an answer."""
    made = []
    for problem_id, each in zip(PROBLEMS, answers, strict=True):
        for index, answer in enumerate(each):
            right = answer == "1"
            reason = "" if right else "parse_error" if answer == "-" else "wrong"
            score = Score(float(right), answer.strip("-"), reason)
            key = DrawKey(0, problem_id, 0, index)
            made.append(Draw(key, "plain", 0, Completion((), "", "stop", 0.0), score))
    return made


MIXED = ["11", "10", "01", "00", "-1", "--", "11", "12"]


@pytest.mark.parametrize(("by_vote", "name"), [(False, "accuracy"), (True, "majority_accuracy")])
def test_their_mean_is_what_the_evaluation_measures(by_vote: bool, name: str) -> None:
    scores = item_scores(draws(MIXED), PROBLEMS, by_vote=by_vote)
    metrics = evaluation_metrics(PROBLEMS, [(draws(MIXED), NO_TIME)])
    assert sum(scores.values()) / 8 == pytest.approx(measure(metrics, name))
    assert scores["f"] == 0.0  # nothing was answered


def test_a_run_compares_its_iterations_on_stored_draws(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert stored_scores(tmp_path, 0) == {} and compare_iterations(tmp_path, 1) is None
    save_problems([*PROBLEMS.values()], tmp_path / "eval.parquet")
    for iteration, answers in ((0, ["0"] * 8), (1, ["1"] * 7 + ["0"])):
        for index, part in enumerate((slice(0, 4), slice(4, 8))):  # two shards
            place = run.shard(iteration, "eval", index)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_draws(place, draws(answers)[part], NO_TIME)
    found = compare_iterations(tmp_path, 1)
    assert found == paired_difference([1] * 7 + [0], [0] * 8)
    assert found is not None and describe_difference(found).startswith("+0.875 (0.")
    run.write_json(run.iteration(0) / FILE, {"ls": {"a": 1.0}})  # of a baseline, before the draws
    assert stored_scores(tmp_path, 0) == {"ls": {"a": 1.0}}
    (run.iteration(0) / FILE).write_text("{")
    with pytest.raises(RunError, match=r"scores\.json is not valid JSON"):
        stored_scores(tmp_path, 0)


def test_a_row_of_one_seed_stands_beside_all_of_another() -> None:
    base = {0: dict.fromkeys("abcd", 0.0)}
    star = {0: {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}, 1: {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}}
    found = compare_scores(star, base, {})
    assert found is not None
    assert (found.difference, found.num_items, found.num_groups) == (0.375, 4, 4)
    assert found.seed_spread == pytest.approx(0.25 / 2**0.5)  # of 0.5 and 0.25
    grouped = compare_scores(star, base, {"a": "post", "b": "post"})
    assert grouped is not None and grouped.num_groups == 3


def test_seeds_that_hold_out_other_items_are_compared_each_with_itself() -> None:
    a = {0: {"a": 1.0, "b": 1.0}, 1: {"c": 1.0, "d": 0.0}}
    b = {0: {"a": 0.0, "b": 1.0}, 1: {"c": 0.0, "d": 0.0}, 2: {"e": 0.0}}
    found = compare_scores(a, b, {})
    assert found is not None and (found.difference, found.num_items) == (0.5, 4)
    once = compare_scores(a, {0: b[0]}, {})
    assert once is not None and (once.difference, once.num_items) == (0.5, 2)
    assert compare_scores(a, {0: {"z": 1.0}}, {}) is None
