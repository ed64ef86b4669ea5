"""Metrics of cases that are small enough to be counted by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from femtune.data.tasks.load import Options, problems_of
from femtune.data.worlds import WORLDS, make_splits, sums
from femtune.engines.fake import FakeEngine
from femtune.evaluation.evaluate import (
    as_number,
    error_of,
    estep_metrics,
    evaluation_draws,
    evaluation_metrics,
    is_right,
    sound_steps,
)
from femtune.rewards.builtin import choice, ordinal
from femtune.types import Completion, Draw, DrawKey, Problem, Reason, Score

from ..oracle import Tables, problem, sampler

TIMING = {"engine_s": 0.25, "total_s": 0.5}


def draw(
    name: str,
    index: int,
    answer: str,
    reward: float,
    reason: Reason = "",
    *,
    stage: int = 0,
    rationale: str = "",
    num_tokens: int = 1,
) -> Draw:
    completion = Completion((0,) * num_tokens, "", "stop", 0.0)
    key, prompt = DrawKey(1, name, stage, index), ("plain", "hinted")[stage]
    return Draw(key, prompt, 0, completion, Score(reward, answer, reason, "", rationale))


RATED = {name: Problem(name, "Rate it.", answer) for name, answer in {"a": "4", "b": "2"}.items()}
# accuracy 2/3 and 0; the votes are 4 for a (two of three), 5 for b (two of two that answered)
CHUNKS = [
    [
        draw("a", 0, "4", 1.0, num_tokens=5),
        draw("a", 1, "3", 0.75, "wrong"),
        draw("a", 2, "4", 1.0),
    ],
    [
        draw("b", 0, "5", 0.25, "wrong"),
        draw("b", 1, "", 0.0, "truncated"),
        draw("b", 2, "5", 0.25, "wrong"),
    ],
]
STORED = [(chunk, TIMING) for chunk in CHUNKS]


def test_evaluation_by_hand() -> None:
    assert evaluation_metrics(RATED, STORED) == {
        "num_problems": 2,
        "accuracy": pytest.approx((2 / 3 + 0) / 2),
        # of the resamples a quarter holds b twice, a quarter a twice
        "accuracy_ci": pytest.approx([0, 2 / 3]),
        "majority_accuracy": 1 / 2,
        "majority_accuracy_ci": [0, 1],
        "within_one_percent": pytest.approx((2 / 3 + 0) / 2),
        "within_one_percent_ci": pytest.approx([0, 2 / 3]),
        # of 0, 0, 1/4, 3/2 and 3/2, the errors of those that answered; of a alone 0, of b alone 3/2
        "median_relative_error": 1 / 4,
        "median_relative_error_ci": [0, 3 / 2],
        "answered": 5 / 6,
        "forced_share": 0.0,
        "truncated_share": 0.0,
        "num_draws": 6,
        "generated_tokens": 5 + 5 * 1,
        "tokens_per_draw": 10 / 6,
        "engine_s": 0.5,
        "total_s": 1.0,
    }


def test_a_majority_needs_several_draws_and_an_error_needs_numbers() -> None:
    named = {"a": Problem("a", "Who?", "Ada")}
    metrics = evaluation_metrics(named, [([draw("a", 0, "Ada", 1.0)], TIMING)])
    assert metrics["accuracy"] == 1
    assert "majority_accuracy" not in metrics
    assert not {"within_one_percent", "median_relative_error"} & metrics.keys()


def test_no_answer_is_no_majority() -> None:
    silent = [draw("a", index, "", 0.0, "parse_error") for index in range(2)]
    metrics = evaluation_metrics({"a": RATED["a"]}, [(silent, TIMING)])
    assert (metrics["majority_accuracy"], metrics["answered"]) == (0, 0)
    assert (metrics["within_one_percent"], metrics["median_relative_error"]) == (0, None)
    assert metrics["undefined"]["median_relative_error"] == "no draw gave a number"


def test_one_huge_number_decides_no_measure() -> None:
    answers = ["4", "4.03", "4.05", "1e11"]  # 0, 0.75%, 1.25% and beyond all bounds off
    right = draw("a", 0, answers[0], 1.0)
    draws = [right, *(draw("a", i, text, 0.0, "wrong") for i, text in enumerate(answers[1:], 1))]
    metrics = evaluation_metrics({"a": RATED["a"]}, [(draws, TIMING)])
    assert metrics["within_one_percent"] == 2 / 4
    assert metrics["median_relative_error"] == pytest.approx(0.0075)  # the lower of two in the middle
    assert "mae" not in metrics


def test_a_right_answer_in_another_form_has_no_error() -> None:
    assert error_of(draw("a", 0, "8/2", 1.0), RATED["a"]) == 0
    assert error_of(draw("a", 0, "five", 0.0, "wrong"), RATED["a"]) is None


def test_a_majority_of_one_wrong_answer_beats_single_right_ones() -> None:
    votes = [draw("a", 0, "4", 1.0), *(draw("a", i, "5", 0.75, "wrong") for i in (1, 2))]
    assert evaluation_metrics({"a": RATED["a"]}, [(votes, TIMING)])["majority_accuracy"] == 0


@pytest.mark.parametrize(
    ("reward", "reason", "right"),
    [
        (1.0, "", True),
        (0.75, "", False),  # a scheme that accepts from 0.5 on does not change what is right
        (1.0, "wrong", True),
        (1.0, "hint_leak", False),
        (0.0, "truncated", False),
    ],
)
def test_right_is_the_full_reward_of_a_proper_answer(reward: float, reason: Reason, right: bool) -> None:
    assert is_right(draw("a", 0, "4", reward, reason)) == right


@pytest.mark.parametrize(
    ("text", "number"),
    [("4", 4), (" -4.5 ", -4.5), ("1e3", 1000), ("", None), ("nan", None), ("inf", None), ("4/5", None)],
)
def test_a_number_is_finite(text: str, number: float | None) -> None:
    assert as_number(text) == number
    error = error_of(draw("a", 0, text, 0.0), RATED["a"])
    assert error == (None if number is None else abs(number - 4) / 4)


# --- the E-step


def test_an_e_step_by_hand() -> None:
    draws = [
        [draw("a", 0, "3", 0.75, "wrong"), draw("a", 0, "4", 1.0, stage=1)],  # solved by its second
        [draw("b", 0, "2", 1.0, num_tokens=3)],  # by its first
        [draw("c", 0, "", 0.0, "truncated"), draw("c", 0, "1", 1.0, "hint_leak", stage=1)],
    ]
    problems = {**RATED, "c": Problem("c", "Rate it.", "1")}
    assert estep_metrics(problems, [(draws[0] + draws[1], TIMING), (draws[2], TIMING)]) == {
        "num_problems": 3,
        "num_kept": 2,
        "kept_share": 2 / 3,
        "solved_by": {"1": 1, "2": 1},
        "reasons": {
            "plain": {"wrong": 1, "kept": 1, "truncated": 1},
            "hinted": {"kept": 1, "hint_leak": 1},
        },
        "answered": 4 / 5,
        "forced_share": 0.0,
        "truncated_share": 0.0,
        "num_draws": 5,
        "generated_tokens": 4 * 1 + 3,
        "tokens_per_draw": 7 / 5,
        "engine_s": 0.5,
        "total_s": 1.0,
    }


def test_of_a_problem_that_several_draws_solve_the_first_counts() -> None:
    every = [draw("a", 0, "3", 0.5, "wrong"), draw("a", 1, "4", 1.0), draw("a", 2, "4", 1.0)]
    metrics = estep_metrics(RATED, [(every, TIMING)])
    assert (metrics["num_kept"], metrics["solved_by"]) == (1, {"2": 1})


def test_no_draws_are_no_shares() -> None:
    metrics = estep_metrics({}, [])
    assert (metrics["num_problems"], metrics["kept_share"], metrics["answered"]) == (0, None, 0)


# --- in a world

SUM = Problem("s", "What is 48 + 37?", "85", {"world": "sums", "evidence": [48, 37], "truth": "85"})


def solution(slips: dict[int, int] | None = None) -> dict[str, Any]:
    rationale, answer = sums.write_completion(SUM, slips).split("\nAnswer: ")
    return {"rationale": rationale, "answer": answer}


def test_sound_steps_by_hand() -> None:
    right, slipped = solution(), solution({0: 1})  # 8 + 7 = 16: one of two steps, the answer follows
    draws = [
        draw("s", 0, right["answer"], 1.0, rationale=right["rationale"]),
        draw("s", 1, slipped["answer"], 0.0, "wrong", rationale=slipped["rationale"]),
    ]
    assert sound_steps(draws[0], SUM) == [True, True, True]
    assert sound_steps(draws[1], SUM) == [False, True, True]
    metrics = evaluation_metrics({"s": SUM}, [(draws, TIMING)])
    assert metrics["sound_steps"] == 5 / 6
    assert metrics["sound_rationales"] == 1 / 2
    # an E-step's are of what it keeps
    metrics = estep_metrics({"s": SUM}, [(draws, TIMING)])
    assert (metrics["sound_steps"], metrics["sound_rationales"]) == (1, 1)


@pytest.mark.parametrize("name", WORLDS)
def test_a_worlds_own_solutions_are_sound_throughout(name: str) -> None:
    problems = {each.id: each for each in make_splits(WORLDS[name], 1, 20, seed=1)[1]}
    draws = []
    for each in problems.values():
        rationale, answer = WORLDS[name].solve(each).rsplit("\nAnswer: ", 1)
        draws.append(draw(each.id, 0, answer, 1.0, rationale=rationale))
    metrics = evaluation_metrics(problems, [(draws, TIMING)])
    assert (metrics["sound_steps"], metrics["sound_rationales"]) == (1, 1)


def test_outside_worlds_nobody_knows_what_is_sound() -> None:
    assert sound_steps(CHUNKS[0][0], RATED["a"]) is None
    assert "sound_steps" not in evaluation_metrics(RATED, STORED)


# --- the draws


def test_every_problem_is_asked_plainly_and_as_often_as_said() -> None:
    """Solved or not, so that shares of right draws are unbiased: within 4 sigma, 1 in 16,000."""
    world, num, each = Tables.random(seed=5), 300, 5
    problems = {str(i): problem(str(i), 0, 1) for i in range(num)}
    made = sampler(FakeEngine(world.write))
    chunks = list(evaluation_draws([*problems.values()], made, draws=each, iteration=0))
    [draws] = [chunk.draws for chunk in chunks]
    assert {(d.prompt_kind, d.key.iteration) for d in draws} == {("plain", 0)}
    assert [(d.key.problem_id, d.key.index) for d in draws] == [
        (name, index) for name in problems for index in range(each)
    ]
    p = world.joint(0)[:, 1].sum().item()
    accuracy = evaluation_metrics(problems, [(draws, TIMING)])["accuracy"]
    assert abs(accuracy - p) < 4 * math.sqrt(p * (1 - p) / (num * each))


# --- tasks


def judged(task: str, rows: list[dict[str, Any]], **options: Any) -> dict[str, Problem]:
    found = problems_of(rows, task, Options(**options), "rows").problems
    return {each.id: each for each in found}


def answered(problems: dict[str, Problem], answers: dict[str, list[str]]) -> Any:
    """Draws with these answers, graded as the choice or ordinal reward would."""
    reward = ordinal("1,5") if all(p.answer.isdigit() for p in problems.values()) else choice("A,B,tie")
    draws = [
        draw(name, number, answer, value := reward.grade(answer, problems[name].answer), graded(value))
        for name, given in answers.items()
        for number, answer in enumerate(given)
    ]
    return [(draws, TIMING)]


def graded(value: float) -> Reason:
    return "" if value == 1 else "wrong"


RATINGS = [
    {"id": str(score), "prompt": "Why?", "response": f"So {score}.", "score": score, "rater": "Kim"}
    for score in range(1, 6)
]


def test_ratings_are_measured_on_their_scale_as_they_are_written() -> None:
    problems = judged("judge", RATINGS, scale="1,5")
    votes = {"1": ["1/5"], "2": ["2 out of 5"], "3": ["**3**"], "4": ["5"], "5": ["good"]}
    metrics = evaluation_metrics(problems, answered(problems, votes))
    assert metrics["accuracy"] == 3 / 5
    assert metrics["mae"] == 1 / 4  # of those on the scale
    assert metrics["spearman"] == pytest.approx(1)
    assert metrics["within_one"] == 4 / 5
    assert "ceiling_accuracy" not in metrics  # one rater each
    assert "ece" not in metrics  # one draw each


def test_raters_agreement_is_the_ceiling() -> None:
    others = [{**row, "id": f"{row['id']}b", "rater": "Toni"} for row in RATINGS]
    problems = judged("judge", [*RATINGS, *others], scale="1,5", raters="named")
    metrics = evaluation_metrics(problems, answered(problems, {name: ["3", "3"] for name in problems}))
    assert metrics["ceiling_accuracy"] == 1.0
    assert metrics["accuracy"] == metrics["majority_accuracy"] == 1 / 5
    assert metrics["spearman"] is None
    assert metrics["undefined"]["spearman"] == "all predictions are the same"
    assert metrics["ece"] == pytest.approx(0.8)  # always sure, right one time in five


def test_pairs_are_measured_over_both_orders() -> None:
    row = {"prompt": "Why?", "response_a": "Because.", "response_b": "So.", "preference": "A"}
    problems = judged("judge", [row | {"id": "x"}, row | {"id": "y", "response_b": "Thus."}])
    assert len(problems) == 4
    first = {name: ["A"] for name in problems}  # a judge that always takes the first place
    metrics = evaluation_metrics(problems, answered(problems, first))
    assert (metrics["agreement"], metrics["accuracy"]) == (0.5, 0.5)
    assert (metrics["position_consistency"], metrics["first_share"]) == (0.0, 1.0)
    truth = {name: [each.answer] for name, each in problems.items()}
    metrics = evaluation_metrics(problems, answered(problems, truth))
    assert (metrics["agreement"], metrics["position_consistency"]) == (1.0, 1.0)


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_is_measured_without_a_nan(name: str) -> None:
    _, test = make_splits(WORLDS[name], 12, 12)
    problems = {each.id: each for each in test}
    draws = [
        draw(each.id, number, each.answer, 1.0, rationale=WORLDS[name].solve(each).rpartition("\n")[0])
        for each in test
        for number in range(2)
    ]
    metrics = evaluation_metrics(problems, [(draws, TIMING)])
    assert metrics["accuracy"] == metrics["majority_accuracy"] == 1
    assert "NaN" not in json.dumps(metrics)


@pytest.mark.parametrize("evidence", [None, 7, [[1]], [["brief"]], {"a": 1}])
def test_a_column_that_only_is_called_world_says_nothing_of_steps(evidence: Any) -> None:
    draw = Draw(DrawKey(1, "a", 0, 0), "plain", 1, Completion((), "", "stop", 0.0), Score(1.0, "3"))
    for world in ("rubric", "tldr", "sums", "quiz", "mine", ["rubric"]):
        columns = {"world": world} | ({} if evidence is None else {"evidence": evidence})
        assert sound_steps(draw, Problem("a", "x", "3", columns)) in (None, [False], [False, False])
